//! Texts whose figures are in `tests/golden/text_cases.json`, put together as `make_text_cases.py` does, in files of many kinds.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The model that the figures are of.
pub fn nano() -> String {
    root().join("models/nano").to_str().unwrap().to_string()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Flags of the evaluations behind the figures.
pub const CHUNKS: [&str; 4] = ["--ctx", "64", "--chunks", "6"];

/// Perplexity of a case.
pub fn golden(case: &str) -> f64 {
    let cases: Value = serde_json::from_str(include_str!("../golden/text_cases.json")).unwrap();
    cases[case]["perplexity"].as_f64().unwrap()
}

/// Whether a command's `--json` has the perplexity of a case.
#[track_caller]
pub fn assert_golden(report: &Value, case: &str) {
    let (found, wanted) = (report["perplexity"].as_f64().unwrap(), golden(case));
    assert!((found / wanted - 1.0).abs() < 1e-3, "{found}, not {wanted} ({case})");
}

/// Sixty lines of a book.
pub fn lines() -> Vec<String> {
    let book = std::fs::read_to_string(root().join("data/austen/sense-and-sensibility.txt")).unwrap();
    book.split('\n').filter(|line| !line.trim().is_empty()).skip(40).take(60).map(String::from).collect()
}

/// They, every other one with a control token spelled at its end: case `literal`, or `parsed`.
pub fn special() -> String {
    let end = |number: usize| if number % 2 == 1 { "<|endoftext|>" } else { "" };
    let lines: Vec<String> =
        lines().iter().enumerate().map(|(number, line)| format!("{line}{}", end(number))).collect();
    lines.join("\n")
}

/// They as six documents: case `documents`.
pub fn parts() -> Vec<String> {
    lines().chunks(10).map(|lines| lines.join("\n")).collect()
}

/// They as JSON lines.
pub fn json_lines(field: &str) -> String {
    parts().iter().map(|part| json!({ "id": 7, field: part }).to_string() + "\n").collect()
}

/// Bytes of files that all hold these documents, by name; the text field is `text`.
pub fn same_documents() -> Vec<(&'static str, Vec<u8>)> {
    let array: Vec<Value> = parts().iter().map(|part| json!({ "text": part })).collect();
    vec![
        ("plain.txt", parts().iter().map(|part| part.trim()).collect::<Vec<_>>().join("\n\n").into_bytes()),
        ("lines.jsonl", json_lines("text").into_bytes()),
        ("UPPER.JSONL", json_lines("text").into_bytes()),
        ("mark.ndjson", format!("\u{feff}{}", json_lines("text")).into_bytes()),
        ("array.json", serde_json::to_vec_pretty(&array).unwrap()),
    ]
}
