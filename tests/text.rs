//! Text as every command of `bitllama-train` reads it: the same documents from every form of file, control tokens that are
//! text, and refusals.

mod common;
#[path = "common/texts.rs"]
mod texts;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{failure, short_run, succeed, succeed_json, train};
use texts::{CHUNKS, assert_golden, json_lines, nano, same_documents, special};

fn eval(text: &Path, flags: &[&str]) -> Command {
    train(&[&["eval", "--model", &nano(), "--text", text.to_str().unwrap(), "--json"], &CHUNKS[..], flags].concat())
}

/// A file in a folder.
fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// A short run on `files`, to its end: the line that it says of its text.
fn distill(folder: &Path, name: &str, files: &[&Path], sets: &[&str]) -> String {
    let args = run_args(&folder.join(name), files, sets);
    let output = train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said.lines().find(|line| line.contains(" tokens in ")).unwrap_or(&said).to_string()
}

fn run_args(run: &Path, files: &[&Path], sets: &[&str]) -> Vec<String> {
    let data = format!("data.train={files:?}");
    short_run(run, &[&[&data, "data.document_start=[]", "train.steps=0", "eval.chunks=1"], sets].concat())
}

#[test]
fn evaluation_reads_every_form_alike() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in same_documents() {
        assert_golden(&succeed_json(&mut eval(&write(folder.path(), name, bytes), &[])), "documents");
    }
    let other = write(folder.path(), "body.jsonl", json_lines("body"));
    assert_golden(&succeed_json(&mut eval(&other, &["--text-field", "body"])), "documents");
    let message = failure(&eval(&other, &[]).output().unwrap());
    assert!(
        message.ends_with(
            "body.jsonl:1: no field `text` (it has `id`, `body`): name the one that has the text with --text-field, or \
         data.text_field in a recipe"
        ),
        "{message}"
    );
}

#[test]
fn control_tokens_in_a_text_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = write(folder.path(), "special.txt", special());
    assert_golden(&succeed_json(&mut eval(&text, &[])), "literal");
    assert_golden(&succeed_json(&mut eval(&text, &["--parse-special"])), "parsed");

    // In training, too, and from a cache that both share. An EOS ends each document.
    let second = write(folder.path(), "second.txt", "more");
    let cache = format!("data.cache={}", folder.path().join("cache").display());
    for (name, sets, tokens) in [("a", vec![], 1690), ("b", vec!["data.parse_special=true"], 1450)] {
        let sets = [vec![&cache[..], "data.valid=[\"data/austen/pride-and-prejudice.txt\"]"], sets].concat();
        let said = distill(folder.path(), name, &[&text, &second], &sets);
        let tokens = tokens + 1 + tokens_of("more") + 1;
        assert!(said.contains(&format!("; {tokens} tokens in 2 documents to train on")), "{said}");
    }
}

/// Tokens of a short text of the small model.
fn tokens_of(text: &str) -> usize {
    let tokenizer = tokenizers::Tokenizer::from_file(Path::new(&nano()).join("tokenizer.json")).unwrap();
    tokenizer.encode(text, false).unwrap().len()
}

#[test]
fn training_and_calibration_read_every_form_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (mut said, mut rounded) = (Vec::new(), Vec::new());
    for (name, bytes) in same_documents() {
        let text = write(folder.path(), name, bytes);
        let output = folder.path().join(format!("{name}-artifact"));
        let args = ["quantize", "--model", &nano(), "--bits", "4", "--layers", "1", "--method", "importance"];
        let calibration =
            ["--calibration-tokens", "512", "--calibration-ctx", "64", "--calibration", text.to_str().unwrap()];
        succeed(&mut train(&[&args[..], &calibration, &["--output", output.to_str().unwrap()]].concat()));
        rounded.push(fs::read(output.join("weights.npz")).unwrap());
        if name != "plain.txt" {
            said.push(distill(folder.path(), &format!("{name}-run"), &[&text], &[]));
        }
    }
    assert!(rounded.iter().all(|weights| *weights == rounded[0]));
    assert!(said[0].contains(" tokens in 5 documents to train on, "), "{said:?}");
    let figures = |line: &String| line[line.find("parameters").unwrap()..].to_string();
    assert!(said.iter().all(|line| figures(line) == figures(&said[0])), "{said:?}");

    let unused = ["quantize", "--model", &nano(), "--bits", "4", "--output", "x", "--text-field", "body"];
    assert!(failure(&train(&unused).output().unwrap()).contains("--text-field and --parse-special are of no use"));
}

#[test]
fn what_is_no_text_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, end) in [
        (
            "chat.jsonl",
            &b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"[..],
            "chat.jsonl:1: chat data (`messages`), which is not read yet, and no field `text`: write each chat as a text",
        ),
        (
            "latin.txt",
            b"one\ncaf\xe9\n",
            "latin.txt: not UTF-8 at byte 7 (line 2): convert the file, for instance with iconv",
        ),
        (
            "wide.txt",
            b"\xff\xfeh\0i\0",
            "wide.txt: UTF-16 text: convert it, for instance with iconv -f UTF-16 -t UTF-8",
        ),
        (
            "a.parquet",
            b"PAR1",
            "a.parquet: .parquet is not read as text: write it as .jsonl or .txt (.gz and .zst may follow)",
        ),
        ("blank.md", b" \n", "blank.md: no text in this file"),
    ] {
        let path = write(folder.path(), name, bytes);
        let message = failure(&eval(&path, &[]).output().unwrap());
        assert!(message.ends_with(end), "{message}");
        let args = run_args(&folder.path().join("run"), &[&path], &[]);
        let message = failure(&train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
        assert!(message.ends_with(end), "{message}");
    }
    assert!(!folder.path().join("run").exists());
}

#[cfg(unix)]
#[test]
fn nothing_waits_for_a_pipe_or_runs_in_a_circle() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let started = Instant::now();
    let message = failure(&eval(&pipe, &[]).output().unwrap());
    assert!(message.ends_with(
        "pipe.txt: a pipe, socket or device, not a file: write its text to a file, or connect it and name /dev/stdin"
    ), "{message}");
    assert!(started.elapsed() < Duration::from_secs(20));

    // A pipe that was connected on purpose is read to its end.
    let plain = write(folder.path(), "plain.log", &same_documents()[0].1);
    let mut connected = eval(Path::new("/dev/stdin"), &[]);
    let mut writer = Command::new("cat").arg(&plain).stdout(Stdio::piped()).spawn().unwrap();
    assert_golden(&succeed_json(connected.stdin(writer.stdout.take().unwrap())), "documents");
    writer.wait().unwrap();

    let corpus = folder.path().join("corpus");
    fs::create_dir_all(corpus.join("deep")).unwrap();
    write(&corpus, "README.md", "not text");
    write(&corpus, "lines.jsonl", json_lines("text"));
    std::os::unix::fs::symlink(&corpus, corpus.join("deep/up")).unwrap();
    assert_golden(&succeed_json(&mut eval(&corpus, &[])), "documents");
    let said = distill(folder.path(), "run", &[&corpus], &[]);
    assert!(said.contains(" tokens in 5 documents to train on"), "{said}");
}
