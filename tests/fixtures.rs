//! Files of release 0.1.0 must always load, and mean the same: `tests/fixtures/v0.1.0`, whose README says how it was made.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bitllama_formats::Artifact;
use bitllama_runtime::{Decoder, GenerationOptions, Settings, generate};
use common::{root, succeed_json, train};
use serde_json::Value;

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/v0.1.0")
}

/// What 0.1.0 printed, by line.
fn figures(line: usize) -> Value {
    let text = fs::read_to_string(fixtures().join("figures.jsonl")).unwrap();
    serde_json::from_str(text.lines().nth(line).unwrap()).unwrap()
}

fn close(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    // f32 products may sum in another order on another processor.
    assert!((found / expected - 1.0).abs() < 1e-5, "{found}, not {expected}");
}

/// The perplexity of `model` on the text of the fixtures.
fn evaluated(model: &str) -> Value {
    let (model, text) = (fixtures().join(model), fixtures().join("text.txt"));
    let args = ["eval", "--model", model.to_str().unwrap(), "--text", text.to_str().unwrap(), "--ctx", "64", "--json"];
    succeed_json(&mut train(&args))
}

#[test]
fn models_have_the_figures_that_they_had() {
    for (line, model) in [(0, "run/checkpoints/step-000010"), (1, "artifact"), (4, "teacher")] {
        let (found, expected) = (evaluated(model), figures(line));
        close(&found["perplexity"], &expected["perplexity"]);
        assert_eq!(found["tokens_scored"], expected["tokens_scored"], "{model}");
    }
}

#[test]
fn the_artifact_is_whole_and_generates_what_it_did() {
    let artifact = Artifact::open(&fixtures().join("artifact")).unwrap();
    artifact.verify().unwrap();
    let decoder = Decoder::from_artifact(&artifact).unwrap().with_settings(Settings::fast());
    let tokenizer = artifact.tokenizer.as_ref().unwrap();
    let go_on = |_: &str| std::ops::ControlFlow::Continue(());
    let options = GenerationOptions { max_tokens: 24, ..GenerationOptions::default() };
    let found = generate(&decoder, tokenizer, "She was", &options, go_on).unwrap();
    let expected = figures(3);
    assert_eq!(found.text, expected["text"]);
    assert_eq!(serde_json::to_value(&found.tokens).unwrap(), expected["tokens"]);
    assert_eq!(serde_json::to_value(found.prompt_tokens).unwrap(), expected["prompt_tokens"]);
}

#[test]
fn a_checkpoint_is_exported_as_it_was_rounded() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, output) = (fixtures().join("run/checkpoints/step-000010"), folder.path().join("artifact"));
    let args = ["export", "--checkpoint", checkpoint.to_str().unwrap(), "--output", output.to_str().unwrap(), "--json"];
    let exported = succeed_json(&mut train(&args));
    let result: Value =
        serde_json::from_slice(&fs::read(fixtures().join("result-after-20-steps.json")).unwrap()).unwrap();
    assert_eq!(exported["bytes"], result["student"]["bytes"]);
    assert_eq!(exported["bits_per_weight"], result["student"]["bits_per_weight"]);
    let text = fixtures().join("text.txt");
    let args = ["eval", "--model", output.to_str().unwrap(), "--text", text.to_str().unwrap(), "--ctx", "64", "--json"];
    close(&succeed_json(&mut train(&args))["perplexity"], &figures(0)["perplexity"]);
}

/// `from` and all below it, copied to `to`.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// Text is hashed in another way since, so whether it is the same text cannot be told: refused, and nothing is lost.
#[test]
fn a_run_is_not_gone_on_with_unless_its_text_is_known_to_be_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (name, place) in [("run", "runs/student"), ("teacher", "runs/teacher/model"), ("text.txt", "text.txt")] {
        copy(&fixtures().join(name), &folder.path().join(place));
    }
    let args = ["distill", "--config", "runs/student/recipe.toml", "--resume", "--json"];
    let message = common::failure(&train(&args).current_dir(folder.path()).output().unwrap());
    assert!(
        message.contains("step-000010: made with another data, eval; a run of version 0.1.0 cannot go on"),
        "{message}"
    );
    let state = "checkpoints/step-000010/state.json";
    let kept = |file: &str| fs::read(folder.path().join("runs/student").join(file)).unwrap();
    for file in [state, "checkpoints/step-000010/optimizer.bpk", "metrics.jsonl"] {
        assert_eq!(kept(file), fs::read(fixtures().join("run").join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_newer_version_is_named_and_not_guessed_at() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join("run"), &folder.path().join("run"));
    copy(&fixtures().join("artifact"), &folder.path().join("artifact"));
    for (file, model) in [
        ("run/checkpoints/step-000010/state.json", "run/checkpoints/step-000010"),
        ("artifact/manifest.json", "artifact"),
    ] {
        let path = folder.path().join(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json["format_version"] = 99.into();
        fs::write(&path, json.to_string()).unwrap();
        let (model, text) = (folder.path().join(model), fixtures().join("text.txt"));
        let args = ["eval", "--model", model.to_str().unwrap(), "--text", text.to_str().unwrap(), "--ctx", "64"];
        let message = common::failure(&train(&args).output().unwrap());
        let expected = format!("error: {}: format_version = 99 was written by a newer version", path.display());
        assert!(message.starts_with(&expected), "{message}");
    }
}
