//! A checkpoint and the folder of a run, in every command of `bitllama`: the student that the bit plan makes of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::testing::{byte_tokenizer, random_weight, tiny_config};
use bitllama_core::weights::specs;
use bitllama_core::{BitPlan, PackedMatrix, Scheme};
use bitllama_formats::artifact::{self, Layout};
use bitllama_formats::{StoredWeight, hf};
use serde_json::{Value, json};

fn bitllama(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bitllama")).args(arguments).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() { Ok(out) } else { Err(err) }
}

/// The latent weights of a tiny model.
fn latent(spec: &bitllama_core::weights::WeightSpec) -> Vec<f32> {
    match random_weight(spec, None, 3) {
        StoredWeight::Full(values) => values,
        StoredWeight::Packed(_) | StoredWeight::Rows(_) => unreachable!("without a scheme, in f32"),
    }
}

/// `RUN/checkpoints/step-000001` with matrices that are to be ternary, and the same student as an artifact.
fn checkpoint_and_artifact(folder: &Path) -> [PathBuf; 2] {
    let (config, tokenizer) = (tiny_config(), byte_tokenizer());
    let checkpoint = folder.join("run/checkpoints/step-000001");
    let weights = specs(&config).into_iter().map(|spec| (spec.clone(), latent(&spec)));
    hf::save(&checkpoint, &config, weights, &tokenizer, hf::Dtype::F32).unwrap();
    let state = json!({
        "step": 1, "perplexity": null, "best": null, "bits": { "layers.*": "ternary" },
        "activations": { "layers.*.q_proj": "int8", "kv_cache": "int4" }, "fingerprint": {},
    });
    fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();

    let plan = BitPlan::uniform(Scheme::Ternary).resolve(&config).unwrap();
    let rules: bitllama_core::ActivationRules = serde_json::from_value(state["activations"].clone()).unwrap();
    let activations = rules.plan_for(&plan).unwrap();
    let weights = plan.iter().map(|(spec, quantizer)| {
        let stored = match (quantizer, &spec.shape[..]) {
            (Some(quantizer), &[rows, columns]) => {
                StoredWeight::Packed(PackedMatrix::quantize(quantizer, [rows, columns], latent(spec)).unwrap())
            }
            _ => StoredWeight::Full(latent(spec)),
        };
        Ok((spec.clone(), stored))
    });
    let path = folder.join("artifact");
    artifact::write_trained(&path, &config, weights, &activations, &tokenizer, Layout::Packed, json!({})).unwrap();
    [checkpoint, path]
}

#[test]
fn every_command_takes_a_checkpoint_and_a_run_for_their_student() {
    let folder = tempfile::tempdir().unwrap();
    let [checkpoint, artifact] = checkpoint_and_artifact(folder.path());
    let text = folder.path().join("text.txt");
    fs::write(&text, "Though this be madness, yet there is method in't. ".repeat(3)).unwrap();
    let text = text.to_str().unwrap();
    let run = |path: &Path, flags: &[&str]| {
        let arguments = ["run", "--artifact", path.to_str().unwrap(), "--prompt", "Hello", "-n", "20"];
        bitllama(&[&arguments[..], flags].concat())
    };
    let eval = |path: &Path, flags: &[&str]| {
        let arguments = ["eval", "--artifact", path.to_str().unwrap(), "--text", text, "--ctx", "32", "--json"];
        let report: Value = serde_json::from_str(&bitllama(&[&arguments[..], flags].concat()).unwrap()).unwrap();
        report["perplexity"].as_f64().unwrap()
    };
    let inspect = |path: &Path| {
        let report = bitllama(&["inspect", path.to_str().unwrap(), "--json"]).unwrap();
        let mut report: Value = serde_json::from_str(&report).unwrap();
        report.as_object_mut().unwrap().remove("path");
        report
    };
    let of_run = folder.path().join("run");
    for path in [&checkpoint, &of_run] {
        assert_eq!(run(path, &[]), run(&artifact, &[]));
        assert_eq!(eval(path, &[]), eval(&artifact, &[]));
        assert_eq!(inspect(path), inspect(&artifact));
        assert_ne!(eval(path, &["--latent-weights"]), eval(&artifact, &[]));
        let arguments = ["bench", "--artifact", path.to_str().unwrap(), "-p", "4", "-n", "2", "-r", "1", "--json"];
        let report: Value = serde_json::from_str(&bitllama(&arguments).unwrap()).unwrap();
        assert_eq!((&report["kv"], &report["bytes"]), (&json!("int4"), &inspect(&artifact)["bytes"]));
    }
    assert_eq!(inspect(&checkpoint)["activations"], "int8 into 2 matrices, keys and values in int4");
    // What the latent weights are when they are rounded at once.
    let ternary = ["--quantize", "ternary", "--quantize-embedding", "f32", "--kv", "int4", "--activations", "f32"];
    let rounded = eval(&checkpoint, &[&ternary[..], &["--latent-weights"]].concat());
    assert_eq!(rounded, eval(&artifact, &["--kv", "int4", "--activations", "f32"]));

    let error = run(&artifact, &["--latent-weights"]).unwrap_err();
    assert!(error.contains("artifact: not a checkpoint (no state.json)"), "{error}");
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [checkpoint, _] = checkpoint_and_artifact(folder.path());
    let state = fs::read_to_string(checkpoint.join("state.json")).unwrap();
    let error = |state: &str| {
        fs::write(checkpoint.join("state.json"), state).unwrap();
        let run = folder.path().join("run");
        let error = bitllama(&["run", "--artifact", run.to_str().unwrap(), "--prompt", "a"]).unwrap_err();
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        error
    };
    assert!(error(&state[..state.len() / 2]).contains("state.json"));
    let unknown = state.replace("layers.*\":\"ternary", "blocks.*\":\"ternary");
    assert!(error(&unknown).contains("state.json: bit plan: `blocks.*` matches no matrix"));
    let learned = state.replace("\"ternary\"", "{\"scheme\":\"ternary\",\"method\":\"lsq\"}");
    assert!(error(&learned).contains("scales.safetensors"));
    fs::remove_dir_all(folder.path().join("run/checkpoints/step-000001")).unwrap();
    let error = bitllama(&["inspect", folder.path().join("run").to_str().unwrap()]).unwrap_err();
    assert!(error.contains("has no checkpoint yet, and no artifact"), "{error}");
}
