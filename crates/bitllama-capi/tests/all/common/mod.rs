//! A tiny artifact for the tests of whole models.

#[path = "../../../../bitllama-runtime/src/testing.rs"]
mod testing;

use std::path::{Path, PathBuf};

use bitllama_core::weights::specs;
use bitllama_core::{ModelConfig, Scheme};
use bitllama_formats::artifact::{Layout, write};
use testing::{byte_tokenizer, random_weight, tiny_config};

/// A model in four schemes and f32, one token a byte, in `folder`.
pub fn artifact(folder: &Path, seed: u64) -> PathBuf {
    let path = folder.join(format!("tiny{seed}"));
    let config = ModelConfig { tie_word_embeddings: false, ..tiny_config() };
    let weights = specs(&config).into_iter().map(|spec| {
        let scheme = match spec.name.as_str() {
            "embed_tokens.weight" => Some(Scheme::Int8),
            name if name.contains("mlp") => Some(Scheme::Ternary),
            name if name.contains("q_proj") => Some(Scheme::Binary),
            name if name.contains("k_proj") => Some(Scheme::Int4),
            _ => None,
        };
        let weight = random_weight(&spec, scheme, seed);
        Ok((spec, weight))
    });
    write(&path, &config, weights, &byte_tokenizer(), Layout::Packed, serde_json::json!({})).unwrap();
    path
}
