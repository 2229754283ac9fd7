//! Manifests of the older tools, which say some things twice and others not at all.

use super::*;
use crate::npz::Dtype;

const UP: &str = "layers.0.mlp.up_proj.weight";
const KEY: &str = "transformer.layers.0.mlp.up_proj.weight";
const ROWS: usize = 19;
const COLUMNS: usize = 13;
/// Fields of an entry that the older tools do not write.
const OURS: [&str; 4] = ["npz_key", "scheme", "code_min", "code_step"];

/// An artifact as the older tools write it: without our fields, all matrices in `scheme`.
fn older(folder: &Path, scheme: Scheme) {
    write_model(folder, &config(false), &model(&config(false), &[Some(scheme)]), Layout::V2).unwrap();
    edit_manifest(folder, |manifest| {
        let weights = manifest["weights"].as_object_mut().unwrap();
        for entry in weights.values_mut() {
            entry.as_object_mut().unwrap().retain(|key, _| !OURS.contains(&key.as_str()));
        }
        manifest.as_object_mut().unwrap().retain(|key, _| !key.ends_with(".weight") && key != "model_config");
        let rope = json!({ "base_theta": 12345.5, "scale": 1.0 });
        manifest["architecture"]["rope"] = rope;
    });
}

fn up(folder: &Path) -> Result<StoredWeight> {
    let spec = weights::specs(&config(false)).into_iter().find(|spec| spec.name == UP).unwrap();
    Artifact::open(folder)?.weight(&spec)
}

fn scheme_of(weight: StoredWeight) -> Option<Scheme> {
    match weight {
        StoredWeight::Packed(matrix) => Some(matrix.scheme()),
        _ => None,
    }
}

/// Adds integers of a width to the NPZ, and what the manifest says of them if `named`.
fn add_integers(folder: &Path, bits: u32, named: bool) {
    let scales: Vec<u8> = [0.5f32; ROWS].iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let points: Vec<u8> = [3i32; ROWS].iter().flat_map(|point| point.to_le_bytes()).collect();
    let parts: [(&str, Dtype, &[usize], &[u8]); 3] = [
        ("", Dtype::U8, &[ROWS, COLUMNS], &[1; ROWS * COLUMNS]),
        ("_scales", Dtype::F32, &[ROWS], &scales),
        ("_zero_point", Dtype::I32, &[ROWS], &points),
    ];
    for (suffix, dtype, shape, data) in parts {
        let key = format!("{KEY}_q{bits}{suffix}");
        replace_array(folder, &key, dtype, shape, data);
        fs::write(folder.join(format!("{key}.npy")), [npz::header(dtype, shape), data.to_vec()].concat()).unwrap();
    }
    if named {
        edit_manifest(folder, |manifest| {
            let entry = &mut manifest["weights"][KEY];
            entry["bit_width"] = json!(bits);
            for (field, suffix) in [("q", ""), ("q_scales", "_scales"), ("q_zero_point", "_zero_point")] {
                entry[field] = json!(format!("{KEY}_q{bits}{suffix}.npy"));
            }
        });
    }
}

/// The codes that [`add_integers`] adds.
fn assert_integers(folder: &Path, scheme: Scheme) {
    match up(folder).unwrap() {
        StoredWeight::Packed(matrix) => {
            assert_eq!(matrix.scheme(), scheme);
            assert!(matrix.dequantize().data.iter().all(|value| *value == -1.0));
        }
        _ => panic!("it is packed"),
    }
}

#[test]
fn integers_are_meant_where_signs_stand_beside_them() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    older(&folder, Scheme::Binary);
    assert_eq!(scheme_of(up(&folder).unwrap()), Some(Scheme::Binary));
    // In the NPZ alone, whatever the entry says of the signs; then in the entry too; then in loose files alone.
    add_integers(&folder, 4, false);
    assert_integers(&folder, Scheme::Int4);
    add_integers(&folder, 4, true);
    assert_integers(&folder, Scheme::Int4);
    edit_manifest(&folder, |manifest| manifest["weights"][KEY]["bit_width"] = json!(1));
    assert_integers(&folder, Scheme::Int4);
    fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap();
    assert_integers(&folder, Scheme::Int4);
    fs::remove_file(folder.join(format!("{KEY}_q4.npy"))).unwrap();
    let lost = message(up(&folder));
    assert!(
        lost.ends_with(&format!("{KEY}: the file {KEY}_q4.npy that the manifest names as q is not there")),
        "{lost}"
    );

    // A lone archive.
    older(&folder, Scheme::Binary);
    add_integers(&folder, 8, false);
    assert_integers(&folder.join(WEIGHTS_FILE), Scheme::Int8);
}

