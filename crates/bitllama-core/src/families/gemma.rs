//! Gemma 1 (`configuration_gemma.py`): GeGLU, norms that multiply by `1 + weight`, an embedding times the root of its width.

use super::keys::{Extra, biases, hidden_act};
use super::{Absent, Family, GgufFamily};
use crate::{Architecture, HiddenAct, ModelConfig};

/// Values that all Gemmas leave out.
pub(super) const ABSENT: Absent = Absent {
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    tie_word_embeddings: true,
};

pub(super) static GEMMA: Family = Family {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    gguf: Some(GgufFamily { architecture: "gemma", paired_rows: false }),
    choices: || Architecture { hidden_act: HiddenAct::GeluTanh, ..Architecture::LLAMA },
    absent: ABSENT,
    norm_offset: 1.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        scale_embedding(config);
        // `gelu` is what the first releases say, and means the approximation.
        let legacy = keys.text("hidden_activation")?.is_none() && keys.text("hidden_act")?.as_deref() == Some("gelu");
        if !legacy {
            hidden_act(config, keys, &["hidden_activation", "hidden_act"])?;
        }
        biases(config, keys, false)
    },
    read_gguf: |config, _| {
        scale_embedding(config);
        Ok(())
    },
    write: |config| {
        let act = Extra::Text(config.arch.hidden_act.name());
        vec![("hidden_activation", act), ("attention_bias", Extra::Flag(config.arch.o_bias))]
    },
};

/// The embedding's rows are multiplied by the root of their width.
pub(super) fn scale_embedding(config: &mut ModelConfig) {
    config.arch.embedding_scale = f64::from((config.hidden_size as f64).sqrt() as f32);
}
