//! Tokens that begin and end texts, and the files beside `tokenizer.json`. Right values are those of `transformers`
//! (`golden/make_token_cases.py`).

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bitllama_formats::companions::NAMES;
use bitllama_runtime::generate::{Stop, generate};
use bitllama_runtime::{GenerationOptions, Opened};
use common::{failure, root, run_json, short_run, succeed, succeed_json, train};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_slice(&fs::read(root().join("tests/golden/token_cases.json")).unwrap()).unwrap()
}

/// A copy of `models/nano` in `folder`.
fn nano(folder: &Path) -> PathBuf {
    let copy = folder.join("nano");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(root().join("models/nano")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Sets fields of a JSON file.
fn edit(path: &Path, changes: &Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    fs::write(path, json.to_string()).unwrap();
}

/// The template that puts `<|endoftext|>` in front, with a config that has no BOS.
fn with_template(model: &Path) {
    let case = &golden()["cases"]["template, config without BOS"];
    edit(&model.join("tokenizer.json"), &json!({ "post_processor": case["post_processor"] }));
    edit(&model.join("config.json"), &json!({ "bos_token_id": case["bos_token_id"] }));
}

/// Files as they are saved beside a chat model, spaces and line ends included.
fn with_companions(model: &Path) {
    let file = |name: &str, text: &str| fs::write(model.join(name), text).unwrap();
    file("chat_template.jinja", "{% for m in messages %}<|endoftext|>{{ m['content'] }}\r\n{% endfor %}");
    file("special_tokens_map.json", "{ \"eos_token\" : \"<|endoftext|>\" }");
    file("generation_config.json", "{\"eos_token_id\": [0, 7],\n\t\"temperature\": 0.7}");
    file("added_tokens.json", "{}");
    edit(&model.join("tokenizer_config.json"), &json!({ "extra_special_tokens": ["<|endoftext|>"], "é": null }));
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{}: {e}", folder.join(name).display()))
}

fn same_companions(written: &Path, source: &Path) {
    for name in NAMES.iter().filter(|name| source.join(name).exists()) {
        assert_eq!(bytes(written, name), bytes(source, name), "{name} in {}", written.display());
    }
}

#[test]
fn the_tokenizer_decides_on_the_bos_in_evaluation() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    let novel = fs::read_to_string(root().join("data/austen/sense-and-sensibility.txt")).unwrap();
    let text = folder.path().join("text.txt");
    let chars = golden["chars"].as_u64().unwrap() as usize;
    fs::write(&text, novel.chars().take(chars).collect::<String>()).unwrap();
    let ctx = golden["ctx"].to_string();
    for (name, case) in golden["cases"].as_object().unwrap() {
        let of_case = tempfile::tempdir_in(folder.path()).unwrap();
        let model = nano(of_case.path());
        edit(&model.join("tokenizer.json"), &json!({ "post_processor": case["post_processor"] }));
        edit(&model.join("tokenizer_config.json"), &case["tokenizer_config"]);
        edit(&model.join("config.json"), &json!({ "bos_token_id": case["bos_token_id"] }));
        let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
        let found = succeed_json(&mut train(&["eval", "--model", model, "--text", text, "--ctx", &ctx, "--json"]));
        let (found, right) = (found["perplexity"].as_f64().unwrap(), case["perplexity"].as_f64().unwrap());
        assert!((found / right - 1.0).abs() < 1e-4, "{name}: {found}, right is {right}");
        let tokenizer = bitllama_runtime::open(Path::new(model)).unwrap().tokenizer;
        let front: Vec<u32> = bitllama_runtime::text::own_bos(&tokenizer).unwrap().into_iter().collect();
        assert_eq!(json!(front), case["front"], "{name}");
    }
}

/// Generates greedily, as `bitllama run` does with `--exact` settings.
fn generated(model: &Path, prompt: &str) -> (Vec<u32>, Stop) {
    let Opened { decoder, tokenizer, .. } = bitllama_runtime::open(model).unwrap();
    let go_on = |_: &str| ControlFlow::Continue(());
    let options = GenerationOptions { max_tokens: 12, ..GenerationOptions::default() };
    let found = generate(&decoder, &tokenizer, prompt, &options, go_on).unwrap();
    (found.tokens, found.stop)
}

#[test]
fn a_generation_ends_where_the_generation_config_says_in_every_form_of_a_model() {
    let golden = &golden()["generation"];
    let prompt = golden["prompt"].as_str().unwrap();
    let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(golden[key].clone()).unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let model = nano(folder.path());
    assert_eq!(generated(&model, prompt), (tokens("whole"), Stop::MaxTokens));
    fs::write(model.join("generation_config.json"), json!({ "eos_token_id": [0, golden["end"]] }).to_string()).unwrap();
    // `transformers` gives the token that ended it, too.
    let mut ended = tokens("ended");
    assert_eq!(json!(ended.pop()), golden["end"]);
    assert_eq!(generated(&model, prompt), (ended.clone(), Stop::EndOfText));
    let artifact = folder.path().join("artifact");
    let (from, to) = (model.to_str().unwrap(), artifact.to_str().unwrap());
    succeed(&mut train(&["quantize", "--model", from, "--output", to, "--bits", "8"]));
    same_companions(&artifact, &model);
    assert_eq!(generated(&artifact, prompt), (ended, Stop::EndOfText));
    // A sampled corpus holds nothing behind it either.
    let corpus = folder.path().join("corpus.jsonl");
    let flags = ["--tokens", "200", "--length", "40", "--batch", "4", "--temperature", "0.5", "--json"];
    let args = [&["generate-data", "--model", from, "--output", corpus.to_str().unwrap()], &flags[..]].concat();
    assert!(succeed_json(&mut train(&args))["documents"].as_u64().unwrap() > 5, "documents end before their limit");
}

#[test]
fn a_run_trains_with_the_tokenizers_bos_and_keeps_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = nano(folder.path());
    with_template(&teacher);
    with_companions(&teacher);
    let run = folder.path().join("run");
    let named = format!("teacher.model={}", teacher.display());
    let sets = ["train.steps=2", "train.warmup_steps=1", "train.checkpoint_every=1", "eval.chunks=1", &named];
    run_json(&short_run(&run, &sets));
    // Each document begins with BOS and ends with EOS, which are the same token in this model.
    let cache = run.with_extension("cache");
    let shards: Vec<PathBuf> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    let tokens = shards.iter().filter(|path| path.extension().is_some_and(|e| e == "tokens"));
    for shard in tokens {
        let ids: Vec<u32> = fs::read(shard).unwrap().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        assert_eq!((ids.first(), ids.last()), (Some(&0), Some(&0)), "{}", shard.display());
        assert_ne!(ids[1], 0);
    }
    let checkpoint = run.join("checkpoints/step-000002");
    same_companions(&checkpoint, &teacher);
    same_companions(&run.join("artifact"), &teacher);

    let mut resumed = short_run(&run, &sets);
    resumed.extend(["--resume", "--set", "train.steps=3"].map(String::from));
    run_json(&resumed);
    same_companions(&run.join("checkpoints/step-000003"), &teacher);
    let exported = folder.path().join("hf");
    let (from, to) = (checkpoint.to_str().unwrap(), exported.to_str().unwrap());
    succeed(&mut train(&["export", "--checkpoint", from, "--output", to, "--layout", "hf"]));
    same_companions(&exported, &teacher);
    // What was read from the written files is what the teacher's said.
    let config = |path: &Path| bitllama_formats::model::open(path).unwrap().config;
    assert_eq!(config(&exported).end_token_ids, config(&teacher).end_token_ids);
    assert_eq!(config(&exported).eos_token_ids, [0]);
}

