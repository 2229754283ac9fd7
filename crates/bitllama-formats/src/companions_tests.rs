use std::fs;

use serde_json::json;

use super::*;
use crate::hf;

/// The tokenizer of `models/nano`, whose one special token is `<|endoftext|>`.
fn tokenizer() -> Tokenizer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    hf::read_tokenizer(&root.join(hf::TOKENIZER)).unwrap()
}

fn config() -> ModelConfig {
    hf::read_config(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano/config.json")).unwrap()
}

fn read(files: &[(&str, Value)]) -> Result<(Companions, ModelConfig)> {
    let folder = tempfile::tempdir().unwrap();
    for (name, json) in files {
        fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    let companions = Companions::read(folder.path())?;
    let mut config = config();
    companions.complete(&mut config, &tokenizer())?;
    Ok((companions, config))
}

fn ids(files: &[(&str, Value)]) -> (Vec<u32>, Vec<u32>) {
    let (_, config) = read(files).unwrap();
    (config.eos_token_ids, config.end_token_ids)
}

#[test]
fn the_tokenizers_eos_ends_documents_and_the_generation_config_ends_generations_only() {
    let the = tokenizer().token_to_id("the").unwrap();
    assert_eq!(ids(&[]), (vec![0], vec![]));
    assert_eq!(ids(&[(GENERATION_CONFIG, json!({ "eos_token_id": [0, 5], "temperature": 0.7 }))]), (vec![0], vec![5]));
    assert_eq!(ids(&[(GENERATION_CONFIG, json!({ "eos_token_id": 7 }))]), (vec![0], vec![7]));
    assert_eq!(ids(&[(GENERATION_CONFIG, json!({ "eos_token_id": null }))]), (vec![0], vec![]));
    for text in [json!("the"), json!({ "content": "the", "lstrip": false })] {
        assert_eq!(ids(&[(TOKENIZER_CONFIG, json!({ "eos_token": text }))]), (vec![the, 0], vec![]));
        assert_eq!(ids(&[(SPECIAL_TOKENS, json!({ "eos_token": text }))]), (vec![the, 0], vec![]));
    }
    // The newer file counts, and nothing is no token.
    let both =
        [(TOKENIZER_CONFIG, json!({ "eos_token": "<|endoftext|>" })), (SPECIAL_TOKENS, json!({ "eos_token": "the" }))];
    assert_eq!(ids(&both), (vec![0], vec![]));
    for none in [json!({ "eos_token": null }), json!({ "eos_token": "" }), json!({})] {
        assert_eq!(ids(&[(TOKENIZER_CONFIG, none)]), (vec![0], vec![]));
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_the_name_of_its_file() {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let faults = [
        (GENERATION_CONFIG, json!({ "eos_token_id": 1024 }), "EOS 1024 is outside the vocabulary of 1024 tokens"),
        (GENERATION_CONFIG, json!({ "eos_token_id": "2" }), "eos_token_id is neither a token id nor a list of them"),
        (GENERATION_CONFIG, json!({ "eos_token_id": [-1] }), "eos_token_id is neither a token id nor a list of them"),
        (GENERATION_CONFIG, deep, "is damaged"),
        (TOKENIZER_CONFIG, json!([]), "is damaged"),
        (TOKENIZER_CONFIG, json!({ "eos_token": 2 }), "eos_token is neither a text nor an object with `content`"),
        (TOKENIZER_CONFIG, json!({ "eos_token": "no such" }), "eos_token is \"no such\", which the vocabulary"),
        (SPECIAL_TOKENS, json!({ "eos_token": "x".repeat(999) }), "xxx..\", which the vocabulary"),
    ];
    for (name, json, words) in faults {
        let message = read(&[(name, json)]).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(words) && !message.contains('\n'), "{message}");
        assert!(message.len() < 300, "{message}");
    }
}

#[test]
fn companions_stay_as_they_are_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        fs::write(folder.path().join(name), format!(" {{ \"of\" : \"{name}\",\r\n \"eos_token_id\": 3 }}")).unwrap();
    }
    fs::write(folder.path().join("merges.txt"), "a b").unwrap();
    let companions = Companions::read(folder.path()).unwrap();
    let written = tempfile::tempdir().unwrap();
    let files = TokenizerFiles { tokenizer: &tokenizer(), companions: Some(&companions) };
    files.write_companions(written.path(), &config()).unwrap();
    for name in NAMES {
        let bytes = |folder: &Path| fs::read(folder.join(name)).unwrap();
        assert_eq!(bytes(written.path()), bytes(folder.path()), "{name}");
    }
    assert_eq!(fs::read_dir(written.path()).unwrap().count(), NAMES.len());
}

#[test]
fn without_companions_the_least_is_written() {
    let (folder, mut config, tokenizer) = (tempfile::tempdir().unwrap(), config(), tokenizer());
    let files = TokenizerFiles::from(&tokenizer);
    files.write_companions(folder.path(), &config).unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano").join(TOKENIZER_CONFIG);
    assert_eq!(fs::read(folder.path().join(TOKENIZER_CONFIG)).unwrap(), fs::read(nano).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // What else ends a generation must not be lost.
    config.add_end(9);
    files.write_companions(folder.path(), &config).unwrap();
    let again = Companions::read(folder.path()).unwrap();
    let mut read = ModelConfig { end_token_ids: Vec::new(), ..config.clone() };
    again.complete(&mut read, &tokenizer).unwrap();
    assert_eq!(read, config);
}
