//! BitNet b1.58 (`configuration_bitnet.py`): sub-norms, squared ReLU. With SiLU it is a Llama with sub-norms
//! ([`ModelConfig::sub_norm`](crate::ModelConfig::sub_norm)), and what such a model is written as, so that `transformers` computes
//! the same.

use super::keys::{Extra, biases, hidden_act};
use super::{Absent, Family, FamilyName, GgufFamily};
use crate::{Architecture, HiddenAct};

pub(super) static BITNET: Family = Family {
    model_type: "bitnet",
    class: "BitNetForCausalLM",
    gguf: Some(GgufFamily { architecture: "bitnet", paired_rows: false }),
    choices: || Architecture { hidden_act: HiddenAct::Relu2, ..Architecture::LLAMA },
    absent: Absent { rms_norm_eps: 1e-5, rope_theta: 5e5, ..Absent::LLAMA },
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        // To `BitNetConfig` null means as many as heads, and an absent key 5, which fits its own model only.
        if !keys.has("num_key_value_heads") {
            return Err("num_key_value_heads is missing".into());
        }
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, false)?;
        config.sub_norm = true;
        llama_with_sub_norms(config);
        Ok(())
    },
    read_gguf: |config, _| {
        // llama.cpp's graph of `bitnet` has SiLU.
        (config.sub_norm, config.arch.hidden_act) = (true, HiddenAct::Silu);
        llama_with_sub_norms(config);
        Ok(())
    },
    write: |config| vec![("attention_bias", Extra::Flag(config.arch.o_bias))],
};

/// A model with SiLU is known as a Llama, so that students that got sub-norms and published models are the same thing.
fn llama_with_sub_norms(config: &mut crate::ModelConfig) {
    if config.arch.hidden_act == HiddenAct::Silu {
        config.arch.family = FamilyName::LLAMA;
    }
}
