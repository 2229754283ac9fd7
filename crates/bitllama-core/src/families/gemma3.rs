//! Gemma 3's text models (`configuration_gemma3.py`): Gemma 2 without caps, with norms of queries and keys, five layers with a window
//! and a rotary embedding of their own to each with full attention.

use super::gemma::{ABSENT, scale_embedding};
use super::keys::set_windows;
use super::{Absent, Family, GgufFamily, gemma2};
use crate::{Architecture, HiddenAct, NormPlaces, QkNorm, Rope};

const LOCAL: Rope = Rope { theta: 1e4, scaling: None };

pub(super) static GEMMA3: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    gguf: Some(GgufFamily { architecture: "gemma3", paired_rows: false }),
    choices: || Architecture {
        norms: NormPlaces::Both,
        qk_norm: Some(QkNorm::Head),
        hidden_act: HiddenAct::GeluTanh,
        local_rope: Some(LOCAL),
        ..Architecture::LLAMA
    },
    absent: Absent { num_key_value_heads: Some(4), max_position_embeddings: 131_072, rope_theta: 1e6, ..ABSENT },
    norm_offset: 1.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        let pattern = keys.whole("sliding_window_pattern")?.filter(|pattern| *pattern > 0).unwrap_or(6);
        gemma2::read(config, keys, pattern)
    },
    read_gguf: |config, keys| {
        scale_embedding(config);
        config.arch.attention_scale = Some(f64::from(gemma2::scale_of_gguf(config, 62)));
        config.arch.logits_cap = keys.number("final_logit_softcapping")?;
        let local = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL.theta);
        config.arch.local_rope = Some(Rope { theta: local, scaling: None });
        let window = keys.whole("attention.sliding_window")?;
        set_windows(config, window, |index| (index + 1) % 6 != 0);
        Ok(())
    },
    write: gemma2::keys_of,
};
