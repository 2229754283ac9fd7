//! Qwen 3 (`configuration_qwen3.py`): norms of queries and keys of each head, heads of a width of their own.

use super::keys::{bias_keys, biases, hidden_act, qwen_window_keys, qwen_windows};
use super::{Absent, Family, GgufFamily};
use crate::{Architecture, QkNorm};

pub(super) static QWEN3: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    gguf: Some(GgufFamily { architecture: "qwen3", paired_rows: false }),
    choices: || Architecture { qk_norm: Some(QkNorm::Head), ..Architecture::LLAMA },
    absent: Absent {
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        ..Absent::LLAMA
    },
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, false)?;
        qwen_windows(config, keys)
    },
    read_gguf: |_, _| Ok(()),
    write: |config| [bias_keys(config), qwen_window_keys(config)].concat(),
};
