//! Round trips of every scheme through both layouts; in [`damage`], what must be refused.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use bitllama_core::weights::{self, Kind, WeightSpec};
use bitllama_core::{
    Activation, ActivationPlan, Granularity, ModelConfig, PackedMatrix, Quantizer, RopeScaling, RoundedMatrix,
    ScaleFormat, Scheme,
};
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;

use super::forms::Form;
use super::*;
use crate::{Error, Result, npz};

mod damage;
mod ends;
mod manifests;

/// Odd sizes, so that every row ends inside a byte, a block and a panel in every scheme.
fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 11,
        hidden_size: 13,
        intermediate_size: 19,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 2,
        max_position_embeddings: 77,
        rms_norm_eps: 1.25e-6,
        rope_theta: 12345.5,
        rope_scaling: Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        }),
        tie_word_embeddings: tied,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: Some(1),
        eos_token_ids: vec![2, 3],
        end_token_ids: Vec::new(),
    }
}

/// Sizes that have groups of 32 columns, and rows that do not fill panels.
fn wide() -> ModelConfig {
    let heads = ModelConfig { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, ..config(false) };
    ModelConfig { hidden_size: 64, intermediate_size: 96, ..heads }
}

fn tokenizer(tokens: u32) -> Tokenizer {
    let vocab = (0..tokens).map(|i| (format!("t{i}"), i)).collect();
    Tokenizer::new(WordLevel::builder().vocab(vocab).unk_token("t0".into()).build().unwrap())
}

fn values(spec: &WeightSpec) -> Vec<f32> {
    let seed = spec.name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte as u32));
    (0..spec.len() as u32)
        .map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

/// Sizes here are odd, so `nf4` has a scale a row as well.
fn plain(scheme: Scheme, shape: [usize; 2]) -> Quantizer {
    Quantizer::from(scheme).fitting(shape)
}

fn stored(spec: &WeightSpec, scheme: Option<Scheme>) -> StoredWeight {
    match (scheme, &spec.shape[..]) {
        (Some(scheme), &[rows, columns]) => StoredWeight::Packed(
            PackedMatrix::quantize(&plain(scheme, [rows, columns]), [rows, columns], values(spec)).unwrap(),
        ),
        _ => StoredWeight::Full(values(spec)),
    }
}

/// The schemes that a layout has a form for.
fn schemes(layout: Layout) -> Vec<Option<Scheme>> {
    Scheme::ALL.into_iter().filter(|scheme| Form::of(layout, *scheme).is_some()).map(Some).collect()
}

/// All matrices in the schemes in turn, norms in f32.
fn model(config: &ModelConfig, schemes: &[Option<Scheme>]) -> Vec<(WeightSpec, StoredWeight)> {
    let mut turn = schemes.iter().cycle();
    weights::specs(config)
        .into_iter()
        .map(|spec| {
            let scheme = if spec.kind == Kind::Norm { None } else { *turn.next().unwrap() };
            let weight = stored(&spec, scheme);
            (spec, weight)
        })
        .collect()
}

/// The codes of `weights` with other scales: `count(rows, columns)` of them, and zero points if `points` and the scheme can
/// have any.
fn rescaled(
    mut weights: Vec<(WeightSpec, StoredWeight)>,
    count: impl Fn(usize, usize) -> usize,
    points: bool,
) -> Vec<(WeightSpec, StoredWeight)> {
    for (_, weight) in &mut weights {
        if let StoredWeight::Packed(m) = weight {
            let shape = [m.rows(), m.columns()];
            let count = count(shape[0], shape[1]);
            let scales: Vec<f32> = (0..count).map(|i| 0.125 + i as f32 / 3.0).collect();
            let points =
                (points && m.scheme().table().is_none()).then(|| (0..count as i32).map(|i| i % 11 - 3).collect());
            *m = PackedMatrix::new(m.scheme(), shape, m.bytes().clone(), scales, points).unwrap();
        }
    }
    weights
}

