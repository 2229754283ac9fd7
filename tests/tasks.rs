//! `eval --task`: multiple-choice tasks on models, checkpoints and artifacts.

mod common;

use std::fs;
use std::path::Path;

use common::{failure, root, short_run, succeed, succeed_json, train};
use serde_json::Value;

const NAMES: [&str; 5] = ["hellaswag", "arc", "piqa", "winogrande", "boolq"];

fn sample(name: &str) -> String {
    format!("tests/data/tasks/{name}.jsonl")
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(root().join("tests/golden/task_scores.json")).unwrap()).unwrap()
}

#[test]
fn a_model_answers_all_layouts() {
    let golden = golden();
    let files = NAMES.map(sample);
    let tasks = files.iter().flat_map(|file| ["--task", file]);
    let args: Vec<&str> = ["eval", "--model", "models/nano"].into_iter().chain(tasks).collect();
    let result = succeed_json(train(&args).arg("--json"));
    assert_eq!(result.as_object().unwrap().keys().collect::<Vec<_>>(), ["tasks"], "no text, no perplexity");
    let found = result["tasks"].as_array().unwrap();
    assert_eq!(found.len(), NAMES.len());
    for ((found, name), file) in found.iter().zip(NAMES).zip(&files) {
        assert_eq!((found["task"].as_str(), found["file"].as_str()), (Some(name), Some(&file[..])));
        for field in ["questions", "acc", "acc_error", "acc_norm", "acc_norm_error"] {
            let (found, expected) = (found[field].as_f64().unwrap(), golden[name][field].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-9, "{field} of {name}: {found}, {expected} expected");
        }
    }
    let table = succeed(&mut train(&args));
    assert_eq!(table.lines().count(), 2 + NAMES.len(), "{table}");
    let acc = format!("{:.2} ± ", 100.0 * golden["arc"]["acc"].as_f64().unwrap());
    assert!(table.contains("| arc ") && table.contains(&acc), "{table}");
}

#[test]
fn beside_a_text_and_on_the_first_questions_only() {
    let (text, task) = ("data/austen/sense-and-sensibility.txt", format!("piqa={}", sample("piqa")));
    let args = ["eval", "--model", "models/nano", "--text", text, "--ctx", "64", "--chunks", "2", "--json"];
    let alone = succeed_json(&mut train(&args));
    assert!(alone.get("tasks").is_none(), "{alone}");
    let both = succeed_json(train(&args).args(["--task", &task, "--limit", "5"]));
    assert_eq!((&both["perplexity"], &both["tasks"][0]["questions"]), (&alone["perplexity"], &5.into()));
    let beside = succeed_json(train(&args).args(["--task", &task, "--teacher", "models/nano"]));
    assert!(beside["mean_kld"].is_number() && beside["tasks"][0]["questions"] == 12, "{beside}");
}

#[test]
fn checkpoints_and_artifacts_answer_too() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = short_run(&run, &["train.steps=1"]);
    succeed(&mut train(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let of = |model: &Path| {
        let args = ["eval", "--model", model.to_str().unwrap(), "--task", &sample("hellaswag"), "--json"];
        succeed_json(&mut train(&args))["tasks"].clone()
    };
    let (checkpoint, artifact) = (of(&run), of(&run.join("artifact")));
    assert_eq!(checkpoint[0]["questions"], 12);
    assert_eq!(checkpoint, artifact, "the same rounded weights, by Burn and by the runtime");
}

#[test]
fn what_cannot_be_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    let of = |text: &str, task: &str| {
        fs::write(&path, text).unwrap();
        let args = ["eval", "--model", "models/nano", "--task", &format!("{task}{}", path.display())];
        failure(&train(&args).output().unwrap())
    };
    let good = fs::read_to_string(root().join(sample("piqa"))).unwrap();
    assert!(of("", "").ends_with("bad.jsonl: no question in this file"));
    assert!(of(&format!("{good}oops\n"), "").ends_with("bad.jsonl:13: no JSON object (column 1)"));
    let label = good.replacen("\"label\": 1", "\"label\": 2", 1);
    assert!(of(&label, "").ends_with("bad.jsonl:2: label 2 is none of the 2 choices, 0 to 1 (layout piqa)"));
    assert!(of(&good.replacen("goal", "aim", 1), "").ends_with("bad.jsonl:1: no field `goal` (layout piqa)"));
    assert!(of("{}", "boolq=").ends_with("bad.jsonl:1: no field `label` nor `answer` (layout boolq)"));
    let long = format!("{{ \"goal\": \"\", \"sol1\": \"\", \"sol2\": \"{}\", \"label\": 0 }}", "far ".repeat(600));
    let message = of(&long, "");
    assert!(message.contains("bad.jsonl:1: a choice has ") && message.contains("context only 512"), "{message}");
    assert!(!message.contains("panicked"), "{message}");

    let usage = |args: &[&str]| {
        let output = train(&[&["eval", "--model", "models/nano"], args].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(usage(&[]).contains("--text <FILE>"));
    let task = sample("piqa");
    assert!(usage(&["--task", &task, "--teacher", "models/nano"]).contains("--text <FILE>"));
    assert!(usage(&["--task", &task, "--ctx", "64"]).contains("--text <FILE>"));
    assert!(usage(&["--task", "squad=x.jsonl"]).contains("unknown layout `squad`"));
}
