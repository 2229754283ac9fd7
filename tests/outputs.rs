//! Output folders belong to the user: what is not on record stays, one writer at a time, kills leave nothing.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use common::{failure, metrics, run_json, short_run, start, succeed, train, wait_for};

/// All files below a folder with their contents.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(contents(&path)),
            false => drop(all.insert(path.clone(), fs::read(path).unwrap())),
        }
    }
    all
}

/// Makes sure that nothing is in a folder that should not outlive its process.
fn nothing_left_behind(folder: &Path) {
    let left: Vec<_> = contents(folder).into_keys().filter(|path| path.to_str().unwrap().contains('~')).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// `bitllama-train` with `args`, run to its end.
fn run(args: &[&str]) -> Output {
    train(args).output().unwrap()
}

/// The command of [`short_run`] with flags.
fn short(output: &Path, sets: &[&str], flags: &[&str]) -> Output {
    let args = short_run(output, sets);
    train(&args.iter().map(String::as_str).collect::<Vec<_>>()).args(flags).output().unwrap()
}

fn quantize(output: &Path, bits: &str) -> Output {
    let fixed = ["quantize", "--model", "models/nano", "--group-size", "row", "--output"];
    run(&[&fixed[..], &[output.to_str().unwrap(), "--bits", bits]].concat())
}

fn copy_of_nano(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(common::root().join("models/nano")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_folder_of_the_users_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("exp");
    copy_of_nano(&folder.join("model"));
    fs::create_dir(folder.join("artifact")).unwrap();
    for (file, text) in [("artifact/notes.txt", "mine"), ("result.json", "{}"), ("recipe.toml", "mine")] {
        fs::write(folder.join(file), text).unwrap();
    }
    let before = contents(&folder);
    let refused = |output: Output, expected: &str| {
        let message = failure(&output);
        assert!(message.contains(expected), "{message}");
        assert_eq!(contents(&folder), before, "{message}");
    };
    let (path, model) = (folder.to_str().unwrap(), folder.join("model"));
    let model = model.to_str().unwrap();

    let teacher = format!("teacher.model={model}");
    refused(short(&folder, &[&teacher], &[]), "exp: `teacher.model`");
    for flags in [&[][..], &["--overwrite"], &["--resume"]] {
        refused(short(&folder, &[], flags), "exp/artifact/notes.txt: not on record as written by this program");
    }
    refused(quantize(&folder, "4"), "exp/artifact/notes.txt: not on record");
    refused(quantize(&folder.join("model"), "4"), "model/config.json: not on record");
    refused(run(&["quantize", "--bits", "4", "--model", model, "--output", model]), "exp/model: `--model`");
    refused(run(&["quantize", "--bits", "4", "--model", model, "--output", path]), "exp: `--model`");

    let cache = format!("teacher.cache={path}");
    let args = short_run(&root.path().join("run"), &[&cache]);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args[0] = "cache-teacher";
    for flags in [&[][..], &["--overwrite"]] {
        refused(run(&[&args[..], flags].concat()), "exp/artifact/notes.txt: not on record");
    }
    let file = folder.join("result.json");
    let generate = ["generate-data", "--model", "models/nano", "--tokens", "9", "--output", file.to_str().unwrap()];
    for flags in [&[][..], &["--overwrite"]] {
        refused(run(&[&generate[..], flags].concat()), "result.json: not on record as written by `generate-data`");
    }
    nothing_left_behind(root.path());
}

#[test]
fn a_run_is_replaced_only_as_it_was_written() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let first = run_json(&short_run(&folder, &[]));
    let refused = |output: Output, expected: &str| {
        let before = contents(&folder);
        let message = failure(&output);
        assert!(message.contains(expected), "{message}");
        assert_eq!(contents(&folder), before, "{message}");
    };
    // No other command's output takes its place, least of all that of its own checkpoint.
    let (path, checkpoint) = (folder.to_str().unwrap(), folder.join("checkpoints/step-000006"));
    let checkpoint = checkpoint.to_str().unwrap();
    for layout in ["artifact", "hf"] {
        let export = |from: &str, to: &str| run(&["export", "--from", from, "--output", to, "--to", layout]);
        refused(export(checkpoint, checkpoint), "step-000006: `--from`");
        refused(export(path, checkpoint), "step-000006: holds a checkpoint");
        refused(export(path, path), "run: `--from`");
    }
    refused(quantize(&folder, "4"), "run: holds a run");
    // The very recipe that is read.
    let recipe = folder.join("recipe.toml");
    let own = ["distill", "--config", recipe.to_str().unwrap()];
    refused(run(&[&own[..], &["--overwrite"]].concat()), "run: `--config`");
    succeed(train(&own).arg("--resume"));
    // What the user put there or changed, whichever it is.
    let written = fs::read(&recipe).unwrap();
    fs::write(&recipe, [&written[..], b"# mine\n"].concat()).unwrap();
    refused(short(&folder, &[], &["--overwrite"]), "recipe.toml: has changed since this program wrote it");
    refused(short(&folder, &[], &["--resume"]), "recipe.toml: has changed since this program wrote it");
    fs::write(&recipe, written).unwrap();
    for notes in ["notes.txt", "checkpoints/step-000006/notes.txt", "artifact/notes.txt", "tensorboard/notes.txt"] {
        fs::write(folder.join(notes), "mine").unwrap();
        refused(short(&folder, &[], &["--overwrite"]), &format!("run/{notes}: not on record"));
        fs::remove_file(folder.join(notes)).unwrap();
    }
    // Beside the user's files it goes on, but its caches may lie in its folder.
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    assert_eq!(run_json(&[short_run(&folder, &[]), vec!["--resume".into()]].concat()), first);
    fs::remove_file(folder.join("notes.txt")).unwrap();
    let cache = format!("data.cache={}", folder.join("cache").display());
    for _ in 0..2 {
        let args = short_run(&folder, &[&cache]);
        succeed(train(&args.iter().map(String::as_str).collect::<Vec<_>>()).arg("--overwrite"));
    }
    assert!(fs::read_dir(folder.join("cache")).unwrap().count() > 0);
    nothing_left_behind(root.path());
}

#[test]
fn a_run_of_a_version_without_records_goes_on_and_is_not_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let result = run_json(&short_run(&folder, &[]));
    // Version 0.1.0 wrote neither records nor checksums.
    for path in contents(&folder).into_keys() {
        if path.ends_with(".bitllama-record") || path.ends_with("SHA256SUMS") {
            fs::remove_file(path).unwrap();
        }
    }
    fs::remove_dir_all(folder.join("checkpoints/step-000006")).unwrap();
    fs::remove_file(folder.join("artifact/tokenizer_config.json")).unwrap();
    fs::write(folder.join("artifact/notes.txt"), "mine").unwrap();
    let message = failure(&short(&folder, &[], &["--overwrite"]));
    assert!(message.contains("run/artifact/manifest.json: not on record"), "{message}");
    let message = failure(&short(&folder, &[], &["--resume"]));
    assert!(message.contains("artifact/notes.txt: not on record"), "{message}");
    fs::remove_file(folder.join("artifact/notes.txt")).unwrap();
    assert_eq!(run_json(&[short_run(&folder, &[]), vec!["--resume".into()]].concat()), result);
    // It is on record now.
    succeed(
        train(&["distill", "--overwrite", "--config", "recipes/quickstart.toml"]).args(&short_run(&folder, &[])[3..]),
    );
}