/// The model [`wide`] in groups of 32 with scales of one format.
fn in_format(scales: ScaleFormat) -> Vec<(WeightSpec, StoredWeight)> {
    let mut weights = model(&wide(), &[Some(Scheme::Int4), Some(Scheme::Nf4), Some(Scheme::Ternary)]);
    for (spec, weight) in &mut weights {
        if let StoredWeight::Packed(m) = weight {
            let grouped = Quantizer::from(m.scheme()).with_granularity(Granularity::Group(32)).with_scales(scales);
            *m = PackedMatrix::quantize(&grouped, [m.rows(), m.columns()], values(spec)).unwrap();
        }
    }
    weights
}

/// Rewrites the NPZ with the array `key` replaced, or added.
fn replace_array(folder: &Path, key: &str, dtype: npz::Dtype, shape: &[usize], data: &[u8]) {
    let path = folder.join(WEIGHTS_FILE);
    let old = Npz::open(&path).unwrap();
    let mut new = npz::NpzWriter::new(std::io::Cursor::new(Vec::new()), &path);
    for other in old.keys().filter(|other| *other != key) {
        let array = old.array(other).unwrap();
        new.array(other, array.dtype, &array.shape, &array.data).unwrap();
    }
    new.array(key, dtype, shape, data).unwrap();
    let bytes = new.finish().unwrap().into_inner();
    drop(old);
    fs::write(&path, bytes).unwrap();
}

/// Writes an artifact where tests may have spoilt one, which would not be replaced.
fn write_model(
    folder: &Path,
    config: &ModelConfig,
    weights: &[(WeightSpec, StoredWeight)],
    layout: Layout,
) -> Result<()> {
    drop(fs::remove_dir_all(folder));
    replace_model(folder, config, weights, layout)
}

fn replace_model(
    folder: &Path,
    config: &ModelConfig,
    weights: &[(WeightSpec, StoredWeight)],
    layout: Layout,
) -> Result<()> {
    let weights = weights.iter().cloned().map(Ok);
    write(folder, config, weights, &tokenizer(11), layout, json!({ "command": "test" }))
}

fn assert_holds(folder: &Path, weights: &[(WeightSpec, StoredWeight)]) -> Artifact {
    let artifact = Artifact::open(folder).unwrap();
    for (spec, weight) in weights {
        let info = artifact.weights().find(|info| info.name == spec.name).unwrap();
        assert_eq!(artifact.weight(spec).unwrap(), *weight, "{}", spec.name);
        if let StoredWeight::Packed(matrix) = weight {
            let group_size = (matrix.groups() > 1).then(|| matrix.group_size());
            assert_eq!((info.bytes, info.group_size), (matrix.stored_bytes(), group_size), "{}", spec.name);
        }
    }
    artifact.verify().unwrap();
    artifact
}

fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(MANIFEST_FILE);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error is expected"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_scheme_survives_both_layouts() {
    let root = tempfile::tempdir().unwrap();
    for (layout, tied) in [(Layout::Packed, true), (Layout::V2, false)] {
        let mut plans: Vec<Vec<Option<Scheme>>> = schemes(layout).into_iter().map(|scheme| vec![scheme]).collect();
        plans.push(vec![None]);
        plans.push(schemes(layout).into_iter().chain([None]).collect());
        for plan in &plans {
            let folder = root.path().join("artifact");
            let config = config(tied);
            let weights = model(&config, plan);
            write_model(&folder, &config, &weights, layout).unwrap();
            let artifact = assert_holds(&folder, &weights);
            assert_eq!(artifact.config, config);
            assert_eq!(artifact.notes, Vec::<String>::new());
            assert_eq!(artifact.manifest["provenance"]["command"], "test");
            assert_eq!(artifact.tokenizer.as_ref().unwrap().get_vocab_size(true), 11);
            let plan: Vec<_> = artifact
                .weights()
                .map(|info| {
                    let (spec, _) = weights.iter().find(|(spec, _)| spec.name == info.name).unwrap();
                    let shape = || [spec.shape[0], spec.shape[1]];
                    (spec.clone(), info.scheme.map(|scheme| plain(scheme, shape())))
                })
                .collect();
            assert_eq!(artifact.size(), StoredSize::of(&plan));
        }
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "temporary folders are left");
}

