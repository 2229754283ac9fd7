//! What runs leave for other commands: state and scales of checkpoints, a teacher's cache, results of grids; questions of tasks.

use std::path::Path;

use bitllama_formats::scales;
use bitllama_runtime::evaluate::{Task, TaskFile};
use bitllama_train::grid::report;
use bitllama_train::teacher_cache::TeacherCache;
use bitllama_train::training::checkpoint::CheckpointState;
use serde_json::{Value, json};

use super::Group;
use super::edit::{at, copy, good, nested, write};

const CHECKPOINT: &str = "tests/fixtures/v0.1.0/run/checkpoints/step-000010";
const RESULTS: &str = "experiments/grid-quickstart/results.json";
const CACHE: &str = "tests/fuzz/corpus/teacher-index/index.json";

/// Tries changes of a JSON file, by pointer.
fn try_json(
    group: &mut Group,
    kind: &str,
    good_file: &str,
    read: impl Fn(&Path, &[u8]) -> anyhow::Result<()>,
    changes: Vec<(&str, &str, Value)>,
) {
    for (name, pointer, value) in changes {
        let mut json: Value = serde_json::from_slice(&good(good_file)).unwrap();
        *at(&mut json, pointer) = value;
        group.input(&format!("{kind}: {name}"), |folder| read(folder, json.to_string().as_bytes()));
    }
    let texts =
        [("empty", String::new()), ("no JSON", "hello".into()), ("a list", "[]".into()), ("deep", nested(100_000))];
    for (name, text) in texts {
        group.input(&format!("{kind}: {name}"), |folder| read(folder, text.as_bytes()));
    }
}

fn read_state(folder: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(folder, "state.json", bytes);
    Ok(CheckpointState::read(folder).map(drop)?)
}

fn read_results(folder: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(folder, report::RESULTS_FILE, bytes);
    report::read(folder).map(drop)
}

fn read_cache(folder: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    copy("tests/fuzz/corpus/teacher-rows", folder);
    write(folder, "index.json", bytes);
    let cache = TeacherCache::open(folder, None)?;
    cache.rows(0, cache.index.rows).map(drop)
}

/// Files of runs with something wrong in them.
pub fn runs(group: &mut Group) {
    let state = format!("{CHECKPOINT}/state.json");
    try_json(
        group,
        "state",
        &state,
        read_state,
        vec![
            ("newer version", "/format_version", json!(99)),
            ("no step", "/step", Value::Null),
            ("negative step", "/step", json!(-1)),
            ("perplexity as text", "/perplexity", json!("good")),
            ("long unknown scheme", "/bits/embed_tokens", json!("x".repeat(1 << 20))),
            ("unknown stage", "/stage", json!("int9")),
            ("bits as list", "/bits", json!([])),
            ("no fingerprint", "/fingerprint", Value::Null),
        ],
    );
    try_json(
        group,
        "results",
        RESULTS,
        read_results,
        vec![
            ("newer version", "/format_version", json!(2)),
            ("no teacher", "/teacher", Value::Null),
            ("cells as text", "/cells", json!("none")),
            ("seed as text", "/cells/0/seed", json!("zero")),
            ("figure that is no number", "/cells/0/bits_per_weight", Value::Null),
        ],
    );
    try_json(
        group,
        "teacher cache",
        CACHE,
        read_cache,
        vec![
            ("newer version", "/format_version", json!(9)),
            ("no tokens", "/top_k", json!(0)),
            ("more tokens than the vocabulary", "/top_k", json!(60)),
            ("huge tokens", "/top_k", json!(1u64 << 62)),
            ("huge rows", "/rows", json!(1u64 << 62)),
            ("no rows a part", "/rows_per_shard", json!(0)),
            ("rows whose product wraps", "/sequence_length", json!(2_147_483_647)),
            ("more rows than there are", "/rows", json!(4)),
            ("other rows", "/sequence_length", json!(5)),
            ("unknown type", "/dtype", json!("f12")),
            ("smaller vocabulary", "/vocab_size", json!(20)),
            ("no perplexity", "/evaluation/perplexity", Value::Null),
        ],
    );
    group.input("teacher cache: no index", |folder| TeacherCache::open(folder, None));
    group.input("teacher cache: more tokens than it has", |folder| {
        copy("tests/fuzz/corpus/teacher-rows", folder);
        write(folder, "index.json", good(CACHE));
        TeacherCache::open(folder, Some(4))
    });

    let mut try_scales = |name: &str, bytes: Vec<u8>| {
        group.input(&format!("scales: {name}"), |folder| scales::read(&write(folder, "scales.safetensors", bytes)));
    };
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    try_scales("empty", Vec::new());
    try_scales("no header", b"garbage!".to_vec());
    try_scales("cut", good(&format!("{CHECKPOINT}/scales.safetensors"))[..2000].to_vec());
    try_scales("another type", file(r#"{"a.scales":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]));
    try_scales("another name", file(r#"{"a.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]));
    let long = "x".repeat(1 << 20);
    try_scales(
        "a long name",
        file(&format!(r#"{{"{long}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#), &[0; 4]),
    );
    try_scales(
        "zero points alone",
        file(r#"{"a.zero_points":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]),
    );
}

/// Lines of tasks.
const LINES: [(&str, &str); 18] = [
    ("empty", ""),
    ("blank lines", "\n \n\n"),
    ("no JSON", "question: what?"),
    ("a list", "[1, 2]"),
    ("cut line", r#"{"goal": "a", "sol1""#),
    ("unknown fields", r#"{"question": "a"}"#),
    ("no label", r#"{"goal": "a", "sol1": "b", "sol2": "c"}"#),
    ("label outside", r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}"#),
    ("negative label", r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}"#),
    ("huge label", r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": -9223372036854775808}"#),
    ("label as list", r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": [0]}"#),
    ("solution as number", r#"{"goal": "a", "sol1": 1, "sol2": "c", "label": 0}"#),
    ("no endings", r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": [], "label": "0"}"#),
    ("endings as text", r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": "d", "label": "0"}"#),
    ("choices as list", r#"{"question": "a", "choices": ["b"], "answerKey": "A"}"#),
    ("labels without texts", r#"{"question": "a", "choices": {"text": ["b"], "label": ["A", "B"]}, "answerKey": "A"}"#),
    ("answer that is none", r#"{"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "LONG"}"#),
    ("gap that is not there", r#"{"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}"#),
];

/// Questions with something wrong in them.
pub fn tasks(group: &mut Group) {
    let mut try_lines = |name: &str, text: &[u8]| {
        group.input(name, |folder| {
            let path = write(folder, "task.jsonl", text);
            Task::read(&TaskFile { layout: None, path }, None)
        });
    };
    let good = r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 1}"#;
    for (name, text) in LINES {
        try_lines(name, text.replace("LONG", &"x".repeat(1 << 20)).as_bytes());
    }
    try_lines("second line", format!("{good}\n{{}}\n").as_bytes());
    try_lines(
        "second layout",
        format!("{good}\n{{\"question\": \"a\", \"passage\": \"b\", \"answer\": true}}\n").as_bytes(),
    );
    try_lines("deep", nested(100_000).as_bytes());
    try_lines("no UTF-8", b"{\"goal\": \"\xff\"}");
}
