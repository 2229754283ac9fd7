//! A model is its content: what a teacher replaced under its name is refused for, and damage that is noticed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{failure, metrics, root, run_json, short_run, succeed, train};
use serde_json::Value;

/// A copy of the small teacher.
fn copy_of_nano(folder: &Path, name: &str) -> PathBuf {
    let copy = folder.join(name);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(root().join("models/nano")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Changes one bit of a file; its size stays. In weights it is one of the lowest of a number's.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn weights(model: &Path) -> PathBuf {
    model.join("model.safetensors")
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn command(args: &[String], more: &[&str]) -> Command {
    train(&[&strs(args)[..], more].concat())
}

fn refusal(mut command: Command) -> String {
    failure(&command.output().unwrap())
}

/// What a command that succeeds says on standard error.
fn notes(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn set(key: &str, value: &Path) -> String {
    format!("{key}={}", value.display())
}

/// Rewrites a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key).unwrap();
}

#[test]
fn a_teacher_replaced_in_place_is_another_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let (run, cache) = (folder.path().join("run"), set("teacher.cache", &folder.path().join("tc")));
    let teacher = copy_of_nano(folder.path(), "m");
    let of = |run: &Path, teacher: &Path, more: &[&str]| {
        short_run(
            run,
            &[&[set("teacher.model", teacher).as_str(), "distill.top_k=8", "train.steps=3"][..], more].concat(),
        )
    };
    let cached = |teacher: &Path, flags: &[&str]| {
        let args = of(&run, teacher, &[&cache]);
        train(&[&["cache-teacher"], &strs(&args)[1..], flags].concat())
    };
    succeed(&mut cached(&teacher, &[]));
    run_json(&of(&run, &teacher, &[&cache]));

    // Written again with the same content, and copied elsewhere: the same teacher.
    let bytes = fs::read(weights(&teacher)).unwrap();
    fs::write(weights(&teacher), &bytes).unwrap();
    let moved = copy_of_nano(folder.path(), "moved");
    for same in [&teacher, &moved] {
        let said = notes(command(&of(&run, same, &[&cache]), &["--resume"]));
        assert!(!said.contains("note:"), "{said}");
        assert!(!notes(cached(same, &[])).contains("note:"));
    }

    flip(&weights(&teacher));
    let other = folder.path().join("other");
    let message = refusal(command(&of(&other, &teacher, &[&cache]), &[]));
    assert!(message.contains("tc: made with another teacher, not with what "), "{message}");
    assert!(message.contains(&format!("{} holds now", teacher.display())), "{message}");
    assert!(message.ends_with("`cache-teacher --overwrite` with this recipe makes a new one"), "{message}");
    assert!(!other.exists());
    let message = refusal(cached(&teacher, &[]));
    assert!(message.contains("tc: holds a cache of another teacher; `--overwrite` replaces it"), "{message}");
    let message = refusal(command(&of(&run, &teacher, &[]), &["--resume"]));
    let expected = format!("made with another teacher ({} has other content now)", teacher.display());
    assert!(message.contains("step-000003") && message.contains(&expected), "{message}");
    succeed(&mut cached(&teacher, &["--overwrite"]));
    run_json(&of(&other, &teacher, &[&cache]));

    // So does the model that the student starts from, and the tokenizer of either.
    let start = set("student.model", &moved);
    let third = folder.path().join("third");
    run_json(&of(&third, &teacher, &[&start]));
    notes(command(&of(&third, &teacher, &[&start]), &["--resume"]));
    flip(&weights(&moved));
    let message = refusal(command(&of(&third, &teacher, &[&start]), &["--resume"]));
    assert!(message.contains("another student.model (") && message.contains("moved has other content"), "{message}");
    flip(&weights(&moved));
    fs::write(moved.join("tokenizer_config.json"), "{}").unwrap();
    let message = refusal(command(&of(&third, &teacher, &[&start]), &["--resume"]));
    assert!(message.contains("another student.model ("), "{message}");
}

const LSQ: &str = "bits.layers.*={ scheme = \"int4\", method = \"lsq\" }";

#[test]
fn a_start_is_kept_by_the_content_of_its_models() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, teacher) = (folder.path().join("starts"), copy_of_nano(folder.path(), "m"));
    let cache = set("quant.cache", &kept);
    let run = |name: &str, teacher: &Path| {
        let teacher = set("teacher.model", teacher);
        let sets = [
            &teacher,
            &cache,
            "quant.init=gptq",
            "quant.calibration_tokens=256",
            "train.steps=1",
            LSQ,
            "bits.embed_tokens=f32",
        ];
        let output = folder.path().join(name);
        let said = notes(command(&short_run(&output, &sets), &[]));
        (fs::read(output.join("artifact/weights.npz")).unwrap(), said)
    };
    let files = || {
        let mut files: Vec<PathBuf> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        files
    };
    let (first, _) = run("first", &teacher);
    let [start] = &files()[..] else { panic!("{:?}", files()) };
    let whole = fs::read(start).unwrap();
    assert!(run("second", &copy_of_nano(folder.path(), "moved")).0 == first);
    assert_eq!(files().len(), 1, "the same content starts the same");

    // A damaged one is found again.
    flip(start);
    let (again, said) = run("damaged", &teacher);
    assert!(again == first && fs::read(start).unwrap() == whole);
    let name = start.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&format!("{name}: damaged")) && said.contains("it is made again"), "{said}");

    flip(&weights(&teacher));
    run("replaced", &teacher);
    assert_eq!(files().len(), 2, "another teacher starts anew");
}

