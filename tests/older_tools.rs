//! The older tools: archives in the layout of each of their exporters become artifacts (`import`), weights of their manifests f32
//! arrays (`dequantize`), and models folders for APL (`export --to apl`).
//!
//! The archives are made by `tests/golden/make_older_archives.py`. Their own scripts run on our exports in
//! `experiments/peers/older_tools.py`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitllama_core::weights::specs;
use bitllama_formats::npz::{Npz, map_file, parse};
use bitllama_formats::{Artifact, model};
use bitllama_runtime::{LogitsOf, open};
use common::{failure, root, succeed, succeed_json, train};
use serde_json::{Value, json};

fn archives() -> PathBuf {
    root().join("tests/golden/older_archives")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn import(from: &str, output: &Path, flags: &[&str]) -> Command {
    let from = archives().join(from);
    let mut command = train(&["import", "--from", text(&from), "--output", text(output)]);
    command.args(flags);
    command
}

/// Flags for files among the archives: `--config config.json` as a path that holds.
fn given(flags: &[&str]) -> Vec<String> {
    let in_place = |flag: &&str| match flag.starts_with("--") {
        true => flag.to_string(),
        false => text(&archives().join(flag)).to_string(),
    };
    flags.iter().map(in_place).collect()
}

/// Every weight is what NumPy made of it, and the runtime computes with the artifact.
fn assert_is(artifact: &Path, key: &str) {
    let expected = Npz::open(&archives().join("expected.npz")).unwrap();
    let found = model::open(artifact).unwrap();
    let all = specs(&found.config);
    assert!(all.len() >= 11, "{key}");
    for spec in &all {
        let values = expected.array(&format!("{key}/{}", spec.name)).unwrap().to_f32().unwrap();
        assert_eq!(found.weights.read(spec).unwrap(), values, "{key}: {}", spec.name);
    }
    let decoder = open(artifact).unwrap().decoder;
    let logits = decoder.forward(&[0, 3, 7], &mut decoder.new_cache(), LogitsOf::All).unwrap().to_vec();
    assert!(logits.len() == 3 * 12 && logits.iter().all(|logit| logit.is_finite()), "{key}");
    Artifact::open(artifact).unwrap().verify().unwrap();
}

#[test]
fn archives_of_every_exporter_become_artifacts_with_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["--config", "config.json", "--tokenizer", "tokenizer.json", "--final-norm", "final_norm.npy"];
    let tokenizer = ["--tokenizer", "tokenizer.json", "--final-norm", "final_norm.npy", "--assume"];
    let cases: [(&str, &str, &[&str]); 9] = [
        ("binary.npz", "binary", &files),
        // Of the archive's own arrays, with Llama 2's constants where it has none.
        ("binary.npz", "binary", &tokenizer),
        ("q2.npz", "q2", &files),
        ("q4.npz", "q4", &files),
        ("q8.npz", "q8", &files),
        ("q4/any_manifest.json", "q4", &files),
        ("ternary.npz", "ternary", &files),
        ("full.npz", "full", &files),
        ("norm", "norm", &[]),
    ];
    for (index, (archive, key, flags)) in cases.into_iter().enumerate() {
        let output = folder.path().join(index.to_string());
        let flags = given(flags);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let report = succeed_json(&mut import(archive, &output, &[&flags[..], &["--json"]].concat()));
        assert!(report["bits_per_weight"].as_f64().unwrap() > 1.0, "{report}");
        assert_is(&output, key);
    }
    let config = |index: usize| Artifact::open(&folder.path().join(index.to_string())).unwrap().config;
    assert_eq!((config(0).max_position_embeddings, config(1).max_position_embeddings), (64, 2048));
    assert_eq!(config(1).num_key_value_heads, 1);
    // The head of a tied model is written by the older tools too; where it is another one, it is kept.
    assert!(config(6).tie_word_embeddings && !config(0).tie_word_embeddings);
    assert!(config(8).eos_token_ids.is_empty());
}