#[test]
fn packed_codes_stay_in_the_map_and_are_aligned() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let weights = model(&config(true), &[Some(Scheme::Ternary)]);
    write_model(&folder, &config(true), &weights, Layout::Packed).unwrap();
    let artifact = Artifact::open(&folder).unwrap();
    for (spec, _) in weights {
        if let StoredWeight::Packed(matrix) = artifact.weight(&spec).unwrap() {
            let StoredWeight::Packed(again) = artifact.weight(&spec).unwrap() else { panic!() };
            assert_eq!(matrix.bytes().as_ptr(), again.bytes().as_ptr());
            assert_eq!(matrix.bytes().as_ptr() as usize % 64, 0);
        }
    }
}

#[test]
fn groups_survive_and_are_checked() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let grouped = |rows, columns| rows * columns / 32;
    for points in [false, true] {
        for scheme in Scheme::ALL {
            let weights = rescaled(model(&wide(), &[Some(scheme)]), grouped, points);
            write_model(&folder, &wide(), &weights, Layout::Packed).unwrap();
            let artifact = assert_holds(&folder, &weights);
            let manifest = &artifact.manifest;
            assert_eq!(manifest["quantization"]["scale"]["type"], "per-group");
            assert_eq!(manifest["weights"]["lm_head.weight"]["group_size"], 32);
        }
    }
    let weights = rescaled(model(&wide(), &[Some(Scheme::Int4)]), grouped, false);
    let older = message(write_model(&folder, &wide(), &model(&wide(), &[Some(Scheme::Seq2)]), Layout::V2));
    assert!(older.contains("the older tools have no form for seq2"), "{older}");
    for scheme in [Scheme::Nf4, Scheme::Iq4] {
        let older = message(write_model(&folder, &wide(), &model(&wide(), &[Some(scheme)]), Layout::V2));
        assert!(older.contains(&format!("the older tools have no form for {scheme}")), "{older}");
    }
    let older = message(write_model(&folder, &wide(), &weights, Layout::V2));
    assert!(older.contains("int4 with several scales a row cannot be written for the older tools"), "{older}");

    let refused = |shape: &[usize]| {
        write_model(&folder, &wide(), &weights, Layout::Packed).unwrap();
        let data = vec![0; shape.iter().product::<usize>() * 4];
        replace_array(&folder, "lm_head.weight_scales", npz::Dtype::F32, shape, &data);
        message(Artifact::open(&folder))
    };
    assert!(refused(&[11, 4]).contains("4 scales a row of 64 are no groups of a multiple of 32"));
    assert!(refused(&[11, 0]).contains("0 scales a row"));
    assert!(refused(&[12, 2]).contains("[12, 2] of <f4 found, [11, 2] of <f4 expected"));
    assert!(refused(&[22]).contains("[22] of <f4 found, [11] of <f4 expected"));
    assert!(refused(&[11, 1]).contains("groups of 64 columns found, 32 expected"));
    // Where nothing says otherwise, the second dimension of one is no group.
    let rows = |rows, _| rows;
    let weights = rescaled(weights, rows, false);
    write_model(&folder, &wide(), &weights, Layout::Packed).unwrap();
    let scales: Vec<u8> = (0..11).flat_map(|i| (0.125 + i as f32 / 3.0).to_le_bytes()).collect();
    replace_array(&folder, "lm_head.weight_scales", npz::Dtype::F32, &[11, 1], &scales);
    let artifact = assert_holds(&folder, &weights);
    assert_eq!(artifact.manifest["quantization"]["scale"]["type"], "per-row");
    assert!(artifact.manifest["weights"]["lm_head.weight"].get("group_size").is_none());
}