#[test]
fn a_corpus_goes_on_with_the_same_model_only() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (copy_of_nano(folder.path(), "m"), folder.path().join("corpus.jsonl"));
    let make = |model: &Path, tokens: &str| {
        let mut command = train(&["generate-data", "--length", "16", "--batch", "4", "--tokens", tokens]);
        command.arg("--model").arg(model).arg("--output").arg(&file);
        command
    };
    succeed(&mut make(&model, "50"));
    let begun = fs::read(&file).unwrap();
    let moved = copy_of_nano(folder.path(), "moved");
    assert!(!notes(make(&moved, "150")).contains("note:"));
    assert!(fs::read(&file).unwrap().starts_with(&begun));

    let origin = folder.path().join("corpus.jsonl.origin.json");
    edit(&origin, |origin| remove(origin, "model_sha256"));
    let said = notes(make(&moved, "200"));
    assert!(said.contains("corpus.jsonl: begun by version 0.1.0"), "{said}");
    edit(&origin, |origin| remove(origin, "model_sha256"));
    assert!(refusal(make(&model, "250")).contains("by another model"), "its path is all that is known");
    edit(&origin, |origin| origin["model_sha256"] = "0".into());
    let message = refusal(make(&model, "250"));
    assert!(message.contains("corpus.jsonl: was made by another model than this is now"), "{message}");
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_last_good_one_used() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    let of = |run: &Path, more: &[&str]| {
        short_run(run, &[&["train.checkpoint_every=2", "train.keep_checkpoints=3"], more].concat())
    };
    run_json(&of(&whole, &["train.steps=8"]));
    let args = of(&run, &["train.steps=6"]);
    run_json(&args);
    let checkpoint = |step: usize| run.join(format!("checkpoints/step-{step:06}"));
    let longer = of(&run, &["train.steps=8"]);

    // One bit of the weights; a file of the state that is gone.
    flip(&weights(&checkpoint(6)));
    fs::remove_file(checkpoint(4).join("optimizer.bpk")).unwrap();
    let said = notes(command(&longer, &["--resume"]));
    let instead = format!("note: {}: the newest checkpoint that is whole; ", checkpoint(2).display());
    let damaged = format!("{}: damaged: its SHA-256 is not that of SHA256SUMS", weights(&checkpoint(6)).display());
    let gone = format!("{}: missing, though SHA256SUMS lists it", checkpoint(4).join("optimizer.bpk").display());
    assert!(said.contains(&(instead.clone() + &damaged)) && said.contains(&(instead + &gone)), "{said}");
    assert_eq!(metrics(&whole), metrics(&run), "the run that was not damaged");
    let artifact = |run: &Path| fs::read(run.join("artifact/weights.npz")).unwrap();
    assert!(artifact(&whole) == artifact(&run));

    // The best is never quietly another: by its own damage, by that of the newest, or if it is gone.
    let export = || {
        refusal(train(&[
            "export",
            "--checkpoint",
            run.to_str().unwrap(),
            "--output",
            folder.path().join("e").to_str().unwrap(),
        ]))
    };
    let state: Value = serde_json::from_slice(&fs::read(checkpoint(8).join("state.json")).unwrap()).unwrap();
    let best = checkpoint(state["best"]["step"].as_u64().unwrap() as usize);
    flip(&best.join("scales.safetensors"));
    let message = export();
    assert!(message.contains(best.join("scales.safetensors").to_str().unwrap()), "{message}");
    assert!(message.contains("the best checkpoint of the run is not known"), "{message}");
    flip(&best.join("scales.safetensors"));
    flip(&checkpoint(8).join("state.json"));
    assert!(export().contains("step-000008/state.json: damaged"), "{}", export());
    flip(&checkpoint(8).join("state.json"));
    for step in [6, 8] {
        flip(&weights(&checkpoint(step)));
    }
    fs::remove_file(checkpoint(4).join("state.json")).unwrap();
    let message = refusal(command(&longer, &["--resume"]));
    assert!(message.contains("step-000008/model.safetensors: damaged"), "{message}");
    assert!(message.contains("no checkpoint of the run is whole"), "{message}");
}