#[test]
fn what_an_archive_lacks_comes_from_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let (base, easy, ones) = (folder.path().join("base"), folder.path().join("easy"), folder.path().join("ones"));
    succeed(&mut import("norm", &base, &[]));
    succeed(&mut import("easy.npz", &easy, &["--base", text(&base)]));
    assert_is(&easy, "easy");
    let from_base = &Artifact::open(&easy).unwrap().manifest["provenance"]["from_base"];
    assert_eq!(from_base.as_array().unwrap().len(), 5, "{from_base}");

    let flags = given(&["--config", "config.json", "--tokenizer", "tokenizer.json", "--assume"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    succeed(&mut import("full.npz", &ones, &flags));
    let found = model::open(&ones).unwrap();
    let norm = specs(&found.config).into_iter().find(|spec| spec.name == "norm.weight").unwrap();
    assert_eq!(found.weights.read(&norm).unwrap(), [1.0; 16]);
}

#[test]
fn what_is_missing_is_refused_with_the_flag_that_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("artifact");
    let config = ["--config", "config.json"];
    let both = ["--config", "config.json", "--tokenizer", "tokenizer.json"];
    let three = [&both[..], &["--final-norm", "final_norm.npy"]].concat();
    let wrong = [&both[..], &["--final-norm", "q4/embedding.weight_q4_scales.npy"]].concat();
    let cases: [(&str, &[&str], &str); 12] = [
        (
            "q4.npz",
            &[],
            "neither architecture.hidden_size nor _config_hidden_size is there; give --config FILE or --base MODEL",
        ),
        (
            "binary.npz",
            &[],
            "the manifest does not tell the context length; 2048 is assumed; the manifest does not tell rms_norm_eps; 0.00001 is assumed with --assume only; else give --config FILE or --base MODEL",
        ),
        (
            "q4/any_manifest.json",
            &[],
            "architecture.activation = \"relu\" is not supported; supported are swiglu; give --config FILE",
        ),
        (
            "full.npz",
            &config,
            "the final norm is not there; give --final-norm FILE or --base MODEL, or --assume to take all ones",
        ),
        (
            "full.npz",
            &["--config", "config.json", "--final-norm", "final_norm.npy"],
            "the archive has no tokenizer; give --tokenizer FILE or --base MODEL",
        ),
        ("full.npz", &wrong, "[12] of <f4 found, [16] floating-point numbers expected"),
        ("norm", &["--final-norm", "final_norm.npy"], "has a final norm"),
        ("easy.npz", &three, "weight layers.0.self_attn.q_proj.weight and 3 more not there; give --base MODEL"),
        ("automated.npz", &three, "layer_0_self_attn_q_proj_weight has no place in a llama of this config"),
        ("student.npz", &three, "transformer.layers.0.linear1.bias has no place in a llama of this config"),
        ("none.npz", &three, "none.npz: no such archive"),
        ("tokenizer.json", &three, "tokenizer.json: no weight of this config is in it"),
    ];
    for (archive, flags, expected) in cases {
        let flags = given(flags);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let message = failure(&import(archive, &output, &flags).output().unwrap());
        assert!(message.contains(expected), "{archive}: {message}");
        assert!(!output.exists(), "{archive}");
    }
    // A folder of others stays.
    fs::create_dir(&output).unwrap();
    fs::write(output.join("notes.txt"), "mine").unwrap();
    let message = failure(&import("norm", &output, &[]).output().unwrap());
    assert!(message.contains("notes.txt: not on record"), "{message}");
}

fn dequantize(manifest: &Path, flags: &[&str]) -> Command {
    let mut command = train(&["dequantize", "--manifest", text(manifest)]);
    command.args(flags);
    command
}

