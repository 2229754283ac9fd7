//! Artifacts of the older tools, made by `tests/golden/make_v2_artifact.py` from the description of their format.

use std::fs;
use std::path::{Path, PathBuf};

use bitllama_core::Scheme;
use bitllama_core::weights::{self, FINAL_NORM, WeightSpec};
use bitllama_formats::artifact::{Layout, write};
use bitllama_formats::npz::Npz;
use bitllama_formats::{Artifact, StoredWeight};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn values(weight: StoredWeight) -> Vec<f32> {
    match weight {
        StoredWeight::Packed(matrix) => matrix.dequantize().data,
        StoredWeight::Full(values) => values,
        StoredWeight::Rows(_) => unreachable!("artifacts have none"),
    }
}

/// Every weight is, bit for bit, what NumPy made of it. Returns how many of them are low-bit.
fn assert_expected(artifact: &Artifact) -> usize {
    let expected = Npz::open(&golden("v2_expected.npz")).unwrap();
    let mut low_bit = 0;
    for spec in weights::specs(&artifact.config) {
        let weight = artifact.weight(&spec).unwrap();
        low_bit += matches!(weight, StoredWeight::Packed(_)) as usize;
        let found = values(weight);
        let expected = match spec.name.as_str() {
            FINAL_NORM => vec![1.0; 30],
            name => expected.array(name).unwrap().to_f32().unwrap(),
        };
        assert_eq!(found, expected, "{}", spec.name);
    }
    low_bit
}

fn copy_of_the_artifact() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden("v2_artifact")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn scheme(artifact: &Artifact, name: &str) -> Option<Scheme> {
    artifact.weights().find(|weight| weight.name == name).unwrap().scheme
}

fn zero_points(artifact: &Artifact, name: &str) -> Option<Vec<i32>> {
    let spec = weights::specs(&artifact.config).into_iter().find(|spec| spec.name == name).unwrap();
    match artifact.weight(&spec).unwrap() {
        StoredWeight::Packed(matrix) => matrix.zero_points().map(<[i32]>::to_vec),
        _ => panic!("{name} is not packed"),
    }
}

#[test]
fn npz_and_manifest() {
    let artifact = Artifact::open(&golden("v2_artifact")).unwrap();
    let config = &artifact.config;
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (21, 30, 13));
    assert_eq!((config.num_hidden_layers, config.num_attention_heads, config.head_dim), (2, 5, 6));
    assert_eq!(config.num_key_value_heads, 1, "kv_groups does not count heads here; k_proj tells");
    assert_eq!((config.max_position_embeddings, config.rope_theta), (256, 500000.0));
    assert!(!config.tie_word_embeddings);
    assert!(artifact.tokenizer.is_none());
    assert_eq!(assert_expected(&artifact), 14);

    assert!(artifact.notes.iter().any(|note| note.contains("rms_norm_eps")), "{:?}", artifact.notes);
    assert!(artifact.notes.iter().any(|note| note.contains("norm.weight is not there")), "{:?}", artifact.notes);
    assert_eq!(scheme(&artifact, "layers.0.self_attn.q_proj.weight"), Some(Scheme::Binary));
    assert_eq!(scheme(&artifact, "layers.0.self_attn.v_proj.weight"), Some(Scheme::Ternary));
    assert_eq!(scheme(&artifact, "layers.1.self_attn.q_proj.weight"), Some(Scheme::Int2));
    assert_eq!(scheme(&artifact, "layers.1.self_attn.o_proj.weight"), None);
    assert_eq!(zero_points(&artifact, "layers.0.self_attn.k_proj.weight"), None, "symmetric");
    assert!(zero_points(&artifact, "layers.1.self_attn.k_proj.weight").is_some());
}

#[test]
fn loose_files_alone() {
    let folder = copy_of_the_artifact();
    fs::remove_file(folder.path().join("model_quantized.npz")).unwrap();
    let artifact = Artifact::open(folder.path()).unwrap();
    // Ternary has no loose form: its dequantized copies stand in.
    assert_eq!(assert_expected(&artifact), 11);
    assert_eq!(artifact.config.num_key_value_heads, 1);
    fs::remove_file(folder.path().join("lm_head.weight_fp32.npy")).unwrap();
    let refused = Artifact::open(folder.path()).err().unwrap().to_string();
    assert!(refused.contains("lm_head.weight"), "{refused}");
}

#[test]
fn a_deflated_npz_alone() {
    let artifact = Artifact::open(&golden("v2_compressed.npz")).unwrap();
    assert_eq!(assert_expected(&artifact), 14);
    assert_eq!(artifact.config.rope_theta, 500000.0);
}

#[test]
fn written_again_in_our_layout() {
    let old = Artifact::open(&golden("v2_artifact")).unwrap();
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("new");
    let vocab = (0..21).map(|i| (format!("t{i}"), i)).collect();
    let tokenizer = Tokenizer::new(WordLevel::builder().vocab(vocab).unk_token("t0".into()).build().unwrap());
    let weights = || {
        let weight = |spec: WeightSpec| old.weight(&spec).map(|weight| (spec, weight));
        weights::specs(&old.config).into_iter().map(weight)
    };
    for layout in [Layout::Packed, Layout::V2] {
        write(&folder, &old.config, weights(), &tokenizer, layout, serde_json::Value::Null).unwrap();
        let new = Artifact::open(&folder).unwrap();
        assert_eq!((&new.config, &new.notes), (&old.config, &Vec::new()));
        assert_eq!(new.size(), old.size());
        assert_eq!(assert_expected(&new), 14);
    }
}