#[test]
fn damaged_caches_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (tc, tokens) = (folder.path().join("tc"), folder.path().join("tokens"));
    let sets = [set("teacher.cache", &tc), set("data.cache", &tokens), "distill.top_k=8".into()];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let of = |name: &str| short_run(&folder.path().join(name), &sets);
    let cached = || train(&[&["cache-teacher"], &strs(&of("none"))[1..]].concat());
    let shard = tc.join("rows-000000.bin");
    succeed(&mut cached());
    let whole = fs::read(&shard).unwrap();
    run_json(&of("first"));

    flip(&shard);
    let message = refusal(command(&of("damaged"), &[]));
    assert!(
        message.contains(&format!("{}: damaged", shard.display())) && message.contains("`cache-teacher`"),
        "{message}"
    );
    assert!(!folder.path().join("damaged").exists());
    let said = notes(cached());
    assert!(said.contains(&format!("note: {}: damaged", shard.display())), "{said}");
    assert!(fs::read(&shard).unwrap() == whole);

    for entry in fs::read_dir(&tokens).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "tokens") {
            flip(&path);
        }
    }
    run_json(&of("second"));
    assert_eq!(metrics(&folder.path().join("first")), metrics(&folder.path().join("second")));
}

#[test]
fn what_version_0_1_0_left_is_gone_on_with_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let (run, tc, teacher) = (folder.path().join("run"), folder.path().join("tc"), copy_of_nano(folder.path(), "m"));
    let cache = set("teacher.cache", &tc);
    let of = |teacher: &Path, more: &[&str]| {
        short_run(
            &run,
            &[&[set("teacher.model", teacher).as_str(), "distill.top_k=8", "train.steps=3", &cache][..], more].concat(),
        )
    };
    let cached = || train(&[&["cache-teacher"], &strs(&of(&teacher, &["train.steps=4"]))[1..]].concat());
    succeed(&mut cached());
    run_json(&of(&teacher, &[]));

    // As 0.1.0 wrote them: no checksums, no record, and of the teacher its path and size.
    let checkpoint = run.join("checkpoints/step-000003");
    let old_checkpoint = || {
        fs::remove_file(checkpoint.join("SHA256SUMS")).unwrap();
        edit(&checkpoint.join("state.json"), |state| {
            remove(&mut state["fingerprint"]["teacher"], "sha256");
            remove(&mut state["fingerprint"], "student.model");
        });
    };
    let shard = tc.join("rows-000000.bin");
    let old_cache = || {
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, &bytes[..bytes.len() - 32]).unwrap();
        fs::remove_file(tc.join(".bitllama-record")).unwrap();
        edit(&tc.join("index.json"), |index| {
            index["format_version"] = 1.into();
            remove(&mut index["teacher"], "sha256");
        });
    };
    old_checkpoint();
    old_cache();
    let said = notes(command(&of(&teacher, &["train.steps=4"]), &["--resume"]));
    assert!(
        said.contains("step-000003: made by version 0.1.0, which knew the teacher by path and size only"),
        "{said}"
    );
    assert!(said.contains("tc: made by version 0.1.0") && said.contains("`cache-teacher`"), "{said}");
    let said = notes(command(&of(&teacher, &["train.steps=4"]), &["--resume"]));
    assert!(!said.contains("step-000004: made by"), "the checkpoint of now has a hash: {said}");
    succeed(&mut cached());
    let said = notes(command(&of(&teacher, &["train.steps=4"]), &["--resume"]));
    assert!(!said.contains("note:"), "the same perplexity tells that the teacher is: {said}");

    // Another size or place is another teacher, and so is one of another perplexity.
    edit(&tc.join("index.json"), |index| remove(&mut index["teacher"], "sha256"));
    let moved = copy_of_nano(folder.path(), "moved");
    assert!(refusal(command(&of(&moved, &[]), &["--resume"])).contains("tc: made with another teacher"));
    flip(&weights(&teacher));
    let message = refusal(cached());
    assert!(message.contains("`--overwrite` replaces it"), "{message}");
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused_before_any_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_nano(folder.path(), "m");
    // As many tokens as the vocabulary, but with a gap in their numbers.
    edit(&model.join("tokenizer.json"), |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (last, _) = vocab.iter().max_by_key(|(_, id)| id.as_u64()).map(|(t, id)| (t.clone(), id.clone())).unwrap();
        vocab.insert(last, 5000.into());
    });
    let model = model.to_str().unwrap();
    let artifact = folder.path().join("a");
    let artifact = artifact.to_str().unwrap();
    let text = "data/austen/sense-and-sensibility.txt";
    for args in [
        &["eval", "--model", model, "--text", text, "--ctx", "64"][..],
        &["quantize", "--model", model, "--bits", "4", "--method", "gptq", "--calibration", text, "--output", artifact],
        &["generate-data", "--model", model, "--tokens", "10", "--output", artifact],
    ] {
        let message = refusal(train(args));
        assert!(message.contains("of id 5000, but the model's vocab_size is 1024"), "{message}");
    }
    let run = folder.path().join("run");
    let message = refusal(command(&short_run(&run, &[&set("teacher.model", Path::new(model))]), &[]));
    assert!(message.contains("of id 5000"), "{message}");
    assert!(!run.exists() && !Path::new(artifact).exists());
}