/// A folder of the archives, copied.
fn copy_of(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    fs::create_dir(&folder).unwrap();
    for file in fs::read_dir(archives().join(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    folder
}

/// Every low-bit weight of `manifest` has its array in `folder`; returns how many there are.
fn assert_arrays(manifest: &Path, folder: &Path, key: &str) -> usize {
    let expected = Npz::open(&archives().join("expected.npz")).unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let entries = manifest["weights"].as_object().unwrap().iter().filter(|(_, entry)| !entry["bit_width"].is_null());
    entries
        .map(|(name, entry)| {
            let array =
                parse(&map_file(&folder.join(format!("{}_fp32.npy", name.replace('.', "_")))).unwrap()).unwrap();
            let ours = name.replace("transformer.", "").replace("embedding.", "embed_tokens.");
            assert_eq!(json!(array.shape), entry["shape"], "{name}");
            let values = expected.array(&format!("{key}/{ours}")).unwrap().to_f32().unwrap();
            assert_eq!(array.to_f32().unwrap(), values, "{name}");
        })
        .count()
}

#[test]
fn weights_of_a_manifest_become_arrays_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("arrays");
    for (manifest, key) in [("q4/any_manifest.json", "q4"), ("norm/manifest.json", "norm")] {
        let manifest = archives().join(manifest);
        // The second replaces what the first wrote.
        let report = succeed_json(&mut dequantize(&manifest, &["--output-dir", text(&output), "--json"]));
        assert_eq!(report["weights"], 9, "{report}");
        assert_eq!(assert_arrays(&manifest, &output, key), 9);
    }
    fs::write(output.join("notes.txt"), "mine").unwrap();
    let message = failure(
        &dequantize(&archives().join("norm/manifest.json"), &["--output-dir", text(&output)]).output().unwrap(),
    );
    assert!(message.contains("notes.txt: not on record as written by this program"), "{message}");
    let inside = archives().join("norm");
    let message =
        failure(&dequantize(&inside.join("manifest.json"), &["--output-dir", text(&inside)]).output().unwrap());
    assert!(message.contains("`--manifest`") && message.contains("is not written over"), "{message}");
}

#[test]
fn weights_of_a_manifest_become_arrays_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let tool = copy_of("norm", folder.path());
    let manifest = tool.join("manifest.json");
    // A foreign file in the place of an array is named, and nothing is written.
    let foreign = tool.join("lm_head_weight_fp32.npy");
    fs::write(&foreign, "mine").unwrap();
    let before = fs::read(&manifest).unwrap();
    let message = failure(&dequantize(&manifest, &["--update-manifest"]).output().unwrap());
    assert!(message.contains("lm_head_weight_fp32.npy: not on record"), "{message}");
    assert!(fs::read(&manifest).unwrap() == before && !tool.join("embedding_weight_fp32.npy").exists());
    fs::remove_file(&foreign).unwrap();
    for _ in 0..2 {
        succeed(&mut dequantize(&manifest, &["--update-manifest"]));
        assert_eq!(assert_arrays(&manifest, &tool, "norm"), 9);
    }
    let edited: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for entry in [&edited["weights"]["lm_head.weight"], &edited["lm_head.weight"]] {
        assert_eq!(entry["fp32"], "lm_head_weight_fp32.npy");
    }
    // Codes come first for a reader of ours, copies or not.
    let output = folder.path().join("artifact");
    succeed(&mut train(&["import", "--from", text(&tool), "--output", text(&output)]));
    assert_is(&output, "norm");

    // An artifact of ours stays one that a command may replace.
    succeed(&mut dequantize(&output.join("manifest.json"), &["--update-manifest"]));
    assert_is(&output, "norm");
    assert!(output.join("lm_head_weight_fp32.npy").is_file());
    succeed(&mut train(&["import", "--from", text(&tool), "--output", text(&output)]));
    assert!(!output.join("lm_head_weight_fp32.npy").exists());
}

#[test]
fn a_damaged_manifest_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let tool = copy_of("q4", folder.path());
    let (manifest, output) = (tool.join("any_manifest.json"), folder.path().join("arrays"));
    let whole: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let up = "transformer.layers.0.mlp.up_proj.weight";
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Value)>);
    let damages: [Damage; 6] = [
        ("no shape [out, in] beside its codes", Box::new(move |m| m["weights"][up]["shape"] = json!([20]))),
        (
            "[20, 16] of |u1 found, [16, 20] of |u1 expected",
            Box::new(move |m| m["weights"][up]["shape"] = json!([16, 20])),
        ),
        ("leads out of the folder", Box::new(move |m| m["weights"][up]["q"] = json!("../up.npy"))),
        (
            "names no q_scales",
            Box::new(move |m| {
                m["weights"][up]["q_scales"] = Value::Null;
                m["weights"][up]["q_scales_txt"] = Value::Null;
            }),
        ),
        (
            "would be another weight's too",
            Box::new(move |m| {
                m["weights"]["transformer_layers.0.mlp.up_proj.weight"] = m["weights"][up].clone();
            }),
        ),
        ("nothing to dequantize", Box::new(|m| m["weights"] = json!({}))),
    ];
    for (expected, damage) in damages {
        let mut damaged = whole.clone();
        damage(&mut damaged);
        fs::write(&manifest, damaged.to_string()).unwrap();
        let message = failure(&dequantize(&manifest, &["--output-dir", text(&output)]).output().unwrap());
        assert!(message.contains("any_manifest.json") || message.contains(up), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!output.exists());
    }
    let message = failure(&dequantize(&folder.path().join("none.json"), &["--update-manifest"]).output().unwrap());
    assert!(message.contains("none.json: no such manifest"), "{message}");
    let message = failure(&dequantize(&archives().join("q4.npz"), &["--output-dir", text(&output)]).output().unwrap());
    assert!(message.contains("an archive without a manifest; name the manifest"), "{message}");
}

/// `NAME ← VALUE` of a file of variables.
fn variable<'a>(variables: &'a str, name: &str) -> Option<&'a str> {
    variables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" ← "))
}

