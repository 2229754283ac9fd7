use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn nano() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/nano/tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tokenizer of `models/nano` with another `key`.
fn with(key: &str, value: Value) -> Vec<u8> {
    let mut json = nano();
    json[key] = value;
    json.to_string().into_bytes()
}

fn template(single: Value, specials: Value) -> Vec<u8> {
    let pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }]);
    with(
        "post_processor",
        json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials }),
    )
}

fn special(id: &str) -> Value {
    json!({ "SpecialToken": { "id": id, "type_id": 0 } })
}

fn text(id: &str) -> Value {
    json!({ "Sequence": { "id": id, "type_id": 0 } })
}

fn end_of_text(ids: &[u32], tokens: &[&str]) -> Value {
    json!({ "<|endoftext|>": { "id": "<|endoftext|>", "ids": ids, "tokens": tokens } })
}

fn replaces(n: usize, content: &str) -> Value {
    let step = json!({ "type": "Replace", "pattern": { "String": "e" }, "content": content });
    json!({ "type": "Sequence", "normalizers": vec![step; n] })
}

#[test]
fn published_forms_of_a_template_are_read_and_tell_the_bos() {
    let bos = || end_of_text(&[0], &["<|endoftext|>"]);
    let front = || vec![special("<|endoftext|>"), text("A")];
    let both = || vec![special("<|endoftext|>"), text("A"), special("<|endoftext|>")];
    let of = |bytes: Vec<u8>| own_bos(&parse(&bytes).unwrap()).unwrap();
    assert_eq!(of(nano().to_string().into_bytes()), None);
    assert_eq!(of(template(json!(front()), bos())), Some(0));
    assert_eq!(of(template(json!(both()), bos())), Some(0));
    assert_eq!(of(template(json!([text("A"), special("<|endoftext|>")]), bos())), None);
    assert_eq!(of(template(json!([text("A")]), json!({}))), None);
    let roberta = json!({ "type": "RobertaProcessing", "sep": ["<|endoftext|>", 0], "cls": ["<|endoftext|>", 0],
        "trim_offsets": true, "add_prefix_space": false });
    assert_eq!(of(with("post_processor", roberta)), Some(0));
    let inner: Value = serde_json::from_slice(&template(json!(front()), bos())).unwrap();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
    let sequence = json!({ "type": "Sequence", "processors": [bytes, inner["post_processor"]] });
    assert_eq!(of(with("post_processor", sequence)), Some(0));
}

