//! Models of 16 bits, whose matrices stay in their file.

use std::path::Path;

use crate::testing::{byte_tokenizer, random_weight, tiny_config};
use bitllama_core::ModelConfig;
use bitllama_core::weights::{Kind, specs};
use bitllama_formats::hf::Dtype;
use bitllama_formats::{StoredWeight, hf, model};
use bitllama_runtime::{Decoder, LogitsOf, Settings, memory, open};

fn save(folder: &Path, config: &ModelConfig, dtype: Dtype) {
    let weights = specs(config).into_iter().map(|spec| match random_weight(&spec, None, 1) {
        StoredWeight::Full(values) => (spec, values),
        _ => panic!("a scheme was not asked for"),
    });
    hf::save(folder, config, weights, &byte_tokenizer(), dtype).unwrap();
}

fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<u32> {
    let logits = decoder.forward(tokens, &mut decoder.new_cache(), LogitsOf::All).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn logits_are_those_of_the_same_numbers_in_f32_to_the_bit() {
    let root = tempfile::tempdir().unwrap();
    for (dtype, tied) in [(Dtype::Bf16, true), (Dtype::F16, false)] {
        let config = ModelConfig { tie_word_embeddings: tied, ..tiny_config() };
        let folder = root.path().join("model");
        save(&folder, &config, dtype);
        let model = model::open(&folder).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
        for settings in [Settings::default(), Settings::fast()] {
            let in_f32 = |spec: &_| Ok(StoredWeight::Full(model.weights.read(spec)?));
            let expected = Decoder::new(config.clone(), in_f32).unwrap().with_settings(settings.clone());
            let found = Decoder::from_model(&model).unwrap().with_settings(settings);
            for tokens in [&tokens[..1], &tokens[..3], &tokens] {
                assert_eq!(logits(&found, tokens), logits(&expected, tokens), "{} tokens", tokens.len());
            }
            let norms: usize =
                specs(&config).iter().filter(|spec| spec.kind == Kind::Norm).map(|spec| 4 * spec.len()).sum();
            let matrices: usize =
                specs(&config).iter().filter(|spec| spec.kind != Kind::Norm).map(|spec| 2 * spec.len()).sum();
            assert_eq!(found.size().bytes - norms, matrices);
            assert!(found.bytes_per_token() * 10 < expected.bytes_per_token() * 6);
        }
    }
}

#[test]
fn a_model_opens_without_four_bytes_a_weight() {
    let config = ModelConfig {
        vocab_size: 16384,
        hidden_size: 1024,
        intermediate_size: 4096,
        num_attention_heads: 16,
        num_key_value_heads: 4,
        head_dim: 64,
        ..tiny_config()
    };
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    save(&folder, &config, Dtype::Bf16);
    let stored = specs(&config).iter().map(|spec| 2 * spec.len() as u64).sum::<u64>();
    memory::reset_peak();
    let Some(before) = memory::peak() else { return };
    let decoder = open(&folder).unwrap().decoder;
    logits(&decoder, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let taken = memory::peak().unwrap().saturating_sub(before);
    // The pages of the file, tiles and activations; in f32 it would be `2 * stored` beside the pages of the largest matrix.
    assert!(taken < stored * 5 / 4 + (16 << 20), "{} MB for {} MB", taken >> 20, stored >> 20);
}