#[test]
fn a_model_becomes_a_folder_for_apl() {
    let folder = tempfile::tempdir().unwrap();
    let apl = folder.path().join("apl");
    for (scheme, fields) in [
        ("binary", &["packed", "scales_txt"][..]),
        ("ternary", &["q", "q_scales", "q_zero_point", "scales_txt"]),
        ("int4", &["q", "q_scales", "q_zero_point"]),
    ] {
        let args = ["quantize", "--model", "models/nano", "--scheme", scheme, "--embedding", "int8"];
        succeed(&mut train(&[&args[..], &["--group-size", "row", "--to", "apl", "--output", text(&apl)]].concat()));
        let variables = fs::read_to_string(apl.join("variables.apl")).unwrap();
        for (name, value) in [
            ("MANIFEST_FILE", "'manifest.json'"),
            ("MODEL_FAMILY", "'llama'"),
            ("HIDDEN_SIZE", "160"),
            ("INTERMEDIATE_SIZE", "432"),
            ("NUM_LAYERS", "4"),
            ("VOCAB_SIZE", "1024"),
            ("CONTEXT_LENGTH", "512"),
            ("NUM_HEADS", "5"),
            ("KV_GROUPS", "5"),
            ("HEAD_DIM", "32"),
            ("ATTENTION_VARIANT", "'full'"),
            ("ACTIVATION", "'swiglu'"),
            ("NORM_TYPE", "'rmsnorm'"),
            ("ROPE_BASE", "10000.0"),
            ("ROPE_SCALE", "1.0"),
            ("RMS_NORM_EPS", "1E¯5"),
            ("ROPE_FACTOR", "1.0"),
            ("transformer_layers_3_mlp_up_proj_weight_shape", "432 160"),
            ("norm_weight_fp32", "'norm.weight_fp32.npy'"),
        ] {
            assert_eq!(variable(&variables, name), Some(value), "{scheme}: {name}");
        }
        assert_eq!(variable(&variables, "ROPE_FREQUENCIES").unwrap().split(' ').count(), 16);
        assert!(variable(&variables, "norm_weight_shape").is_none() && variable(&variables, "WINDOW_SIZE").is_none());
        let names = variable(&variables, "WEIGHT_NAMES").unwrap();
        let weights = specs(&Artifact::open(&apl).unwrap().config);
        assert_eq!(names.split(' ').count(), weights.len());
        let of_weight = |field: &&str| {
            let name = format!("transformer_layers_0_self_attn_q_proj_weight_{field}");
            let file = variable(&variables, &name).unwrap_or_else(|| panic!("{scheme}: {name}"));
            assert!(apl.join(file.trim_matches('\'')).is_file(), "{scheme}: {file}");
        };
        fields.iter().for_each(of_weight);
        // Nothing but assignments and comments: the workspace executes every line.
        let plain = |line: &str| line.is_empty() || line.starts_with('⍝') || line.contains(" ← ");
        assert!(variables.lines().all(plain), "{scheme}");
        assert!(fs::read_to_string(apl.join("decoder.apl")).unwrap().contains("∇Z←LOGITS IDS"));
    }
    // The same model, for every reader of ours.
    let v2 = folder.path().join("v2");
    succeed(&mut train(&["export", "--from", text(&apl), "--to", "v2", "--output", text(&v2)]));
    let [from_apl, from_v2] = [&apl, &v2].map(|path| model::open(path).unwrap());
    for spec in specs(&from_apl.config) {
        assert_eq!(from_apl.weights.read(&spec).unwrap(), from_v2.weights.read(&spec).unwrap(), "{}", spec.name);
    }
}

#[test]
fn models_that_apl_would_compute_wrongly_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("apl");
    let export = |model: &str| {
        let model = format!("tests/golden/families/{model}.gguf");
        train(&["export", "--from", &model, "--to", "apl", "--output", text(&output)]).output().unwrap()
    };
    for (model, what) in [("gemma", "a gemma model"), ("llama_bias", "a llama model with biases")] {
        let message = failure(&export(model));
        assert!(message.contains(&format!("no place for {what}: the older tools would compute")), "{message}");
    }
    // The 432 columns of `down_proj` are no whole groups.
    let grouped = ["--bits", "4", "--group-size", "32", "--rule", "*.down_proj=f32", "--to", "apl"];
    let args = [&["quantize", "--model", "models/nano", "--output", text(&output)][..], &grouped].concat();
    let message = failure(&train(&args).output().unwrap());
    assert!(message.contains("several scales a row cannot be written for the older tools"), "{message}");
    assert!(!output.exists());
    // A family of another name that computes as a Llama is none to refuse.
    let output = export("mistral");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