#[test]
fn scales_of_every_format_survive_and_are_checked() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    for (scales, name) in [(ScaleFormat::F32, "float32"), (ScaleFormat::F16, "float16"), (ScaleFormat::Double, "int8")]
    {
        let weights = in_format(scales);
        write_model(&folder, &wide(), &weights, Layout::Packed).unwrap();
        let artifact = assert_holds(&folder, &weights);
        assert_eq!(artifact.manifest["quantization"]["scale"]["dtype"], name);
        assert_eq!(artifact.manifest["weights"]["lm_head.weight"]["scale_dtype"], name);
        assert!(artifact.weights().all(|info| info.scales == info.scheme.map(|_| scales)));
    }
    // 11 rows of two groups.
    let refused = |key: &str, dtype: npz::Dtype, shape: &[usize], data: &[u8]| {
        write_model(&folder, &wide(), &in_format(ScaleFormat::Double), Layout::Packed).unwrap();
        replace_array(&folder, &format!("lm_head.weight_scales{key}"), dtype, shape, data);
        let spec = weights::specs(&wide()).pop().unwrap();
        message(Artifact::open(&folder).and_then(|artifact| artifact.weight(&spec)))
    };
    let of = |number: f32| number.to_le_bytes();
    assert!(refused("_steps", npz::Dtype::F32, &[2], &[0; 8]).contains("[2] of <f4 found, [1] of <f4 expected"));
    assert!(refused("_mean", npz::Dtype::F32, &[0], &[]).contains("[0] of <f4 found"));
    assert!(
        refused("_mean", npz::Dtype::F32, &[1], &of(f32::NAN)).contains("lm_head.weight_scales: holds NaN at [0, 0]")
    );
    assert!(refused("_steps", npz::Dtype::F32, &[1], &of(f32::INFINITY)).contains("lm_head.weight_scales: holds "));
    assert!(refused("", npz::Dtype::I8, &[11, 3], &[0; 33]).contains("3 scales a row of 64 are no groups"));
    assert!(refused("", npz::Dtype::I32, &[11, 2], &[0; 88]).contains("[11, 2] of <i4 found"));
    assert!(refused("", npz::Dtype::F16, &[11, 2], &[0xff; 44]).contains("lm_head.weight_scales: holds NaN at [0, 0]"));
}

#[test]
fn blocks_of_ggml_survive_and_are_checked() {
    let config = ModelConfig { hidden_size: 256, intermediate_size: 512, num_attention_heads: 16, ..wide() };
    let folder = tempfile::tempdir().unwrap();
    for name in ["gguf:q4_1", "gguf:q3_k", "gguf:q4_k"] {
        let quantizer = bitllama_core::Target::named(name).unwrap().quantizers[0];
        let of = |spec: &WeightSpec| match spec.shape[..] {
            [rows, columns] => RoundedMatrix::quantize(&quantizer, [rows, columns], values(spec), None).unwrap().into(),
            _ => StoredWeight::Full(values(spec)),
        };
        let path = folder.path().join(name.replace(':', "-"));
        let weights = weights::specs(&config).into_iter().map(|spec| Ok((spec.clone(), of(&spec))));
        write(&path, &config, weights, &tokenizer(11), Layout::Packed, Value::Null).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        artifact.verify().unwrap();
        for spec in weights::specs(&config) {
            assert!(artifact.weight(&spec).unwrap() == of(&spec), "{name} {}", spec.name);
        }
        let info = artifact.weights().find(|info| info.name == "layers.0.mlp.down_proj.weight").unwrap();
        let ggml_type = name.trim_start_matches("gguf:").to_ascii_uppercase();
        assert_eq!(info.ggml_type, Some(&*ggml_type));
        // As many bytes as the plan says.
        let plan: Vec<_> = weights::specs(&config)
            .into_iter()
            .map(|spec| (spec.clone(), (!spec.kind.is_vector()).then_some(quantizer)))
            .collect();
        assert_eq!(artifact.size(), StoredSize::of(&plan), "{name}");
        // Another type in the manifest is refused: its rows take other bytes.
        let manifest = path.join(MANIFEST_FILE);
        let text = fs::read_to_string(&manifest)
            .unwrap()
            .replace(&format!("\"ggml_type\": \"{ggml_type}\""), "\"ggml_type\": \"Q5_0\"");
        fs::write(&manifest, text).unwrap();
        let error = Artifact::open(&path).err().unwrap().to_string();
        assert!(error.contains("_ggml"), "{error}");
    }
}

