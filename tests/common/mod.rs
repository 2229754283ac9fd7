//! What the end-to-end tests share: running the binary in the root of the repository, short recipes, figures.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The root of the repository, where recipes' paths start.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `bitllama-train` with `args`, in the root of the repository.
pub fn train(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitllama-train"));
    command.args(args).current_dir(root());
    // Hashes of models are remembered among the tests' files, not among the user's.
    command.env("BITLLAMA_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Arguments of a short run of the quick start's recipe into `output`.
pub fn short_run(output: &Path, sets: &[&str]) -> Vec<String> {
    let (output, cache) = (output.display(), output.with_extension("cache").display().to_string());
    let mut args: Vec<String> = ["distill", "--config", "recipes/quickstart.toml"].map(String::from).to_vec();
    let shared = [
        format!("output={output}"),
        format!("data.cache={cache}"),
        "data.sequence_length=32".into(),
        "train.steps=6".into(),
        "train.batch_size=2".into(),
        "train.warmup_steps=2".into(),
        "train.log_every=1".into(),
        "train.checkpoint_every=3".into(),
        "eval.chunks=4".into(),
    ];
    for set in shared.into_iter().chain(sets.iter().map(|s| s.to_string())) {
        args.extend(["--set".to_string(), set]);
    }
    args
}

/// Runs to the end; standard output on success.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// As [`succeed`], with standard output as the one JSON object it must be.
pub fn succeed_json(command: &mut Command) -> Value {
    let text = succeed(command);
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The one line that a failing command says.
pub fn failure(output: &Output) -> String {
    assert!(!output.status.success(), "it should fail");
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!text.contains("panicked"), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "one line of error: {text}");
    assert_eq!(text.trim_end().lines().last(), Some(errors[0]), "the error comes last: {text}");
    errors[0].to_string()
}

/// The lines of a run's `metrics.jsonl` without the figures that time the machine.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("tokens_per_second");
        value
    });
    lines.collect()
}

/// A run that goes on by itself.
pub fn start(args: &[String]) -> Child {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    train(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Until a file has so many lines.
pub fn wait_for(path: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while std::fs::read_to_string(path).map_or(0, |text| text.lines().count()) < lines {
        assert!(Instant::now() < deadline, "{} never had {lines} lines", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command of the given arguments with `--json`, run to the end.
pub fn run_json(args: &[String]) -> Value {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
    succeed_json(&mut train(&args))
}
