//! Llama 1 to 3.x, TinyLlama, SmolLM 1 and 2, Code Llama, DeepSeek-R1-Distill-Llama (`configuration_llama.py`).

use super::keys::{bias_keys, biases, hidden_act};
use super::{Absent, Family, FamilyName, GgufFamily};
use crate::Architecture;

pub(super) static LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf: Some(GgufFamily { architecture: "llama", paired_rows: true }),
    choices: || Architecture::LLAMA,
    absent: Absent::LLAMA,
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, true)
    },
    read_gguf: |config, keys| {
        // Mistral's files are of this architecture too; those with a window are read as Mistral.
        if let Some(window) = keys.whole("attention.sliding_window")?.filter(|window| *window > 0) {
            config.arch.family = FamilyName::from(&super::mistral::MISTRAL);
            super::keys::set_windows(config, Some(window), |_| true);
        }
        // Of Llama's own files all four projections have a bias or none; Qwen's first three do.
        if config.arch.qkv_bias && !config.arch.o_bias {
            config.arch.family = FamilyName::QWEN2;
        }
        Ok(())
    },
    write: bias_keys,
};