#[test]
fn v2_writes_f16_scales_in_f32() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let halves = Quantizer::from(Scheme::Int4).with_scales(ScaleFormat::F16);
    let mut weights = model(&config(true), &[Some(Scheme::Int4)]);
    for (spec, weight) in &mut weights {
        if let StoredWeight::Packed(m) = weight {
            *m = PackedMatrix::quantize(&halves, [m.rows(), m.columns()], values(spec)).unwrap();
        }
    }
    write_model(&folder, &config(true), &weights, Layout::V2).unwrap();
    let artifact = Artifact::open(&folder).unwrap();
    assert_eq!(artifact.manifest["quantization"]["scale"]["dtype"], "float32");
    for (spec, weight) in &weights {
        let (StoredWeight::Packed(weight), StoredWeight::Packed(found)) = (weight, artifact.weight(spec).unwrap())
        else {
            continue;
        };
        assert_eq!(found.dequantize(), weight.dequantize());
        let info = artifact.weights().find(|info| info.name == spec.name).unwrap();
        assert_eq!(info.bytes, found.stored_bytes());
    }
    assert_eq!(artifact.manifest["quantization"]["bytes"], artifact.size().bytes);
}

#[test]
fn both_layouts_hold_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    let (packed, v2) = (root.path().join("packed"), root.path().join("v2"));
    for config in [config(true), wide()] {
        let weights = model(&config, &schemes(Layout::V2));
        write_model(&packed, &config, &weights, Layout::Packed).unwrap();
        write_model(&v2, &config, &weights, Layout::V2).unwrap();
        let (packed, v2) = (assert_holds(&packed, &weights), assert_holds(&v2, &weights));
        assert!(packed.weights().eq(v2.weights()));
    }
}

#[test]
fn weights_are_handed_out_unread_and_verified_on_request() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let damaged = |scheme: Scheme, suffix: &str, shape: [usize; 3], at: usize, byte: u8| {
        write_model(&folder, &config(true), &model(&config(true), &[Some(scheme)]), Layout::Packed).unwrap();
        let key = format!("transformer.layers.1.mlp.up_proj.weight{suffix}");
        let mut data = vec![0; shape.iter().product()];
        data[at] = byte;
        replace_array(&folder, &key, npz::Dtype::U8, &shape, &data);
        let artifact = Artifact::open(&folder).unwrap();
        for spec in weights::specs(&artifact.config) {
            artifact.weight(&spec).unwrap();
        }
        let found = message(artifact.verify());
        assert!(found.contains(&key), "{found}");
        found
    };
    // 19 x 13: the second panel has three rows, the block of 16 columns three too many.
    let three = damaged(Scheme::Ternary, "_ternary_panels", [2, 1, 64], 64 + 4 * 2, 3);
    assert!(three.contains("row 18 holds the value 3"), "{three}");
    let rows = damaged(Scheme::Ternary, "_ternary_panels", [2, 1, 64], 64 + 4 * 3, 1);
    assert!(rows.contains("spare rows after row 18"), "{rows}");
    let columns = damaged(Scheme::Int2, "_q2_panels", [2, 1, 64], 4 * 5 + 1, 0x40);
    assert!(columns.contains("spare columns of row 5"), "{columns}");
}

#[test]
fn loose_files_alone_are_enough_for_v2() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let config = config(false);
    let weights = model(&config, &schemes(Layout::V2));
    write_model(&folder, &config, &weights, Layout::V2).unwrap();
    fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap();
    assert_holds(&folder, &weights);
    // Without .npy scales those of the text files serve, digit for digit.
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with("scales.npy") {
            fs::remove_file(path).unwrap();
        }
    }
    assert_holds(&folder, &weights);
}