#[test]
fn a_grid_does_not_mix_teachers() {
    let folder = tempfile::tempdir().unwrap();
    let (teacher, grid) = (copy_of_nano(folder.path(), "m"), folder.path().join("grid.toml"));
    let output = folder.path().join("grid");
    let run = |teacher: &Path, only: &str| {
        let text = format!(
            "recipe = \"recipes/quickstart.toml\"\noutput = {output:?}\nset = {{ \"teacher.model\" = {teacher:?}, \
             \"train.steps\" = 2, \"train.batch_size\" = 2, \"data.sequence_length\" = 32, \"eval.chunks\" = 2, \
             \"train.checkpoint_every\" = 2, \"data.cache\" = {cache:?} }}\n\
             [schemes.int4]\nset = {{ \"bits.layers.*\" = \"int4\" }}\n[schemes.int8]\nset = {{ \"bits.layers.*\" = \"int8\" }}\n\
             [methods.distill]\nset = {{ \"distill.top_k\" = 8 }}\n\
             [eval]\ntexts = {{ s = \"data/austen/sense-and-sensibility.txt\" }}\nctx = 64\nchunks = 2\n\
             [bench]\nprompt = 4\ngenerate = 2\nrepetitions = 1\n",
            cache = folder.path().join("tokens"),
        );
        fs::write(&grid, text).unwrap();
        let output = train(&["grid", "--config", grid.to_str().unwrap(), "--only", only]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let caches = || fs::read_dir(output.join("teacher-cache")).map_or(0, |entries| entries.count());
    let (done, said) = run(&teacher, "int4/*");
    assert!(done && caches() == 1, "{said}");
    let (done, said) = run(&copy_of_nano(folder.path(), "moved"), "int4/*");
    assert!(done && said.contains("1 of them finished"), "{said}");
    flip(&weights(&teacher));
    let (done, said) = run(&teacher, "int4/*");
    assert!(!done && said.contains("int4/distill/seed-0 failed"), "{said}");
    assert!(said.contains("made with another teacher than the grid has now"), "{said}");
    let (done, said) = run(&teacher, "int8/*");
    assert!(done && caches() == 2, "what the old teacher left is not learned from: {said}");
}
