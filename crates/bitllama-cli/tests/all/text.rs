//! Text as `bitllama eval` reads it: as `bitllama-train eval` does, to the same figures (`tests/text.rs`).

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::texts::{CHUNKS, assert_golden, json_lines, nano, same_documents, special};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

fn eval(text: &Path, flags: &[&str]) -> Output {
    let args = ["eval", "--artifact", &nano(), "--text", text.to_str().unwrap(), "--json"];
    Command::new(env!("CARGO_BIN_EXE_bitllama")).args([&args[..], &CHUNKS, flags].concat()).output().unwrap()
}

fn report(text: &Path, flags: &[&str]) -> Value {
    let output = eval(text, flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_form_of_file_gives_the_same_figure() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in same_documents() {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_golden(&report(&path, &[]), "documents");
    }
    let path = folder.path().join("packed.jsonl.GZ");
    let mut packed = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
    packed.write_all(json_lines("body").as_bytes()).unwrap();
    packed.finish().unwrap();
    assert_golden(&report(&path, &["--text-field", "body"]), "documents");
    let refused = String::from_utf8(eval(&path, &[]).stderr).unwrap();
    assert!(refused.contains("packed.jsonl.GZ:1: no field `text` (it has `id`, `body`)"), "{refused}");
}

#[test]
fn control_tokens_in_a_text_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("special.txt");
    fs::write(&path, special()).unwrap();
    assert_golden(&report(&path, &[]), "literal");
    assert_golden(&report(&path, &["--parse-special"]), "parsed");
}