#[test]
fn padding_and_truncation_are_switched_off() {
    let mut json = nano();
    json["truncation"] = json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = json!({ "strategy": { "Fixed": 1_000_000_000 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>" });
    let tokenizer = parse(json.to_string().as_bytes()).unwrap();
    let tokens = tokenizer.encode_fast("It is a truth universally acknowledged", true).unwrap().len();
    assert!((6..40).contains(&tokens), "{tokens}");
}

/// Each was found to panic, to take gigabytes or minutes, or to give tokens in silence that the file does not mean.
#[test]
fn hostile_files_are_refused_at_once() {
    let bos = || end_of_text(&[0], &["<|endoftext|>"]);
    let many = |n: usize| -> Vec<Value> { vec![special("<|endoftext|>"); n].into_iter().chain([text("A")]).collect() };
    let added = |content: &str, id: u32, normalized: bool| {
        json!([{ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": true }])
    };
    let nested =
        (0..40).fold(json!({ "type": "NFC" }), |inner, _| json!({ "type": "Sequence", "normalizers": [inner] }));
    let deep = || format!("{{\"model\": {}{} }}", "[".repeat(100), "]".repeat(100)).into_bytes();
    let mut bomb_while_loading = nano();
    bomb_while_loading["normalizer"] = replaces(40, "ee");
    bomb_while_loading["added_tokens"] = added("eee", 1024, true);
    let mut dropout = nano();
    dropout["model"]["dropout"] = json!(0.1);
    let mut long_token = nano();
    long_token["model"]["vocab"]["x".repeat(10_000)] = json!(1024);
    let mut unknown = nano();
    unknown["model"]["unk_token"] = json!("y".repeat(4000));
    unknown["model"]["vocab"]["y".repeat(4000)] = json!(1024);
    unknown["pre_tokenizer"] = Value::Null;
    let twice = nano().to_string().replacen('{', "{\"n\\u006frmalizer\":null,", 1).into_bytes();
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let chain = |list: &str, step: Value, n: usize| json!({ "type": "Sequence", list: vec![step; n] });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let prepend = json!({ "type": "Prepend", "prepend": "ab".repeat(100) });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not JSON", b"".to_vec()),
        ("not JSON", b"{".to_vec()),
        ("not UTF-8", b"{\"a\": \"\xff\"}".to_vec()),
        ("not a JSON object", b"[1]".to_vec()),
        ("not a JSON object", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes()),
        ("\"model\" nests 100 lists and objects", deep()),
        ("its model is not an object", b"{\"model\": 1}".to_vec()),
        ("Model missing", b"{}".to_vec()),
        ("has \"normalizer\" twice", twice),
        ("Unknown tokenizer version", with("version", json!("2.0"))),
        ("\"normalizer\" nests 81 lists and objects, more than 16", with("normalizer", nested)),
        ("the normalizer makes", with("normalizer", replaces(40, "ee"))),
        ("the normalizer makes", bomb_while_loading.to_string().into_bytes()),
        ("the normalizer inserts a text of 3000000 bytes", with("normalizer", replaces(1, &"e".repeat(3_000_000)))),
        ("the normalizer has 1000 steps", with("normalizer", replaces(1000, "e"))),
        ("the normalizer makes", with("normalizer", chain("normalizers", prepend, 200))),
        ("the normalizer makes", with("normalizer", chain("normalizers", json!({ "type": "ByteLevel" }), 40))),
        (
            "cannot be built",
            with("normalizer", json!({ "type": "Replace", "pattern": { "Regex": "(" }, "content": "" })),
        ),
        ("cannot be built", with("normalizer", json!({ "type": "Nonsense" }))),
        ("the normalizer", with("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "AAAAAAAA" }))),
        (
            "its normalizer takes",
            with("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "A".repeat(5 << 20) })),
        ),
        ("its normalizer is neither an object nor null", with("normalizer", json!(vec![json!([0]); 100_000]))),
        (
            "its normalizer takes",
            with("normalizer", json!({ "type": "Sequence", "normalizers": vec![json!([0]); 100_000] })),
        ),
        ("the pre_tokenizer makes", with("pre_tokenizer", chain("pretokenizers", bytes.clone(), 40))),
        ("the pre_tokenizer fails", with("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }))),
        ("cannot be built", with("pre_tokenizer", split("["))),
        ("its pre_tokenizer takes", with("pre_tokenizer", split(&"a|".repeat(1 << 18)))),
        ("the pre_tokenizer has a pattern of 20000 bytes", with("pre_tokenizer", split(&"a|".repeat(10_000)))),
        (
            "the decoder makes",
            with(
                "decoder",
                chain("decoders", json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" }), 40),
            ),
        ),
        ("the decoder", with("decoder", json!({ "type": "Strip", "content": " ", "start": 0, "stop": 9 }))),
        ("special_tokens lacks", template(json!([special("<nowhere>"), text("A")]), json!({}))),
        (
            "which the vocabulary has not",
            template(json!([special("<|endoftext|>"), text("A")]), end_of_text(&[0], &["<nowhere>"])),
        ),
        (
            "is token 7, but it is token 0",
            template(json!([special("<|endoftext|>"), text("A")]), end_of_text(&[7], &["<|endoftext|>"])),
        ),
        (
            "1 tokens and 2 ids",
            template(json!([special("<|endoftext|>"), text("A")]), end_of_text(&[0, 0], &["<|endoftext|>"])),
        ),
        ("0 tokens and 0 ids", template(json!([special("<|endoftext|>"), text("A")]), end_of_text(&[], &[]))),
        ("5001 pieces", template(json!(many(5000)), bos())),
        ("2 tokens in front", template(json!(many(2)), bos())),
        ("exactly once", template(json!([text("A"), text("A")]), json!({}))),
        ("exactly once", template(json!([text("B")]), json!({}))),
        ("exactly once", template(json!([special("<|endoftext|>")]), bos())),
        (
            "post_processor.cls names",
            with(
                "post_processor",
                json!({ "type": "BertProcessing", "sep": ["<|endoftext|>", 0], "cls": ["[CLS]", 9] }),
            ),
        ),
        ("added_tokens says that \"!\" is token 700, but it is token 1", with("added_tokens", added("!", 700, false))),
        ("added_tokens says that \"new\" is token 99999", with("added_tokens", added("new", 99_999, false))),
        ("has a token of 10000 bytes", long_token.to_string().into_bytes()),
        ("has a token of 20000 bytes", with("added_tokens", added(&"z".repeat(20_000), 1024, false))),
        ("makes tokens of", unknown.to_string().into_bytes()),
        ("model.dropout = 0.1", dropout.to_string().into_bytes()),
    ];
    let mut wrong = Vec::new();
    for (words, bytes) in cases {
        let start = Instant::now();
        let found = parse(&bytes).err().unwrap_or("it was read".into());
        let one_line = !found.contains('\n') && found.len() < 400;
        if !found.contains(words) || !one_line || start.elapsed() > Duration::from_secs(3) {
            wrong.push(format!("{words}: {found}, {:?}", start.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_text_sets_off_later_is_an_error_and_no_panic() {
    let tokenizer = parse(nano().to_string().as_bytes()).unwrap();
    let far: Vec<u32> = (0..2000).collect();
    // Tokens that are none have no text.
    assert!(guarded(|| tokenizer.decode(&far, true)).is_ok());
    assert!(guarded(|| tokenizer.encode_fast("\u{0}\u{10ffff}", false)).is_ok());
}
