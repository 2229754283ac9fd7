//! The choice of a weight's tensor in folders that hold several candidates.

use std::collections::HashMap;
use std::fs;

use bitllama_core::weights::{EMBEDDING, specs};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;

const UP: &str = "layers.0.mlp.up_proj.weight";

fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 6,
        hidden_size: 4,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 2,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: tied,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
    }
}

fn spec(name: &str) -> WeightSpec {
    specs(&config(false)).into_iter().find(|spec| spec.name == name).unwrap()
}

/// A tensor of a file: name, type, shape, bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &str, of: &str, value: impl Fn(usize) -> f32) -> Stored {
    let spec = spec(of);
    let bytes = (0..spec.len()).flat_map(|i| value(i).to_le_bytes()).collect();
    (name.to_string(), Dtype::F32, spec.shape, bytes)
}

/// Every weight but the head, under its usual name; its values are its position in the list and that of each element.
fn whole() -> Vec<Stored> {
    let list = specs(&config(true));
    let stored = |(n, spec): (usize, &WeightSpec)| {
        f32s(&format!("model.{}", spec.name), &spec.name, |i| n as f32 + i as f32 / 64.0)
    };
    list.iter().enumerate().map(stored).collect()
}

fn write(path: &Path, tensors: &[Stored]) {
    let views: HashMap<&String, TensorView> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn folder(tensors: &[Stored]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join(WEIGHTS), tensors);
    folder
}

fn open(folder: &tempfile::TempDir, config: &mut ModelConfig) -> Result<Weights> {
    Weights::open(folder.path(), config, true, None)
}