#[test]
fn a_student_with_a_tokenizer_of_its_own_brings_what_lies_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let own = nano(folder.path());
    with_companions(&own);
    let run = folder.path().join("run");
    let set = |text: String| ["--set".to_string(), text];
    let mut args = ["pretrain", "--config", "recipes/pretrain-nano.toml"].map(String::from).to_vec();
    for text in [
        format!("output={}", run.display()),
        format!("data.cache={}", run.with_extension("cache").display()),
        format!("student.tokenizer={}", own.join("tokenizer.json").display()),
        "data.sequence_length=32".into(),
        "train.steps=1".into(),
        "train.batch_size=2".into(),
        "train.warmup_steps=0".into(),
        "eval.chunks=1".into(),
    ] {
        args.extend(set(text));
    }
    run_json(&args);
    same_companions(&run.join("model"), &own);
    same_companions(&run.join("checkpoints/step-000001"), &own);
}

#[test]
fn a_hostile_tokenizer_is_one_line_that_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = nano(folder.path());
    let path = model.to_str().unwrap();
    let step = json!({ "type": "Replace", "pattern": { "String": "e" }, "content": "ee" });
    let bomb = json!({ "type": "Sequence", "normalizers": vec![step; 40] });
    edit(&model.join("tokenizer.json"), &json!({ "normalizer": bomb }));
    let artifact = folder.path().join("artifact");
    let commands: [&[&str]; 3] = [
        &["eval", "--model", path, "--text", "data/austen/pride-and-prejudice.txt"],
        &["quantize", "--model", path, "--output", artifact.to_str().unwrap(), "--bits", "4"],
        &["generate-data", "--model", path, "--output", "/nowhere", "--tokens", "9"],
    ];
    for command in commands {
        let message = failure(&train(command).output().unwrap());
        assert!(message.contains("nano/tokenizer.json: the normalizer makes"), "{message}");
    }
    fs::write(model.join("tokenizer.json"), bytes(&root().join("models/nano"), "tokenizer.json")).unwrap();
    fs::write(model.join("generation_config.json"), "{\"eos_token_id\": 5000}").unwrap();
    let message = failure(&train(commands[0]).output().unwrap());
    let words = "generation_config.json: EOS 5000 is outside the vocabulary of 1024 tokens";
    assert!(message.contains(words), "{message}");
}