#[test]
fn a_lone_npz_reads_with_what_it_says() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let config = config(false);
    let weights = model(&config, &[Some(Scheme::Binary), Some(Scheme::Ternary), Some(Scheme::Int3)]);
    write_model(&folder, &config, &weights, Layout::V2).unwrap();
    let artifact = Artifact::open(&folder.join(WEIGHTS_FILE)).unwrap();
    assert_eq!(artifact.config.num_hidden_layers, 2);
    assert_eq!(artifact.config.rope_theta, 12345.5);
    assert!(!artifact.config.tie_word_embeddings);
    assert_eq!(artifact.notes.len(), 2, "{:?}", artifact.notes);
    for (spec, weight) in &weights {
        match (artifact.weight(spec).unwrap(), weight) {
            // Without a manifest three bits read as four, with the same weights.
            (StoredWeight::Packed(found), StoredWeight::Packed(written)) => {
                assert_eq!(found.dequantize(), written.dequantize(), "{}", spec.name);
            }
            (found, written) => assert_eq!(found, *written),
        }
    }
}

#[test]
fn zero_points_survive_where_the_layout_has_room_for_them() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let with_points = |scheme| rescaled(model(&config(true), &[Some(scheme)]), |rows, _| rows, true);
    for layout in [Layout::Packed, Layout::V2] {
        let weights = with_points(Scheme::Int4);
        write_model(&folder, &config(true), &weights, layout).unwrap();
        let artifact = assert_holds(&folder, &weights);
        let rows: usize = artifact.weights().filter(|w| w.scheme.is_some()).map(|w| w.shape[0]).sum();
        let symmetric = model(&config(true), &[Some(Scheme::Int4)]);
        let bytes = artifact.size().bytes;
        write_model(&folder, &config(true), &symmetric, layout).unwrap();
        assert_eq!(bytes - Artifact::open(&folder).unwrap().size().bytes, 4 * rows);
    }
    write_model(&folder, &config(true), &with_points(Scheme::Ternary), Layout::Packed).unwrap();
    let refused = message(write_model(&folder, &config(true), &with_points(Scheme::Ternary), Layout::V2));
    assert!(refused.contains("zero points"), "{refused}");
}

#[test]
fn only_the_weights_of_the_architecture_are_written() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let config = config(true);
    let weights = model(&config, &[Some(Scheme::Int8)]);
    let refused = |weights: &[(WeightSpec, StoredWeight)]| {
        let text = message(write_model(&folder, &config, weights, Layout::Packed));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        text
    };
    assert!(refused(&weights[1..]).contains("embed_tokens.weight is missing"));
    let twice = [&weights[..], &weights[..1]].concat();
    assert!(refused(&twice).contains("embed_tokens.weight is given twice"));
    let mut other = weights.clone();
    other[0].0.name = "other".into();
    assert!(refused(&other).contains("other is no weight of this architecture"));
    let mut other = weights.clone();
    other[1].1 = StoredWeight::Full(vec![1.0; 12]);
    assert!(refused(&other).contains("has the shape [12], [13] is expected"));
    let failing = weights.iter().cloned().map(Ok).take(3).chain([Err(Error::invalid("teacher", "cut off"))]);
    let failed = write(&folder, &config, failing, &tokenizer(11), Layout::Packed, Value::Null);
    assert_eq!(message(failed), "teacher: cut off");
    assert!(!folder.exists());
}

#[test]
fn how_activations_were_rounded_survives() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let config = config(true);
    let linear = weights::specs(&config).into_iter().filter(|spec| spec.kind == Kind::Linear);
    let signs = linear.map(|spec| (spec.name, Activation::Sign)).collect();
    let binary = model(&config, &[Some(Scheme::Binary)]);
    let write = |plan: &ActivationPlan| {
        let weights = binary.iter().cloned().map(Ok);
        write_trained(&folder, &config, weights, plan, &tokenizer(11), Layout::Packed, json!({})).unwrap();
        let artifact = Artifact::open(&folder).unwrap();
        assert_eq!(artifact.activations, *plan);
        artifact.manifest["quantization"].clone()
    };
    let about = write(&ActivationPlan::default());
    assert_eq!((&about["activation_dtype"], &about["kv_cache_dtype"]), (&json!("float32"), &json!("float32")));
    let mut plan = ActivationPlan { inputs: signs, kv_cache: Some(Activation::Int4) };
    let about = write(&plan);
    assert_eq!((&about["activation_dtype"], &about["kv_cache_dtype"]), (&json!("sign"), &json!("int4")));
    plan.inputs.pop_last();
    assert_eq!(write(&plan)["activation_dtype"], "mixed");

    let entry = "transformer.layers.0.self_attn.q_proj.weight";
    edit_manifest(&folder, |manifest| manifest["weights"][entry]["activation_dtype"] = json!("int5"));
    let error = message(Artifact::open(&folder));
    assert!(error.contains(entry) && error.contains("`int5`") && !error.contains('\n'), "{error}");
    edit_manifest(&folder, |manifest| {
        manifest["weights"][entry]["activation_dtype"] = json!("int8");
        manifest["quantization"]["kv_cache_dtype"] = json!("sign");
    });
    assert!(message(Artifact::open(&folder)).contains("kv_cache_dtype"));
}

