//! Models whose files contradict themselves or hold damaged numbers: the right figures, or one line that names the weight.
//! `golden/make_weight_cases.py` made the figures with `transformers`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitllama_formats::model;
use bitllama_runtime::Decoder;
use bitllama_runtime::evaluate::LogitModel;
use bitllama_train::evaluate::Scored;
use bitllama_train::models::to_device;
use burn::tensor::Device;
use common::{failure, root, short_run, succeed_json, train};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

const TEXT: &str = "data/austen/sense-and-sensibility.txt";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The tensors of models/nano, all of them f16: shape and bytes.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn nano() -> Tensors {
    let bytes = fs::read(root().join("models/nano/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let all = tensors.iter().map(|(name, view)| (name.to_string(), (view.shape().to_vec(), view.data().to_vec())));
    all.collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views =
        tensors.iter().map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views.collect::<BTreeMap<_, _>>(), None).unwrap()).unwrap();
}

/// models/nano with other `tensors` and a config changed by `edit`.
fn changed(folder: &Path, tensors: &Tensors, edit: impl FnOnce(&mut Value)) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join("models/nano").join(file), folder.join(file)).unwrap();
    }
    let config = fs::read(root().join("models/nano/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.join("model.safetensors"), tensors);
    folder.to_path_buf()
}

/// The embedding times 0.5, rolled by one row: a head of its own in a file of a model that is called tied.
fn with_other_head() -> Tensors {
    let mut tensors = nano();
    let (shape, bytes) = tensors[EMBEDDING].clone();
    let halved: Vec<u8> = bytes
        .as_chunks()
        .0
        .iter()
        .flat_map(|b| f16::from_f32(0.5 * f16::from_le_bytes(*b).to_f32()).to_le_bytes())
        .collect();
    let last = halved.len() - 2 * shape[1];
    let rolled = [&halved[last..], &halved[..last]].concat();
    tensors.insert(HEAD.into(), (shape, rolled));
    tensors
}

/// The mean negative log-likelihood of the tokens of `golden/make_weight_cases.py`, each but the first.
fn mean_loss(model: &mut dyn LogitModel) -> f64 {
    let tokens: Vec<u32> = (0..96u32).map(|i| (i * i * 37 + i * 11 + 5) % 1024).collect();
    let logits = model.logits(&tokens).unwrap();
    let losses = logits.chunks_exact(1024).zip(&tokens[1..]).map(|(row, next)| {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(row[*next as usize])
    });
    losses.sum::<f64>() / (tokens.len() - 1) as f64
}

fn runtime_loss(folder: &Path) -> f64 {
    mean_loss(&mut bitllama_runtime::open(folder).unwrap().decoder)
}

fn golden(name: &str) -> f64 {
    let path = root().join("tests/golden/weight_cases.json");
    let figures: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    figures["mean_losses"][name].as_f64().unwrap()
}

#[test]
fn files_that_say_a_thing_in_several_ways_mean_what_they_do_to_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let mut head_only = nano();
    let embedding = head_only.remove(EMBEDDING).unwrap();
    head_only.insert(HEAD.into(), embedding);
    let theta = |config: &mut Value| {
        config["rope_theta"] = Value::Null;
        config["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "default"});
    };
    let linear = |config: &mut Value| config["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    let plain = |_: &mut Value| ();
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let cases: [(&str, Tensors, Edit); 5] = [
        ("nano", nano(), &plain),
        ("other_head", with_other_head(), &plain),
        ("head_only", head_only, &plain),
        ("theta", nano(), &theta),
        ("linear", nano(), &linear),
    ];
    for (name, tensors, edit) in cases {
        let path = changed(&folder.path().join(name), &tensors, edit);
        let source = model::open(&path).unwrap();
        let device = Device::flex();
        let mut burn = Scored::new(&to_device(&source, &device).unwrap(), &device);
        let mut runtime = Decoder::from_model(&source).unwrap();
        for (engine, found) in [("Burn", mean_loss(&mut burn)), ("runtime", mean_loss(&mut runtime))] {
            println!("{name} in {engine}: {found}");
            assert!((found - golden(name)).abs() < 1e-4, "{name} in {engine}: {found}, {} expected", golden(name));
        }
    }
}

#[test]
fn a_stale_copy_in_another_shard_than_the_index_names_is_no_weight() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(&folder.path().join("model"), &nano(), |_| ());
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let (mut first, second): (Tensors, Tensors) = nano().into_iter().partition(|(name, _)| name == EMBEDDING);
    let files = [("a.safetensors", &first), ("b.safetensors", &second)];
    let map: BTreeMap<_, _> =
        files.iter().flat_map(|(file, tensors)| tensors.keys().map(|name| (name.clone(), *file))).collect();
    fs::write(path.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    let stale = "model.layers.1.mlp.down_proj.weight";
    let (shape, bytes) = &second[stale];
    first.insert(stale.into(), (shape.clone(), f16::from_f32(3.0).to_le_bytes().repeat(bytes.len() / 2)));
    write_tensors(&path.join("a.safetensors"), &first);
    write_tensors(&path.join("b.safetensors"), &second);
    assert_eq!(runtime_loss(&path), runtime_loss(&root().join("models/nano")));
}

#[test]
fn a_head_of_its_own_is_said_once_and_travels() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(&folder.path().join("model"), &with_other_head(), |_| ());
    let (model, artifact) = (path.to_str().unwrap(), folder.path().join("artifact"));
    // The same model as student and teacher: opened twice.
    let args = ["eval", "--model", model, "--teacher", model, "--text", TEXT, "--ctx", "64", "--chunks", "1"];
    let output = train(&args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let remark = "model.safetensors: lm_head.weight differs from the embedding, so it is used, although config.json says \
                  they are tied";
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("note: ") && line.ends_with(remark)).count(), 1, "{said}");
    let to = artifact.to_str().unwrap();
    let args = ["quantize", "--model", model, "--output", to, "--bits", "8", "--method", "rtn", "--json"];
    succeed_json(&mut train(&args));
    let manifest: Value = serde_json::from_slice(&fs::read(artifact.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["model_config"]["tie_word_embeddings"], false);
    let found = runtime_loss(&artifact);
    assert!((found - golden("other_head")).abs() < 0.05, "{found}");
}

#[test]
fn every_command_refuses_an_infinite_weight_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = nano();
    let (shape, bytes) = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
    let at = 2 * (5 * shape[1] + 7);
    bytes[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let path = changed(&folder.path().join("model"), &tensors, |_| ());
    let (model, out) = (path.to_str().unwrap(), folder.path().join("out"));
    let (output, data) = (out.to_str().unwrap(), folder.path().join("data.jsonl").display().to_string());
    let quantize = ["quantize", "--model", model, "--output", output, "--bits", "4", "--method"];
    let calibrated = ["--calibration", TEXT, "--calibration-tokens", "256", "--calibration-ctx", "64"];
    let generate =
        ["generate-data", "--model", model, "--output", &data, "--tokens", "8", "--length", "4", "--batch", "1"];
    let teacher = short_run(&out, &[&format!("teacher.model={model:?}")]);
    let student = short_run(&out, &[&format!("student.model={model:?}")]);
    let owned = |args: &[&str]| -> Vec<String> { args.iter().map(|arg| arg.to_string()).collect() };
    let commands = [
        owned(&["eval", "--model", model, "--text", TEXT, "--ctx", "64", "--chunks", "1"]),
        owned(&[&quantize[..], &["rtn"]].concat()),
        owned(&[&quantize[..], &["search"]].concat()),
        owned(&[&quantize[..], &["gptq"], &calibrated[..]].concat()),
        owned(&["export", "--checkpoint", model, "--output", output, "--layout", "hf"]),
        owned(&generate),
        teacher,
        student,
    ];
    for args in commands {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let message = failure(&train(&args).output().unwrap());
        let expected =
            "model.safetensors: layers.1.mlp.down_proj.weight holds inf at [5, 7]; every value must be finite";
        assert!(message.ends_with(expected), "{args:?}: {message}");
        let left: Vec<_> =
            ["out/manifest.json", "out/config.json", "data.jsonl"].map(|name| folder.path().join(name)).into();
        assert!(left.iter().all(|path| !path.exists()), "{args:?}");
    }
    assert!(bitllama_runtime::open(&path).unwrap_err().to_string().contains("layers.1.mlp.down_proj.weight holds inf"));
}

#[test]
fn an_evaluation_says_what_was_assumed_of_an_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = folder.path().join("artifact");
    let path = artifact.to_str().unwrap();
    let args = ["quantize", "--model", "models/nano", "--output", path, "--bits", "8", "--method", "rtn", "--json"];
    succeed_json(&mut train(&args));
    let manifest = artifact.join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("model_config");
    json["architecture"].as_object_mut().unwrap().remove("rms_norm_eps");
    fs::write(&manifest, json.to_string()).unwrap();
    let args = ["eval", "--model", path, "--text", TEXT, "--ctx", "64", "--chunks", "1"];
    let output = train(&args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let remark = "artifact: the manifest does not tell rms_norm_eps; 0.00001 is assumed";
    assert!(output.status.success() && said.contains("note: "), "{said}");
    assert_eq!(said.lines().filter(|line| line.ends_with(remark)).count(), 1, "{said}");
}
