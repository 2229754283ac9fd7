//! Output that nobody reads any more: commands come to their end as if it had been read, and runs write what they are to write.

mod common;

use std::process::{Command, Stdio};

use common::{root, short_run, train};

/// The exit code of a command whose output and messages are closed at once.
fn closed(command: &mut Command) -> Option<i32> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().unwrap().code()
}

#[test]
fn commands_end_quietly() {
    let teacher = root().join("tests/fixtures/v0.1.0/teacher").display().to_string();
    let text = root().join("tests/fixtures/v0.1.0/text.txt").display().to_string();
    for args in [
        &["eval", "--model", &teacher, "--text", &text, "--ctx", "64", "--chunks", "4"][..],
        &["eval", "--model", &teacher, "--task", "tests/data/tasks/piqa.jsonl", "--limit", "2"],
        &["report", "experiments/grid-quickstart"],
        &["report", "experiments/grid-quickstart", "--json"],
        &["distill", "--config", "recipes/quickstart.toml", "--dry-run"],
        &["grid", "--config", "experiments/grid-quickstart.toml", "--dry-run"],
        &["--help"],
    ] {
        assert_eq!(closed(&mut train(args)), Some(0), "{args:?}");
    }
    let wrong = ["eval", "--model", "none", "--text", &text];
    assert_eq!(closed(&mut train(&wrong)), Some(1), "a failure is one, whoever reads of it");
}

#[test]
fn a_run_comes_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = short_run(&run, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert_eq!(closed(&mut train(&args)), Some(0));
    assert!(run.join("artifact/manifest.json").is_file() && run.join("result.json").is_file());
}

/// `/dev/full` is a disk that is.
#[cfg(target_os = "linux")]
#[test]
fn output_that_is_lost_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = train(&["report", "experiments/grid-quickstart"]).stdout(full).output().unwrap();
    let message = common::failure(&output);
    assert_eq!(message, "error: standard output: No space left on device (os error 28)");
}
