//! Tiny models and a tokenizer for tests, made in memory. Uses no item of this crate, so that tests outside of it can
//! include the file.

#![allow(dead_code)] // Each includer needs a part of it.

use std::collections::BTreeMap;

use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_core::{ModelConfig, PackedMatrix, Quantizer, Scheme};
use bitllama_formats::StoredWeight;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A byte-level BPE without merges: one token a byte, `<s>` is 256 and `</s>` 257.
pub fn byte_tokenizer() -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: BTreeMap<String, usize> = alphabet.into_iter().map(String::from).zip(0..).collect();
    let special = |id: u32, content: &str| {
        serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    };
    let byte_level =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// Two blocks with grouped queries, for [`byte_tokenizer`].
pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 258,
        hidden_size: 16,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: Some(256),
        eos_token_ids: vec![257],
        end_token_ids: Vec::new(),
    }
}

/// A random weight that depends on its name and `seed` only: norms near 1, matrices rounded to `scheme` if there is one.
pub fn random_weight(spec: &WeightSpec, scheme: Option<Scheme>, seed: u64) -> StoredWeight {
    let name = spec.name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte as u64));
    let mut rng = ChaCha8Rng::seed_from_u64(name);
    let center = if spec.kind == Kind::Norm { 1.0 } else { 0.0 };
    let data: Vec<f32> = (0..spec.len()).map(|_| center + rng.random_range(-0.5f32..0.5)).collect();
    match (scheme, spec.shape.as_slice()) {
        (Some(scheme), [rows, columns]) => {
            let plain = Quantizer::from(scheme);
            StoredWeight::Packed(
                PackedMatrix::quantize(&plain.fitting([*rows, *columns]), [*rows, *columns], data).unwrap(),
            )
        }
        _ => StoredWeight::Full(data),
    }
}