#[test]
fn the_second_writer_is_told_who_the_first_is() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let sets = ["train.steps=400", "train.checkpoint_every=4"];
    let args = short_run(&folder, &sets);
    let mut child = start(&args);
    wait_for(&folder.join("metrics.jsonl"), 5);
    for flags in [&[][..], &["--resume"], &["--overwrite"]] {
        let message = failure(&short(&folder, &sets, flags));
        let holder = format!("run: process {} on ", child.id());
        assert!(message.contains(&holder) && message.contains("(since 20"), "{message}");
    }
    assert!(child.try_wait().unwrap().is_none(), "the first goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock is gone with its process.
    let message = failure(&short(&folder, &sets, &[]));
    assert!(message.contains("holds a run of"), "{message}");
    let fewer = ["train.steps=400", "train.checkpoint_every=4", "train.steps=6"];
    assert!(short(&folder, &fewer, &["--overwrite"]).status.success());
    assert_eq!(metrics(&folder).iter().filter(|line| line.get("loss").is_some()).count(), 6);
    nothing_left_behind(root.path());
}

#[test]
fn of_two_writers_one_succeeds_or_both_in_turn() {
    let root = tempfile::tempdir().unwrap();
    let weights = |folder: &Path| fs::read(folder.join("weights.npz")).unwrap();
    let alone = ["4", "8"].map(|bits| {
        assert!(quantize(&root.path().join(bits), bits).status.success());
        weights(&root.path().join(bits))
    });
    let both = root.path().join("both");
    for _ in 0..3 {
        let outputs = std::thread::scope(|scope| {
            let writers = ["4", "8"].map(|bits| scope.spawn(|| quantize(&both, bits)));
            writers.map(|writer| writer.join().unwrap())
        });
        let found = weights(&both);
        let succeeded: Vec<_> = alone.iter().zip(&outputs).filter(|(_, output)| output.status.success()).collect();
        assert!(succeeded.iter().any(|(weights, _)| **weights == found), "{outputs:?}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            assert!(failure(output).contains("is writing here"));
        }
        nothing_left_behind(root.path());
    }
}

#[test]
fn runs_that_share_a_cache_do_not_wait_for_each_other() {
    let root = tempfile::tempdir().unwrap();
    let lsq = "bits.layers.*={ scheme = \"int4\", method = \"lsq\" }";
    let cache = format!("quant.cache={}", root.path().join("starts").display());
    let sets =
        ["train.steps=2", "train.warmup_steps=0", "quant.init=gptq", "quant.calibration_tokens=256", lsq, &cache];
    // Both name the same folder for tokens.
    let outputs = std::thread::scope(|scope| {
        let runs = ["both.a", "both.b"].map(|name| root.path().join(name));
        let runs = runs.map(|output| scope.spawn(move || short(&output, &sets, &[])));
        runs.map(|run| run.join().unwrap())
    });
    for output in outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(metrics(&root.path().join("both.a")), metrics(&root.path().join("both.b")));
    assert_eq!(fs::read_dir(root.path().join("starts")).unwrap().count(), 1);
    nothing_left_behind(root.path());
}

#[test]
fn a_command_that_was_killed_is_done_by_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let (whole, killed) = (root.path().join("whole"), root.path().join("killed"));
    assert!(quantize(&whole, "4").status.success());
    let args = ["quantize", "--model", "models/nano", "--group-size", "row", "--bits", "4", "--output"];
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).chain([killed.display().to_string()]).collect();
    // The first ones before there is an artifact, the last ones while it is replaced.
    for milliseconds in [10, 40, 80, 120, 160, 200, 250] {
        let mut child = start(&args);
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(quantize(&killed, "4").status.success());
    for file in ["weights.npz", "manifest.json", "tokenizer.json"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(killed.join(file)).unwrap(), "{file}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    nothing_left_behind(root.path());
}
