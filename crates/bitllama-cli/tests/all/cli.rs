//! The binary `bitllama` from outside: a whole round on a tiny artifact, and every way to get an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::testing::{byte_tokenizer, random_weight, tiny_config};
use bitllama_core::weights::specs;
use bitllama_core::{Activation, ActivationPlan, ModelConfig, Scheme};
use bitllama_formats::artifact::{Layout, write_trained};
use serde_json::Value;
use tempfile::TempDir;

fn bitllama(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitllama")).args(arguments).output().unwrap()
}

/// stdout of a command that must succeed.
fn succeeds(arguments: &[&str]) -> String {
    let output = bitllama(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one object on the one line of stdout.
fn json(arguments: &[&str]) -> Value {
    let stdout = succeeds(arguments);
    assert_eq!(stdout.trim_end().lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// The one line of stderr of a command that must fail, with no output beside.
fn fails(arguments: &[&str]) -> String {
    let output = bitllama(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
    stderr
}

/// A tiny model in four schemes and f32.
fn artifact(folder: &Path, layout: Layout) -> PathBuf {
    trained_artifact(folder, layout, &ActivationPlan::default())
}

/// As [`artifact`], of a student trained with rounded activations.
fn trained_artifact(folder: &Path, layout: Layout, activations: &ActivationPlan) -> PathBuf {
    let path = folder.join("tiny");
    let config = ModelConfig { tie_word_embeddings: false, ..tiny_config() };
    let weights = specs(&config).into_iter().map(|spec| {
        let scheme = match spec.name.as_str() {
            "embed_tokens.weight" => Some(Scheme::Int8),
            name if name.contains("mlp") => Some(Scheme::Ternary),
            name if name.contains("q_proj") => Some(Scheme::Binary),
            name if name.contains("k_proj") => Some(Scheme::Int4),
            _ => None,
        };
        let weight = random_weight(&spec, scheme, 1);
        Ok((spec, weight))
    });
    write_trained(&path, &config, weights, activations, &byte_tokenizer(), layout, serde_json::json!({})).unwrap();
    path
}

fn text_file(folder: &Path, text: &str) -> String {
    let path = folder.join("text.txt");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_artifact_is_run_evaluated_and_described() {
    let folder = TempDir::new().unwrap();
    let text = text_file(folder.path(), &"Though this be madness, yet there is method in't. ".repeat(3));
    let mut perplexities = Vec::new();
    for layout in [Layout::Packed, Layout::V2] {
        let place = TempDir::new().unwrap();
        let path = artifact(place.path(), layout);
        let path = path.to_str().unwrap();

        let run = ["run", "--artifact", path, "--prompt", "Hello", "-n", "12", "--threads", "1"];
        let answer = json(&[&run[..], &["--json"]].concat());
        let length = answer["tokens"].as_array().unwrap().len();
        assert!(length <= 12 && (length == 12 || answer["stop"] == "end_of_text"), "{answer}");
        assert_eq!(answer["prompt_tokens"], 5);
        assert!(answer["prompt_tokens_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(succeeds(&run), format!("{}\n", answer["text"].as_str().unwrap()));
        let warm = [&run[..], &["--temperature", "1", "--top-k", "40", "--top-p", "0.9", "--seed", "7"]].concat();
        assert_eq!(succeeds(&warm), succeeds(&warm));

        let eval = ["eval", "--artifact", path, "--text", &text, "--ctx", "32"];
        let score = json(&[&eval[..], &["--json"]].concat());
        assert_eq!((&score["chunks"], &score["tokens_scored"], &score["ctx"]), (&4.into(), &60.into(), &32.into()));
        assert!(score["perplexity"].as_f64().unwrap() > 1.0 && score["perplexity_error"].as_f64().unwrap() > 0.0);
        assert_eq!(json(&[&eval[..], &["--chunks", "2", "--json"]].concat())["chunks"], 2);
        assert!(succeeds(&eval).starts_with("perplexity "));
        perplexities.push(score["perplexity"].clone());

        let about = json(&["inspect", path, "--json"]);
        assert_eq!(about["architecture"]["hidden_size"], 16);
        let schemes = about["schemes"].as_array().unwrap();
        let names: Vec<&str> = schemes.iter().map(|scheme| scheme["scheme"].as_str().unwrap()).collect();
        assert_eq!(names, ["f32", "binary", "ternary", "int4", "int8"]);
        let ternary = &schemes[2];
        assert_eq!((&ternary["weights"], ternary["level_usage"].as_array().unwrap().len()), (&6.into(), 3));
        let shares = ternary["level_usage"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap());
        assert!((shares.sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(ternary["scale_min"].as_f64() > Some(0.0) && ternary["scale_max"].as_f64() < Some(1.0));
        let sum: u64 = schemes.iter().map(|scheme| scheme["bytes"].as_u64().unwrap()).sum();
        assert_eq!(about["bytes"], sum);
        let table = succeeds(&["inspect", path]);
        assert!(["ternary", "total", "hidden 16"].iter().all(|word| table.contains(word)), "{table}");
    }
    assert_eq!(perplexities[0], perplexities[1], "both layouts hold the same model");
}

#[test]
fn tasks_are_answered() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed);
    let text = text_file(folder.path(), &"Though this be madness, yet there is method in't. ".repeat(3));
    let task = folder.path().join("task.jsonl");
    let line = |answer| {
        format!(
            "{{ \"sentence\": \"So _ is.\", \"option1\": \"it\", \"option2\": \"he\", \"answer\": \"{answer}\" }}\n"
        )
    };
    fs::write(&task, line(1) + &line(2)).unwrap();
    let task = task.to_str().unwrap();
    let eval = ["eval", "--artifact", path.to_str().unwrap(), "--task", task];
    let found = json(&[&eval[..], &["--json"]].concat());
    assert!(found["perplexity"].is_null() && found["seconds"].is_number(), "{found}");
    let score = &found["tasks"][0];
    assert_eq!((&score["task"], &score["file"], &score["questions"]), (&"winogrande".into(), &task.into(), &2.into()));
    assert_eq!((&score["acc"], &score["acc_error"]), (&0.5.into(), &0.5.into()), "one sentence, both answers");
    let both = json(&[&eval[..], &["--text", &text, "--ctx", "32", "--limit", "1", "--json"]].concat());
    assert!(both["perplexity"].is_number() && both["ctx"] == 32 && both["tasks"][0]["questions"] == 1, "{both}");
    let lines =
        succeeds(&[&eval[..], &["--task", &format!("winogrande={task}"), "--text", &text, "--ctx", "32"]].concat());
    assert!(lines.starts_with("perplexity ") && lines.matches("| winogrande |").count() == 2, "{lines}");

    fs::write(task, line(3)).unwrap();
    let error = fails(&eval);
    assert!(error.contains("task.jsonl:1: answer 3 is none of the 2 choices, 1 to 2 (layout winogrande)"), "{error}");
    fs::write(task, line(1).replace("is.", &"is ".repeat(30))).unwrap();
    let error = fails(&eval);
    assert!(error.contains("task.jsonl:1: a choice has ") && error.contains("only 64"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = TempDir::new().unwrap();
    let text = text_file(folder.path(), "some text");
    let nowhere = folder.path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    for arguments in [
        &["run", "--artifact", nowhere, "--prompt", "a"][..],
        &["eval", "--artifact", nowhere, "--text", &text],
        &["inspect", nowhere],
        &["eval", "--artifact", nowhere, "--text", nowhere],
    ] {
        let error = fails(arguments);
        assert!(error.contains("nowhere"), "{error}");
    }
    let empty = folder.path().to_str().unwrap();
    let error = fails(&["run", "--artifact", empty, "--prompt", "a"]);
    assert!(error.contains(empty) && error.contains("manifest.json"), "{error}");
}

#[test]
fn texts_and_flags_that_make_no_sense_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed);
    let path = path.to_str().unwrap();
    let text = text_file(folder.path(), "");
    let eval = ["eval", "--artifact", path, "--text", &text, "--json"];
    let error = fails(&eval);
    assert!(error.contains("text.txt: no text in this file"), "{error}");
    fs::write(&text, "too short").unwrap();
    let error = fails(&eval);
    assert!(error.contains("text.txt") && error.contains("9 tokens") && error.contains("512"), "{error}");
    fs::write(&text, [0xff, 0xfe]).unwrap();
    assert!(fails(&eval).contains("text.txt"));
    fs::write(&text, "a".repeat(100)).unwrap();
    assert!(fails(&[&eval[..], &["--ctx", "96"]].concat()).contains("context of 64"));
    assert!(fails(&[&eval[..], &["--ctx", "2"]].concat()).contains("too short"));

    let run = ["run", "--artifact", path, "--prompt"];
    assert!(fails(&[&run[..], &["a", "--temperature=-1"]].concat()).contains("temperature"));
    assert!(fails(&[&run[..], &["a", "--temperature", "1", "--top-p", "2"]].concat()).contains("top-p"));
    assert!(fails(&[&run[..], &[&"a".repeat(80)]].concat()).contains("context of 64"));
    assert_eq!(bitllama(&[&run[..], &["a", "--threads", "0"]].concat()).status.code(), Some(2));
}

#[test]
fn a_damaged_artifact_is_an_error_of_one_line() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed);
    let npz = path.join("weights.npz");
    let whole = fs::read(&npz).unwrap();
    fs::write(&npz, &whole[..whole.len() / 2]).unwrap();
    assert!(fails(&["inspect", path.to_str().unwrap()]).contains("weights.npz"));
    fs::write(&npz, &whole).unwrap();
    fs::write(path.join("manifest.json"), "{").unwrap();
    assert!(fails(&["run", "--artifact", path.to_str().unwrap(), "--prompt", "a"]).contains("manifest.json"));
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed);
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitllama"))
        .args(["run", "--artifact", path.to_str().unwrap(), "--prompt", "a", "--temperature", "1", "-n", "60"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn models_and_shapes_are_timed() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed).display().to_string();
    let sizes = ["-p", "8", "-n", "4", "-r", "2", "-t", "1,2"];
    let report = json(&[&["bench", "--artifact", &path, "--json"], &sizes[..]].concat());
    assert_eq!(report["runs"].as_array().unwrap().len(), 2);
    assert!(report["first_token_seconds"].as_f64().unwrap() > 0.0 && report["bits_per_weight"].as_f64() > Some(1.0));
    for (run, threads) in report["runs"].as_array().unwrap().iter().zip([1, 2]) {
        assert_eq!(run["threads"], threads);
        let reads = run["read_bandwidth_samples"].as_array().unwrap();
        let between =
            |x: f64| reads.iter().any(|y| y.as_f64() <= Some(x)) && reads.iter().any(|y| y.as_f64() >= Some(x));
        assert!(reads.len() >= 9 && between(run["read_bandwidth"].as_f64().unwrap()), "{run}");
        for (test, name) in run["tests"].as_array().unwrap().iter().zip(["pp8", "tg4"]) {
            assert_eq!(test["test"], name);
            assert_eq!(test["tokens_per_second"]["samples"].as_array().unwrap().len(), 2);
            assert!(test["tokens_per_second"]["median"].as_f64().unwrap() > 0.0);
        }
    }
    let shape =
        ["bench", "--shape", "nano", "--scheme", "int4", "--embedding", "f32", "-s", "3", "--activations", "f32"];
    let table = succeeds(&[&shape[..], &["--kv", "int8", "-d", "5"], &sizes[..]].concat());
    assert!(table.contains("nano, random int4, embedding and head f32") && table.contains("tg4x3@d5"), "{table}");

    assert!(table.contains("the median of 12 beside the tests"), "{table}");

    assert!(fails(&["bench", "--shape", "tinyllama"]).contains("`tinyllama-1.1b`"));
    assert!(fails(&["bench", "--artifact", &path, "--quantize", "int4"]).contains("has its schemes already"));
    assert_eq!(bitllama(&["bench"]).status.code(), Some(2));
    assert_eq!(bitllama(&["bench", "--shape", "nano", "--scheme", "int7"]).status.code(), Some(2));
}

#[test]
fn random_weights_have_the_bits_of_their_groups() {
    let folder = TempDir::new().unwrap();
    // 64 x 64 and smaller matrices, whose panels are whole.
    let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true });
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let shape = ["bench", "--shape", path.to_str().unwrap(), "-p", "2", "-n", "2", "-r", "1", "-t", "1"];
    let bits = |flags: &[&str]| {
        let report = json(&[&shape[..], flags, &["--json"]].concat());
        let vectors = 3.0 * 64.0;
        let matrices = report["parameters"].as_f64().unwrap() - vectors;
        (report["bits_per_weight"].as_f64().unwrap() * (matrices + vectors) - 32.0 * vectors) / matrices
    };
    let near = |flags: &[&str], expected: f64| {
        let bits = bits(flags);
        assert!((bits - expected).abs() < 1e-9, "{flags:?}: {bits}, not {expected}");
    };
    near(&["--scheme", "int4", "--group-size", "64"], 4.0 + 32.0 / 64.0);
    near(&["--scheme", "int4", "--group-size", "64", "--scale-dtype", "f16"], 4.0 + 16.0 / 64.0);
    near(
        &["--scheme", "int4", "--group-size", "32", "--scale-dtype", "f16", "--zero-point"],
        4.0 + (16.0 + 32.0) / 32.0,
    );
    near(&["--scheme", "nf4", "--scale-dtype", "f16"], 4.0 + 16.0 / 64.0);
    let [layers, embedding] = [2.0 * (64.0 * 64.0 + 32.0 * 64.0) + 3.0 * 128.0 * 64.0, 256.0 * 64.0];
    let mixed = (layers * 2.25 + embedding * 8.25) / (layers + embedding);
    near(&["--scheme", "ternary", "--embedding", "int8", "--group-size", "64", "--scale-dtype", "f16"], mixed);
    assert_eq!(bits(&["--scheme", "int4", "--group-size", "0"]), bits(&["--scheme", "int4"]));

    let table = succeeds(
        &[&shape[..], &["--scheme", "int2", "--group-size", "64", "--zero-point", "--embedding", "int8"]].concat(),
    );
    assert!(
        table.contains("random int2 in groups of 64 with zero points, embedding and head int8 in groups of 64"),
        "{table}"
    );

    near(&["--gguf-type", "q4_0"], 4.5);
    near(&["--gguf-type", "Q5_1"], 6.0);
    near(&["--gguf-type", "q8_0", "--embedding", "f32"], (layers * 8.5 + embedding * 32.0) / (layers + embedding));
    let table = succeeds(&[&shape[..], &["--gguf-type", "iq4_nl", "--embedding", "int8"]].concat());
    assert!(table.contains("random IQ4_NL, embedding and head int8\n"), "{table}");
}

#[test]
fn a_student_is_run_as_it_was_trained_unless_told_otherwise() {
    let folder = TempDir::new().unwrap();
    let inputs = (0..2).map(|layer| (format!("layers.{layer}.self_attn.q_proj.weight"), Activation::Sign)).collect();
    let plan = ActivationPlan { inputs, kv_cache: Some(Activation::Int4) };
    let path = trained_artifact(folder.path(), Layout::Packed, &plan).display().to_string();
    let sizes = ["-p", "4", "-n", "2", "-r", "1", "-t", "1", "--json"];
    let bench = |flags: &[&str]| {
        let report = json(&[&["bench", "--artifact", &path][..], flags, &sizes].concat());
        [&report["activations"], &report["kv"]].map(|name| name.as_str().unwrap().to_string())
    };
    assert_eq!(bench(&[]), ["sign", "int4"]);
    assert_eq!(bench(&["--activations", "int8"]), ["int8", "int4"]);
    assert_eq!(bench(&["--kv", "f16"]), ["sign", "f16"]);
    let text = text_file(folder.path(), &"Though this be madness, yet there is method in't. ".repeat(3));
    let eval = |flags: &[&str]| {
        let eval = ["eval", "--artifact", &path, "--text", &text, "--ctx", "32", "--json"];
        json(&[&eval[..], flags].concat())["perplexity"].as_f64().unwrap()
    };
    let trained = eval(&[]);
    // The other matrices of this artifact were trained with inputs as they are.
    assert!(trained != eval(&["--activations", "f32"]) && trained != eval(&["--kv", "f32"]));
    assert_eq!(eval(&["--kv", "int4"]), trained);
    let about = json(&["inspect", &path, "--json"]);
    assert_eq!(about["activations"], "sign into 2 matrices, keys and values in int4");
    assert!(succeeds(&["inspect", &path]).contains("keys and values in int4"));
}

#[test]
fn the_instruction_set_can_be_chosen() {
    let folder = TempDir::new().unwrap();
    let path = artifact(folder.path(), Layout::Packed).display().to_string();
    let run = |isa: &str| {
        let arguments = ["run", "--artifact", &path, "--prompt", "Hello", "-n", "12", "--json"];
        Command::new(env!("CARGO_BIN_EXE_bitllama")).args(arguments).env("BITLLAMA_ISA", isa).output().unwrap()
    };
    let output = run("scalar");
    assert!(output.status.success());
    let text: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(text["prompt_tokens"], 5);
    for (isa, reason) in [("sse9", "unknown instruction set `sse9`"), ("neon", "this processor has no neon")] {
        let output = run(isa);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let expected = cfg!(not(target_arch = "aarch64")) || isa != "neon";
        assert!(!expected || (output.status.code() == Some(1) && stderr.contains(reason)), "{stderr}");
    }
}
