//! Tokenizers of published models against the ids that their own files give (`tests/golden/make_tokenizers.py`).

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::super::testing::Writer;
use super::*;

const CUT: &str = include_str!("../../../../../tests/golden/tokenizers.json");

/// The tokenizer of a case: of the file that it names, or of metadata.
fn rebuild(case: &Value) -> Tokenizer {
    if let Some(path) = case["file"].as_str() {
        return tokenizer(&Gguf::open(Path::new(path)).unwrap()).unwrap();
    }
    let mut writer = Writer::new();
    for (key, value) in case["metadata"].as_object().unwrap() {
        match value {
            Value::String(text) => writer.text(key, text),
            Value::Bool(flag) => writer.bool(key, *flag),
            Value::Number(number) => writer.u32(key, number.as_u64().unwrap() as u32),
            Value::Array(items) if items[0].is_string() => {
                writer.texts(key, &items.iter().map(|item| item.as_str().unwrap()).collect::<Vec<_>>())
            }
            Value::Array(items) if key.ends_with("scores") => {
                writer.f32s(key, &items.iter().map(|item| item.as_f64().unwrap() as f32).collect::<Vec<_>>())
            }
            Value::Array(items) => {
                writer.i32s(key, &items.iter().map(|item| item.as_i64().unwrap() as i32).collect::<Vec<_>>())
            }
            _ => panic!("{key}"),
        };
    }
    let (_folder, path) = writer.file();
    tokenizer(&Gguf::open(&path).unwrap()).unwrap()
}

/// Texts of a case that give other ids or another decoded text than they should.
fn differing(case: &Value) -> Vec<String> {
    let tokenizer = rebuild(case);
    let texts = case["texts"].as_array().unwrap();
    let mut differing = Vec::new();
    for (i, text) in texts.iter().map(|text| text.as_str().unwrap()).enumerate() {
        let expected: Vec<u32> = serde_json::from_value(case["ids"][i].clone()).unwrap();
        let found = tokenizer.encode(text, case["bos"].as_bool().unwrap()).unwrap();
        if found.get_ids() != expected {
            differing.push(format!("{text:.200?}: {:?}, expected {expected:?}", found.get_ids()));
        } else if !case["decoded"].is_null() {
            let decoded = tokenizer.decode(&expected, false).unwrap();
            if decoded != case["decoded"][i].as_str().unwrap_or(text) {
                differing.push(format!("{text:.200?}: decoded as {decoded:.200?}"));
            }
        }
    }
    differing
}

#[test]
fn published_tokenizers_give_their_own_ids_and_texts() {
    let cases: Vec<Value> = serde_json::from_str(CUT).unwrap();
    assert!(cases.len() > 15);
    for case in cases {
        let differing = differing(&case);
        assert!(differing.is_empty(), "{}: {}", case["name"], differing.join("\n"));
    }
}

/// Whole vocabularies: `scripts/check-tokenizers.sh` puts cases into a folder and runs this.
#[test]
#[ignore = "needs the files of published tokenizers: scripts/check-tokenizers.sh"]
fn published_tokenizers_in_full() {
    let folder = std::env::var("BITLLAMA_TOKENIZERS").expect("the folder of scripts/check-tokenizers.sh");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut failed = false;
    for path in paths {
        let case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let start = Instant::now();
        let built = rebuild(&case).get_vocab_size(true);
        let seconds = start.elapsed().as_secs_f64();
        let (differing, texts) = (differing(&case), case["texts"].as_array().unwrap().len());
        let (name, equal) = (case["name"].as_str().unwrap(), texts - differing.len());
        println!("{name:24} {built:7} tokens, opened in {seconds:.1} s, {equal} of {texts} texts equal");
        differing.iter().for_each(|line| println!("    {line:.2000}"));
        failed |= !differing.is_empty();
    }
    assert!(!failed, "some tokenizers differ");
}