#[test]
fn of_several_widths_the_manifest_says_which_is_meant() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    older(&folder, Scheme::Binary);
    [2, 4, 8].iter().for_each(|bits| add_integers(&folder, *bits, false));
    let refused = message(up(&folder));
    let expected = format!("{KEY}_q2 and {KEY}_q4 are there, and no bit_width says which is meant");
    assert!(refused.ends_with(&expected), "{refused}");
    edit_manifest(&folder, |manifest| manifest["quantization"]["bit_width"] = json!(8));
    assert_integers(&folder, Scheme::Int8);
    edit_manifest(&folder, |manifest| manifest["weights"][KEY]["bit_width"] = json!(4));
    assert_integers(&folder, Scheme::Int4);
}

#[test]
fn signs_that_a_manifest_calls_integers_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    older(&folder, Scheme::Binary);
    edit_manifest(&folder, |manifest| manifest["weights"][KEY]["bit_width"] = json!(4));
    let refused = message(up(&folder));
    assert!(refused.ends_with("_1bit: only signs are there, but the manifest says bit_width 4"), "{refused}");
}

#[test]
fn architectures_that_are_not_known_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    older(&folder, Scheme::Int4);
    Artifact::open(&folder).unwrap();
    let whole = fs::read(folder.join(MANIFEST_FILE)).unwrap();
    let with = |place: &str, value: Value| {
        fs::write(folder.join(MANIFEST_FILE), &whole).unwrap();
        edit_manifest(&folder, |manifest| *manifest.pointer_mut(place).unwrap() = value);
        Artifact::open(&folder)
    };
    let cases = [
        ("/model/primary_family", json!("gemma"), "model.primary_family = \"gemma\" is not supported"),
        ("/architecture/activation", json!("geglu"), "architecture.activation = \"geglu\" is not supported"),
        ("/architecture/norm", json!("layernorm"), "architecture.norm = \"layernorm\" is not supported"),
        ("/architecture/attention/variant", json!("alibi"), "architecture.attention.variant = \"alibi\""),
        ("/architecture/attention/variant", json!("sliding-window"), "window_size = null is not supported"),
        ("/architecture/attention/window_size", json!(76), "window_size = 76 is not supported"),
        (
            "/architecture/rope",
            json!({"type": "yarn", "scale": 4.0}),
            "architecture.rope.type = \"yarn\" is not supported",
        ),
        ("/architecture/rope", json!({"type": 1}), "architecture.rope.type = 1 is not supported"),
        ("/architecture/rope", json!({"type": "default", "scale": 4.0}), "architecture.rope.scale = 4.0 does not fit"),
        ("/architecture/rope", json!({"type": "linear"}), "architecture.rope.type = \"linear\" has no factor"),
        (
            "/architecture/rope",
            json!({"type": "linear", "scale": 2.0, "factor": 4.0}),
            "scale = 2.0 and factor disagree",
        ),
        ("/architecture/rope", json!({"type": "linear", "rope_type": "llama3"}), "and rope_type disagree"),
        ("/architecture/rope", json!({"factor": 4.0}), "architecture.rope.factor = 4.0 has no type"),
        ("/architecture/rope", json!({"beta_fast": 32}), "architecture.rope.beta_fast = 32 is not known"),
        ("/architecture/rope", json!("linear"), "architecture.rope is not an object"),
    ];
    for (place, value, expected) in cases {
        let refused = message(with(place, value));
        assert!(refused.contains(expected) && refused.contains(MANIFEST_FILE), "{place}: {refused}");
    }
    // A window over the whole context is none.
    let artifact = with(
        "/architecture/attention",
        json!({"variant": "sliding-window", "num_heads": 6, "window_size": 77, "head_dim": 2}),
    );
    artifact.unwrap();
    let scaling = |rope: Value| with("/architecture/rope", rope).unwrap().config.rope_scaling;
    let linear = Some(RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(json!({"base_theta": 1e4, "scale": 4.0})), linear);
    assert_eq!(scaling(json!({"type": "linear", "factor": 4.0, "scale": 1.0})), linear);
    assert_eq!(scaling(json!({"type": "default", "scale": 1.0})), None);
    let llama3 = json!({"type": "llama3", "base_theta": 1e4, "scale": 1.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    assert_eq!(scaling(llama3), config(false).rope_scaling);
}

#[test]
fn what_a_manifest_leaves_out_is_noted() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    older(&folder, Scheme::Int4);
    assert_eq!(Artifact::open(&folder).unwrap().notes, Vec::<String>::new());
    edit_manifest(&folder, |manifest| {
        manifest["model"] = json!({});
        let architecture = manifest["architecture"].as_object_mut().unwrap();
        architecture.retain(|field, _| !["activation", "rms_norm_eps"].contains(&field.as_str()));
    });
    let notes = Artifact::open(&folder).unwrap().notes;
    let expected = [
        "the manifest does not tell model.primary_family; llama is assumed",
        "the manifest does not tell architecture.activation; swiglu is assumed",
        "the manifest does not tell rms_norm_eps; 0.00001 is assumed",
    ];
    assert_eq!(notes, expected);
}