fn message<T>(result: Result<T>) -> String {
    let message = result.err().expect("an error is expected").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Two shards: `first` the embedding, `second` all else, and an index that says so, changed by `edit`.
fn sharded(first: &[Stored], second: &[Stored], edit: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for (name, of) in [("a.safetensors", &whole()[..1]), ("b.safetensors", &whole()[1..])] {
        map.extend(of.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
    }
    write(&folder.path().join("a.safetensors"), first);
    write(&folder.path().join("b.safetensors"), second);
    let mut index = json!({ "weight_map": map });
    edit(&mut index["weight_map"]);
    fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    folder
}

#[test]
fn the_index_decides_which_shard_has_a_tensor() {
    let (all, stale) = (whole(), f32s(&format!("model.{UP}"), UP, |_| 9.0));
    let folder_of = |first: &[Stored]| sharded(first, &all[1..], |_| ());
    let plain = folder_of(&all[..1]);
    let right = open(&plain, &mut config(true)).unwrap().read(&spec(UP)).unwrap();
    assert_ne!(right[0], 9.0);
    // A stale copy in the shard that is opened first.
    let folder = folder_of(&[all[0].clone(), stale.clone()]);
    assert_eq!(open(&folder, &mut config(true)).unwrap().read(&spec(UP)).unwrap(), right);
    // A file that the index does not name.
    write(&folder.path().join("0.safetensors"), &[stale]);
    assert_eq!(open(&folder, &mut config(true)).unwrap().read(&spec(UP)).unwrap(), right);
    // A head that the index does not name is none of the model's.
    let head = f32s(HEAD, HEAD, |_| 5.0);
    let folder = folder_of(&[all[0].clone(), head]);
    let mut tied = config(true);
    open(&folder, &mut tied).unwrap();
    assert!(tied.tie_word_embeddings);
}

#[test]
fn an_index_that_its_shards_contradict_is_refused() {
    let all = whole();
    let name = format!("model.{UP}");
    let folder = sharded(&all[..1], &all[1..], |map| map[&name] = json!("a.safetensors"));
    let found = message(open(&folder, &mut config(true)));
    let expected = "model.safetensors.index.json: says that tensor model.layers.0.mlp.up_proj.weight is in a.safetensors, \
                    which does not hold it";
    assert!(found.ends_with(expected), "{found}");
    let folder = sharded(&all[..1], &all[1..], |map| drop(map.as_object_mut().unwrap().remove(&name)));
    let found = message(open(&folder, &mut config(true)));
    assert!(found.ends_with(&format!("index.json: has no tensor {name} or {UP}")), "{found}");
}

#[test]
fn one_file_comes_before_an_index() {
    let all = whole();
    let folder = sharded(&all[..1], &all[1..], |_| ());
    let mut single = whole();
    single.iter_mut().for_each(|(.., bytes)| bytes.fill(0));
    write(&folder.path().join(WEIGHTS), &single);
    let weights = open(&folder, &mut config(true)).unwrap();
    assert!(weights.read(&spec(UP)).unwrap().iter().all(|value| *value == 0.0));
}

#[test]
fn one_weight_under_two_names_is_refused_unless_they_are_equal() {
    let mut all = whole();
    let equal = all.iter().find(|stored| stored.0.ends_with(UP)).unwrap().clone();
    all.push((UP.to_string(), equal.1, equal.2, equal.3));
    open(&folder(&all), &mut config(true)).unwrap();
    all.pop();
    all.push(f32s(UP, UP, |_| 9.0));
    let found = message(open(&folder(&all), &mut config(true)));
    let expected = "tensors model.layers.0.mlp.up_proj.weight and layers.0.mlp.up_proj.weight are one weight, but hold \
                    different numbers";
    assert!(found.ends_with(expected), "{found}");
}

#[test]
fn a_tied_model_is_what_its_files_hold() {
    // Under the head's name alone.
    let mut all = whole();
    let embedding = all.remove(0);
    let as_head = (HEAD.to_string(), embedding.1, embedding.2.clone(), embedding.3.clone());
    all.push(as_head.clone());
    let mut tied = config(true);
    let weights = open(&folder(&all), &mut tied).unwrap();
    assert!(tied.tie_word_embeddings);
    assert_eq!(weights.read(&spec(EMBEDDING)).unwrap()[1], 1.0 / 64.0);
    // Under both, with the same numbers, also where one of them is stored in another type.
    all.push(embedding);
    open(&folder(&all), &mut tied).unwrap();
    assert!(tied.tie_word_embeddings);
    let halves = as_head.3.as_chunks().0.iter().flat_map(|b| half::f16::from_f32(f32::from_le_bytes(*b)).to_le_bytes());
    all.retain(|stored| stored.0 != HEAD);
    all.push((HEAD.to_string(), Dtype::F16, as_head.2, halves.collect()));
    open(&folder(&all), &mut tied).unwrap();
    assert!(tied.tie_word_embeddings);
    // With different numbers there is no tie.
    all.retain(|stored| stored.0 != HEAD);
    all.push(f32s(HEAD, HEAD, |i| i as f32));
    let weights = open(&folder(&all), &mut tied).unwrap();
    assert!(!tied.tie_word_embeddings);
    assert_eq!((weights.read(&spec(HEAD)).unwrap()[7], weights.read(&spec(EMBEDDING)).unwrap()[1]), (7.0, 1.0 / 64.0));
    let bytes: usize = all.iter().map(|stored| stored.3.len()).sum();
    assert_eq!(weights.stored_bytes(), bytes as u64);
    // Neither.
    all.retain(|stored| stored.0 != HEAD && !stored.0.ends_with(EMBEDDING));
    let found = message(open(&folder(&all), &mut config(true)));
    assert!(found.ends_with("has no tensor model.embed_tokens.weight or embed_tokens.weight"), "{found}");
}

#[test]
fn infinite_and_nan_weights_are_refused_by_name() {
    for (fault, shown) in [(f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf"), (f32::NAN, "NaN")] {
        let name = format!("model.{UP}");
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut all: Vec<Stored> = whole().into_iter().filter(|stored| stored.0 != name).collect();
            let values = (0..24).map(|i| if i == 9 { fault } else { 1.0 });
            let bytes = match dtype {
                Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                Dtype::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
                _ => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            };
            all.push((name.clone(), dtype, vec![6, 4], bytes));
            let folder = folder(&all);
            let weights = open(&folder, &mut config(true)).unwrap();
            let found = message(weights.read(&spec(UP)));
            let expected = format!("model.safetensors: {UP} holds {shown} at [2, 1]; every value must be finite");
            assert!(found.ends_with(&expected), "{found}");
            assert_eq!(weights.stored(&spec(UP)).unwrap_err().to_string(), found);
        }
    }
}

#[test]
fn tensors_that_share_bytes_or_leave_gaps_are_refused() {
    let header = |places: [[usize; 2]; 2]| {
        let [a, b] = places.map(|place| json!({"dtype": "U8", "shape": [place[1] - place[0]], "data_offsets": place}));
        let header = json!({"a": a, "b": b}).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(WEIGHTS);
    let opened = |places| {
        fs::write(&path, header(places)).unwrap();
        MappedFile::open(path.clone()).map(drop)
    };
    opened([[0, 4], [4, 8]]).unwrap();
    for places in [[[0, 5], [4, 8]], [[0, 8], [0, 8]], [[0, 3], [4, 8]], [[1, 4], [4, 8]]] {
        assert!(message(opened(places)).contains("damaged header"), "{places:?}");
    }
}
