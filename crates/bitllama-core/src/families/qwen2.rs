//! Qwen 2 and 2.5 with Coder and Math, DeepSeek-R1-Distill-Qwen (`configuration_qwen2.py`): biases of queries, keys and values, and
//! windows from a layer on.

use super::keys::{hidden_act, qwen_window_keys, qwen_windows};
use super::{Absent, Family, GgufFamily};
use crate::Architecture;

pub(super) static QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    gguf: Some(GgufFamily { architecture: "qwen2", paired_rows: false }),
    choices: || Architecture { qkv_bias: true, ..Architecture::LLAMA },
    absent: Absent { num_key_value_heads: Some(32), max_position_embeddings: 32_768, ..Absent::LLAMA },
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        qwen_windows(config, keys)
    },
    read_gguf: |_, _| Ok(()),
    write: qwen_window_keys,
};
