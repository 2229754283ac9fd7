//! The config of a model as GGUF metadata: the inverse of `gguf/config.rs`.

use bitllama_core::families::GgufFamily;
use bitllama_core::{Architecture, ModelConfig, RopeScaling, rope};

use super::super::Value;
use super::super::model::{ROPE_FREQS, ROPE_LONG, ROPE_SHORT};

/// The family of GGUF files that holds a model: its own, or Llama's for families that GGUF counts among Llamas.
///
/// # Errors
/// A family without a name in GGUF files, in one line without the file.
pub(super) fn family(config: &ModelConfig) -> Result<GgufFamily, String> {
    let family = config.arch.family.family();
    let llama = bitllama_core::families::of_gguf("llama").and_then(|llama| llama.gguf);
    let as_llama = || llama.filter(|_| family.model_type == "mistral");
    family
        .gguf
        .or_else(as_llama)
        .ok_or_else(|| format!("a {} model has no architecture in GGUF files", family.model_type))
}

/// Metadata of the architecture.
pub(super) fn metadata(config: &ModelConfig, gguf: GgufFamily) -> Vec<(String, Value)> {
    let whole = |value: usize| Value::Unsigned(value as u64);
    let arch = &config.arch;
    let mut keys = vec![
        ("vocab_size", whole(config.vocab_size)),
        ("block_count", whole(config.num_hidden_layers)),
        ("context_length", whole(config.max_position_embeddings)),
        ("embedding_length", whole(config.hidden_size)),
        ("feed_forward_length", whole(config.intermediate_size)),
        ("attention.head_count", whole(config.num_attention_heads)),
        ("attention.head_count_kv", whole(config.num_key_value_heads)),
        ("attention.key_length", whole(config.head_dim)),
        ("attention.value_length", whole(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::Float(config.rms_norm_eps)),
        ("rope.dimension_count", whole(arch.rotary_dim.unwrap_or(config.head_dim))),
        ("rope.freq_base", Value::Float(config.rope_theta)),
    ];
    let mut number = |key, value: Option<f64>| keys.extend(value.map(|value| (key, Value::Float(value))));
    number("rope.freq_base_swa", arch.local_rope.as_ref().map(|rope| rope.theta));
    number("attn_logit_softcapping", arch.attention_cap);
    number("final_logit_softcapping", arch.logits_cap);
    if arch.embedding_scale != 1.0 || arch.residual_scale != 1.0 || arch.logits_scale != 1.0 {
        // Granite's; other families imply theirs, and their readers do not look at these keys.
        number("embedding_scale", Some(arch.embedding_scale));
        number("residual_scale", Some(arch.residual_scale));
        number("logit_scale", Some(arch.logits_scale.recip()));
        number("attention.scale", arch.attention_scale);
    }
    keys.extend(arch.sliding_window.map(|window| ("attention.sliding_window", whole(window))));
    keys.extend(scaling(config));
    let name = |(key, value)| (format!("{}.{key}", gguf.architecture), value);
    keys.into_iter().map(name).collect()
}

/// Metadata of the scaling of rotary frequencies; Llama 3's is in [`rope_tensors`].
fn scaling(config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let kind = |name: &str| ("rope.scaling.type", Value::String(name.into()));
    let original = |length: usize| ("rope.scaling.original_context_length", Value::Unsigned(length as u64));
    match &config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => vec![kind("linear"), ("rope.scaling.factor", Value::Float(*factor))],
        Some(RopeScaling::Yarn { factor, original_max_position_embeddings, .. }) => {
            vec![
                kind("yarn"),
                ("rope.scaling.factor", Value::Float(*factor)),
                original(*original_max_position_embeddings),
            ]
        }
        Some(RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. }) => vec![
            original(*original_max_position_embeddings),
            ("rope.scaling.attn_factor", Value::Float(*attention_factor)),
        ],
        Some(_) | None => Vec::new(),
    }
}

/// Tensors that hold the scaling of rotary frequencies: Llama 3's divisors, LongRoPE's two lists.
pub(super) fn rope_tensors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let narrow = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
    match &config.rope_scaling {
        Some(RopeScaling::Llama3 { .. }) => {
            let plain = ModelConfig { rope_scaling: None, ..config.clone() };
            let (plain, scaled) = (rope::inverse_frequencies(&plain), rope::inverse_frequencies(config));
            vec![(ROPE_FREQS, plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect())]
        }
        Some(RopeScaling::LongRope { short_factor, long_factor, .. }) => {
            vec![(ROPE_LONG, narrow(long_factor)), (ROPE_SHORT, narrow(short_factor))]
        }
        _ => Vec::new(),
    }
}

/// The first key in which a config that was read back computes something else than the one that was written, with both values.
/// Numbers are compared in single precision, as GGUF files hold them; names of families are not compared.
pub(super) fn difference(written: &ModelConfig, back: &ModelConfig) -> Option<String> {
    let plain = |config: &ModelConfig| {
        let arch = Architecture { family: written.arch.family, ..config.arch.clone() };
        ModelConfig { arch, eos_token_ids: Vec::new(), end_token_ids: Vec::new(), ..config.clone() }
    };
    let json = |config: &ModelConfig| serde_json::to_value(plain(config)).unwrap_or_default();
    let (written, back) = (json(written), json(back));
    let keys = written.as_object()?.keys().chain(back.as_object()?.keys());
    keys.filter(|key| *key != "arch").find_map(|key| different(key, &written[key], &back[key])).or_else(|| {
        let (written, back) = (&written["arch"], &back["arch"]);
        let keys = written.as_object().into_iter().chain(back.as_object()).flat_map(|keys| keys.keys());
        keys.into_iter().find_map(|key| different(key, &written[key], &back[key]))
    })
}

fn different(key: &str, written: &serde_json::Value, back: &serde_json::Value) -> Option<String> {
    (!alike(written, back)).then(|| {
        let (written, back) = (written.to_string(), back.to_string());
        format!(
            "{key} = {}, which GGUF files of this architecture cannot say: they mean {}",
            bitllama_core::excerpt(&written),
            bitllama_core::excerpt(&back)
        )
    })
}

fn alike(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::*;
    match (a, b) {
        (Number(a), Number(b)) => a.as_f64().map(|a| a as f32) == b.as_f64().map(|b| b as f32),
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Object(a), Object(b)) => {
            a.keys().chain(b.keys()).all(|key| alike(a.get(key).unwrap_or(&Null), b.get(key).unwrap_or(&Null)))
        }
        (a, b) => a == b,
    }
}
