//! OLMo 2 (`configuration_olmo2.py`): norms behind attention and feed-forward layer, and of all queries and keys of a token.

use super::keys::{Extra, biases, hidden_act};
use super::{Absent, Family, GgufFamily};
use crate::{Architecture, NormPlaces, QkNorm};

pub(super) static OLMO2: Family = Family {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    gguf: Some(GgufFamily { architecture: "olmo2", paired_rows: false }),
    choices: || Architecture { norms: NormPlaces::After, qk_norm: Some(QkNorm::Token), ..Architecture::LLAMA },
    absent: Absent { rms_norm_eps: 1e-5, ..Absent::LLAMA },
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, false)
    },
    read_gguf: |_, _| Ok(()),
    write: |config| vec![("attention_bias", Extra::Flag(config.arch.o_bias))],
};
