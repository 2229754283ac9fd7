//! What must be refused, and how it is said.

use super::*;

#[test]
fn row_major_packing_is_refused_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    for suffix in forms::ROW_MAJOR {
        write_model(&folder, &config(true), &model(&config(true), &[None]), Layout::Packed).unwrap();
        let key = format!("transformer.layers.0.mlp.up_proj.weight{suffix}");
        replace_array(&folder, &key, npz::Dtype::U8, &[19, 4], &[0; 19 * 4]);
        let refused = message(Artifact::open(&folder));
        let advice = "written by an earlier version in row-major packing; export the run again";
        assert!(refused.ends_with(&format!("{key}: {advice}")), "{refused}");
    }
}

#[test]
fn only_artifacts_are_replaced() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("home");
    fs::create_dir(&folder).unwrap();
    let weights = model(&config(true), &[None]);
    replace_model(&folder, &config(true), &weights, Layout::Packed).unwrap();
    replace_model(&folder, &config(true), &weights, Layout::V2).unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    let refused = message(replace_model(&folder, &config(true), &weights, Layout::Packed));
    assert!(refused.contains("notes.txt"), "{refused}");
    assert!(folder.join(WEIGHTS_FILE).exists());
}

#[test]
fn damaged_manifests_are_refused_with_a_reason() {
    let root = tempfile::tempdir().unwrap();
    let config = config(true);
    let weights = model(&config, &[Some(Scheme::Int2)]);
    let refused = |layout, edit: fn(&mut Value)| {
        let folder = root.path().join("artifact");
        write_model(&folder, &config, &weights, layout).unwrap();
        edit_manifest(&folder, edit);
        message(Artifact::open(&folder))
    };
    let outside = refused(Layout::Packed, |m| m["model"]["source_npz"] = json!("../weights.npz"));
    assert!(outside.contains("`../weights.npz` leads out of the folder"), "{outside}");
    let outside = refused(Layout::Packed, |m| m["model"]["source_npz"] = json!("/etc/passwd"));
    assert!(outside.contains("leads out"), "{outside}");
    let outside = refused(Layout::V2, |m| {
        m["model"]["source_npz"] = json!("none.npz");
        m["weights"]["embedding.weight"]["q"] = json!("a/../../b.npy");
    });
    assert!(outside.contains("leads out"), "{outside}");
    let gone = refused(Layout::Packed, |m| m["model"]["source_npz"] = json!("none.npz"));
    assert!(gone.contains("embedding.weight is not there"), "{gone}");
    let shape = refused(Layout::Packed, |m| m["model_config"]["vocab_size"] = json!(12));
    assert!(shape.contains("embedding.weight has the shape [11,13], [12, 13] is expected"), "{shape}");
    let layers = refused(Layout::Packed, |m| m["model_config"]["num_hidden_layers"] = json!(4_000));
    assert!(layers.contains("4000 layers"), "{layers}");
    let field = refused(Layout::Packed, |m| m["model_config"]["head_dim"] = json!("two"));
    assert!(field.contains("model_config"), "{field}");
    let bias = refused(Layout::Packed, |m| m["weights"]["transformer.layers.0.self_attn.q_proj.bias"] = json!({}));
    assert!(bias.contains("bias"), "{bias}");
}

#[test]
fn arrays_of_the_wrong_kind_are_named_with_what_was_expected() {
    use crate::npz::Dtype;
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let weights = model(&config(true), &[Some(Scheme::Ternary)]);
    let refused = |key: &str, dtype: Dtype, shape: &[usize], fill: u8| {
        write_model(&folder, &config(true), &weights, Layout::Packed).unwrap();
        replace_array(&folder, key, dtype, shape, &vec![fill; shape.iter().product::<usize>() * dtype.size()]);
        match Artifact::open(&folder) {
            Err(e) => e.to_string(),
            Ok(artifact) => weights
                .iter()
                .find_map(|(spec, _)| artifact.weight(spec).err())
                .expect("an error is expected")
                .to_string(),
        }
    };
    let key = "transformer.layers.1.mlp.up_proj.weight_ternary_panels";
    let shape = refused(key, Dtype::U8, &[1, 2, 64], 0);
    assert!(shape.contains(WEIGHTS_FILE) && shape.contains(key), "{shape}");
    assert!(shape.contains("[1, 2, 64] of |u1 found, [2, 1, 64] of |u1 expected"), "{shape}");
    let dtype = refused(key, Dtype::I8, &[2, 1, 64], 0);
    assert!(dtype.contains("[2, 1, 64] of |i1 found"), "{dtype}");
    let scales = refused("transformer.layers.1.mlp.up_proj.weight_scales", Dtype::F32, &[18], 0);
    assert!(scales.contains("[18] of <f4 found, [19] of <f4 expected"), "{scales}");
    let points = refused("transformer.layers.1.mlp.up_proj.weight_zero_point", Dtype::I32, &[18], 0);
    assert!(points.contains("18 zero points for 19 scales"), "{points}");
    let scales = refused("transformer.layers.1.mlp.up_proj.weight_scales", Dtype::F32, &[19], 0xff);
    assert!(scales.contains("up_proj.weight_scales: holds NaN at [0, 0]"), "{scales}");
    let axis = refused("transformer.layers.1.mlp.up_proj.weight_pc_axis", Dtype::I32, &[], 1);
    assert!(axis.contains("[0] expected"), "{axis}");
    let norm = refused("norm.weight_fp32", Dtype::I32, &[13], 0);
    assert!(norm.contains("[13] of <i4 found, [13] of <f4 expected"), "{norm}");
}

#[test]
fn no_damage_brings_the_reader_down() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let read = || -> Result<()> {
        let artifact = Artifact::open(&folder)?;
        for spec in weights::specs(&artifact.config) {
            artifact.weight(&spec)?;
        }
        artifact.size();
        drop(artifact.verify());
        Ok(())
    };
    for layout in [Layout::Packed, Layout::V2] {
        write_model(&folder, &config(true), &model(&config(true), &schemes(layout)), layout).unwrap();
        for file in [WEIGHTS_FILE, MANIFEST_FILE, TOKENIZER_FILE] {
            let path = folder.join(file);
            let whole = fs::read(&path).unwrap();
            let mut random = 1u64;
            for _ in 0..50 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (position, flip) = ((random >> 33) as usize % whole.len(), (random >> 25) as u8 | 1);
                let mut damaged = whole.clone();
                damaged[position] ^= flip;
                fs::write(&path, damaged).unwrap();
                // Some damage cannot be told from other weights; what counts is that this returns.
                drop(read());
                fs::write(&path, &whole[..position]).unwrap();
                assert!(read().is_err(), "{file} cut off at {position}");
            }
            fs::write(&path, whole).unwrap();
        }
        read().unwrap();
    }
}