#[test]
fn sub_norms_survive_and_are_no_matter_for_the_older_tools() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let config = ModelConfig { sub_norm: true, ..config(true) };
    let weights = model(&config, &[Some(Scheme::Ternary)]);
    write_model(&folder, &config, &weights, Layout::Packed).unwrap();
    let artifact = assert_holds(&folder, &weights);
    assert!(artifact.config.sub_norm && artifact.manifest["architecture"]["sub_norm"] == true);
    let entry = &artifact.manifest["weights"]["transformer.layers.0.mlp.ffn_sub_norm.weight"];
    assert_eq!(entry["shape"], json!([config.intermediate_size]));
    assert!(message(replace_model(&folder, &config, &weights, Layout::V2)).contains("no place for sub-norms"));
    // A manifest of before has no such field, and one without the whole config goes by the weights that are there.
    edit_manifest(&folder, |manifest| drop(manifest.as_object_mut().unwrap().remove("model_config")));
    assert!(Artifact::open(&folder).unwrap().config.sub_norm);
    let plain = ModelConfig { sub_norm: false, ..config };
    write_model(&folder, &plain, &model(&plain, &[None]), Layout::Packed).unwrap();
    assert!(Artifact::open(&folder).unwrap().manifest["model_config"].get("sub_norm").is_none());
}

/// Writes artifacts of every scheme with the weights they stand for beside them, for `tests/python/check_npz.py`:
/// `BITLLAMA_CHECK_DIR=FOLDER cargo test -p bitllama-formats writes_for_the_python_checker -- --ignored`.
#[test]
#[ignore = "writes files for another program"]
fn writes_for_the_python_checker() {
    let root = std::env::var_os("BITLLAMA_CHECK_DIR").expect("BITLLAMA_CHECK_DIR names a folder");
    let all = |layout, config: &ModelConfig| model(config, &schemes(layout));
    let grouped = |points| rescaled(all(Layout::Packed, &wide()), |rows, columns| rows * columns / 32, points);
    let artifacts = [
        ("packed", Layout::Packed, config(false), all(Layout::Packed, &config(false))),
        ("v2", Layout::V2, config(false), all(Layout::V2, &config(false))),
        ("grouped", Layout::Packed, wide(), grouped(false)),
        ("grouped_zero_points", Layout::Packed, wide(), grouped(true)),
        ("f16_scales", Layout::Packed, wide(), in_format(ScaleFormat::F16)),
        ("double_quantized", Layout::Packed, wide(), in_format(ScaleFormat::Double)),
    ];
    for (name, layout, config, weights) in artifacts {
        let folder = Path::new(&root).join(name);
        write_model(&folder, &config, &weights, layout).unwrap();
        let dense: HashMap<String, (Vec<usize>, Vec<f32>)> = weights
            .into_iter()
            .map(|(spec, weight)| match weight {
                StoredWeight::Packed(matrix) => (spec.name, (spec.shape, matrix.dequantize().data)),
                StoredWeight::Full(values) => (spec.name, (spec.shape, values)),
                StoredWeight::Rows(_) => unreachable!("artifacts have none"),
            })
            .collect();
        let views = dense.iter().map(|(name, (shape, data))| {
            let bytes = bytemuck::cast_slice(data);
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let file = Path::new(&root).join(format!("{name}.safetensors"));
        safetensors::serialize_to_file(views, None, &file).unwrap();
    }
}
