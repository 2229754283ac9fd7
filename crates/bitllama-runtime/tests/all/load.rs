//! An artifact of 1.1B ternary weights, from its path to the first token.

use std::path::Path;
use std::time::Instant;

use crate::testing;
use bitllama_core::Scheme;
use bitllama_core::weights::{Kind, specs};
use bitllama_formats::artifact::{self, Layout};
use bitllama_formats::{StoredWeight, hf};
use bitllama_runtime::bench::random_weight;
use bitllama_runtime::{LogitsOf, Settings, open};

/// With the weights in the page cache, where they are after they were written. 277 MB on disk.
#[test]
#[ignore = "writes 277 MB; see scripts/heavy-tests.sh"]
fn a_ternary_artifact_of_1_1b_gives_its_first_token_within_300_ms() {
    let config = hf::read_config(Path::new("../../configs/tinyllama-1.1b.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    let weights = specs(&config).into_iter().enumerate().map(|(seed, spec)| {
        let weight = match (spec.kind, &spec.shape[..]) {
            (Kind::Norm, _) => StoredWeight::Full(vec![1.0; spec.len()]),
            (_, &[rows, columns]) => random_weight(Some(Scheme::Ternary.into()), [rows, columns], seed as u64).unwrap(),
            (_, shape) => panic!("{shape:?} is no matrix"),
        };
        Ok((spec, weight))
    });
    let tokenizer = testing::byte_tokenizer();
    artifact::write(&path, &config, weights, &tokenizer, Layout::Packed, serde_json::json!({})).unwrap();
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            let decoder = open(&path).unwrap().decoder;
            let decoder = decoder.with_settings(Settings::fast());
            decoder.forward(&[1], &mut decoder.new_cache(), LogitsOf::Last).unwrap();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    println!("from path to first token: median {:.0} ms, {times:.3?} s", times[3] * 1e3);
    assert!(times[3] < 0.3, "{times:?}");
}