#[test]
fn the_older_layout_has_what_all_older_tools_read() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let weights = model(&config(false), &[Some(Scheme::Ternary)]);
    write_model(&folder, &config(false), &weights, Layout::V2).unwrap();
    let artifact = assert_holds(&folder, &weights);
    let entries = artifact.manifest["weights"].as_object().unwrap();
    for (name, entry) in entries {
        let shape = entry.get("shape").and_then(Value::as_array).map(Vec::len);
        assert_eq!(shape, (!name.contains("norm")).then_some(2), "{name}");
    }
    // Ternary as two-bit integers: the codes -1, 0, 1 are 0, 1, 2 with a zero point of 1.
    let (npz, StoredWeight::Packed(matrix)) = (Npz::open(&folder.join(WEIGHTS_FILE)).unwrap(), up(&folder).unwrap())
    else {
        panic!("it is packed")
    };
    let codes = npz.array(&format!("{KEY}_ternary")).unwrap().to_i64().unwrap();
    let fields = npz.array(&format!("{KEY}_q2")).unwrap().to_i64().unwrap();
    assert_eq!(codes.iter().map(|code| code + 1).collect::<Vec<_>>(), fields);
    assert_eq!(npz.array(&format!("{KEY}_q2_zero_point")).unwrap().to_i64().unwrap(), [1; ROWS]);
    assert_eq!(npz.array(&format!("{KEY}_q2_scales")).unwrap().to_f32().unwrap(), matrix.scales());
    let entry = &entries[KEY];
    assert_eq!((&entry["bit_width"], &entry["q"]), (&json!(2), &json!(format!("{KEY}_q2.npy"))));
    for field in ["q", "q_scales", "q_scales_txt", "q_zero_point", "ternary", "scales", "scales_txt"] {
        assert!(folder.join(entry[field].as_str().unwrap()).is_file(), "{field}");
    }
    // A tool that knows no ternary finds the same weights.
    edit_manifest(&folder, |manifest| {
        let entry = manifest["weights"][KEY].as_object_mut().unwrap();
        entry.retain(|field, _| !["npz_key", "ternary"].contains(&field.as_str()));
    });
    match up(&folder).unwrap() {
        StoredWeight::Packed(two_bit) => {
            assert_eq!(two_bit.scheme(), Scheme::Int2);
            assert_eq!(two_bit.dequantize(), matrix.dequantize());
        }
        _ => panic!("it is packed"),
    }
}

#[test]
fn values_and_scales_that_are_not_finite_are_neither_written_nor_read() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let good = model(&config(true), &[Some(Scheme::Int4), None]);
    let (packed, full) = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight");
    for (name, expected) in [(packed, "the matrix of scales holds inf at [3, 0]"), (full, "holds inf at [0, 3]")] {
        let mut weights = good.clone();
        match &mut weights.iter_mut().find(|(spec, _)| spec.name == name).unwrap().1 {
            StoredWeight::Full(values) => values[3] = f32::INFINITY,
            StoredWeight::Rows(_) => unreachable!("artifacts have none"),
            StoredWeight::Packed(m) => {
                let mut scales = m.scales().to_vec();
                scales[3] = f32::INFINITY;
                *m = PackedMatrix::new(m.scheme(), [m.rows(), m.columns()], m.bytes().clone(), scales, None).unwrap();
            }
        }
        let refused = message(write_model(&folder, &config(true), &weights, Layout::Packed));
        assert!(refused.contains(name) && refused.contains(expected), "{refused}");
    }
    write_model(&folder, &config(true), &good, Layout::Packed).unwrap();
    let nan = f32::NAN.to_le_bytes().repeat(13);
    replace_array(&folder, "norm.weight_fp32", Dtype::F32, &[13], &nan);
    let spec = weights::specs(&config(true)).pop().unwrap();
    let refused = message(Artifact::open(&folder).unwrap().weight(&spec));
    assert!(
        refused.ends_with("weights.npz: norm.weight_fp32: holds NaN at [0]; every value must be finite"),
        "{refused}"
    );
}
