//! Hugging Face directories: `config.json`, safetensors and their index, `tokenizer.json`.

use std::fs;
use std::path::Path;

use bitllama_core::weights::specs;
use bitllama_formats::hf;
use serde_json::{Value, json};

use super::Group;
use super::edit::{at, copy, good, json, nested, replaced, write};

const TEACHER: &str = "tests/fixtures/v0.1.0/teacher";

/// Opens a model and reads every weight of it.
fn read_all(folder: &Path) -> anyhow::Result<()> {
    let model = hf::open(folder)?;
    for spec in specs(&model.config) {
        model.weights.read(&spec)?;
    }
    Ok(())
}

/// `config.json` with something wrong in it.
pub fn config(group: &mut Group) {
    let text = |word: &str| json!(word);
    let changes: Vec<(&str, &str, Value)> = vec![
        ("no model type", "/model_type", Value::Null),
        ("unknown model type", "/model_type", text("gpt2")),
        ("long model type", "/model_type", json!("x".repeat(1 << 20))),
        ("model type as number", "/model_type", json!(5)),
        ("no width", "/hidden_size", Value::Null),
        ("width of 0", "/hidden_size", json!(0)),
        ("negative width", "/hidden_size", json!(-16)),
        ("fraction of a width", "/hidden_size", json!(16.5)),
        ("huge width", "/hidden_size", json!(u64::MAX)),
        ("width as text", "/hidden_size", text("16")),
        ("width as list", "/hidden_size", json!([16])),
        ("no vocabulary", "/vocab_size", json!(0)),
        ("huge vocabulary", "/vocab_size", json!(1u64 << 40)),
        ("huge layers", "/num_hidden_layers", json!(1u64 << 63)),
        ("many layers", "/num_hidden_layers", json!(16_777_216)),
        ("layers of 0", "/num_hidden_layers", json!(0)),
        ("huge feed forward", "/intermediate_size", json!(1u64 << 62)),
        ("heads of 0", "/num_attention_heads", json!(0)),
        ("heads that no key heads divide", "/num_key_value_heads", json!(3)),
        ("key heads of 0", "/num_key_value_heads", json!(0)),
        ("odd head", "/head_dim", json!(7)),
        ("heads whose product wraps", "/head_dim", json!(16_777_216)),
        ("huge context", "/max_position_embeddings", json!(1u64 << 50)),
        ("negative epsilon", "/rms_norm_eps", json!(-1.0)),
        ("epsilon as text", "/rms_norm_eps", text("small")),
        ("theta of 0", "/rope_theta", json!(0)),
        ("theta as list", "/rope_theta", json!([1])),
        ("unknown rope", "/rope_scaling", json!({ "rope_type": "proportional", "factor": 2.0 })),
        ("rope without a factor", "/rope_scaling", json!({ "rope_type": "linear" })),
        ("rope that shrinks", "/rope_scaling", json!({ "rope_type": "linear", "factor": 0.5 })),
        ("rope as text", "/rope_scaling", text("linear")),
        ("partial rotation", "/partial_rotary_factor", json!(0.5)),
        ("another activation", "/hidden_act", text("gelu")),
        ("a bias", "/attention_bias", json!(true)),
        ("a bias as text", "/mlp_bias", text("no")),
        ("quantized", "/quantization_config", json!({ "bits": 4 })),
        ("end token outside", "/eos_token_id", json!([288])),
        ("end token as text", "/eos_token_id", text("</s>")),
        ("negative start token", "/bos_token_id", json!(-1)),
        ("tied as number", "/tie_word_embeddings", json!(1)),
    ];
    for (name, pointer, value) in changes {
        group.input(name, |folder| {
            copy(TEACHER, folder);
            json(folder, hf::CONFIG, |config| *at(config, pointer) = value);
            read_all(folder)
        });
    }
    let text = String::from_utf8(good(&format!("{TEACHER}/config.json"))).unwrap();
    let texts = [
        ("empty", String::new()),
        ("no JSON", "model_type: llama".into()),
        ("cut", text[..text.len() / 2].into()),
        ("a list", "[]".into()),
        ("null", "null".into()),
        ("deep", nested(100_000)),
        ("a mixture of experts", replaced(&text, "\"llama\"", "\"mixtral\"")),
        (
            "bitnet without key heads",
            replaced(&replaced(&text, "\"llama\"", "\"bitnet\""), "\"num_key_value_heads\"", "\"n\""),
        ),
    ];
    for (name, text) in texts {
        group.input(name, |folder| hf::read_config(&write(folder, hf::CONFIG, text)));
    }
    group.input("no such file", |folder| hf::read_config(&folder.join(hf::CONFIG)));
}

/// The header of a safetensors file as JSON, and its data.
fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

fn put_together(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Safetensors files and their index with something wrong in them.
pub fn safetensors(group: &mut Group) {
    const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
    let good = good(&format!("{TEACHER}/{}", hf::WEIGHTS));
    let (header, data) = parts(&good);
    let mut try_bytes = |name: &str, bytes: Vec<u8>| {
        group.input(name, |folder| {
            copy(TEACHER, folder);
            write(folder, hf::WEIGHTS, bytes);
            read_all(folder)
        });
    };
    try_bytes("empty", Vec::new());
    try_bytes("seven bytes", vec![0; 7]);
    try_bytes("no header", vec![0; 8]);
    try_bytes("huge header", [&u64::MAX.to_le_bytes()[..], &good[8..]].concat());
    try_bytes("header beyond the file", [&(1u64 << 20).to_le_bytes()[..], &good[8..]].concat());
    try_bytes("cut", good[..good.len() - 1].to_vec());
    try_bytes("cut header", good[..100].to_vec());
    try_bytes("bytes behind", [&good[..], b"x"].concat());
    try_bytes("header that is no JSON", put_together("hello", data));
    try_bytes("header that is a list", put_together("[]", data));
    try_bytes("deep header", put_together(&nested(100_000), data));
    try_bytes("a long unknown type", {
        let header = replaced(&header.to_string(), "\"F16\"", &format!("\"{}\"", "x".repeat(1 << 20)));
        put_together(&header, data)
    });
    let mut change = |name: &str, change: fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        try_bytes(name, put_together(&header.to_string(), data));
    };
    change("a weight that is not there", |header| drop(header.as_object_mut().unwrap().remove(GATE)));
    change("another type", |header| header[GATE]["dtype"] = json!("I64"));
    change("unknown type", |header| header[GATE]["dtype"] = json!("F12"));
    change("another shape", |header| header[GATE]["shape"] = json!([16, 64]));
    change("shape whose product wraps", |header| header[GATE]["shape"] = json!([1u64 << 32, 1u64 << 32]));
    change("many dimensions", |header| header[GATE]["shape"] = json!(vec![1; 10_000]));
    change("negative size", |header| header[GATE]["shape"] = json!([-1, 16]));
    change("offsets backwards", |header| header[GATE]["data_offsets"] = json!([100, 0]));
    change("offsets beyond the file", |header| header[GATE]["data_offsets"] = json!([0, 1u64 << 60]));
    change("no offsets", |header| drop(header[GATE].as_object_mut().unwrap().remove("data_offsets")));
    change("a text in place of a tensor", |header| header[GATE] = json!("here"));

    let mut try_index = |name: &str, index: &str| {
        group.input(name, |folder| {
            copy(TEACHER, folder);
            fs::rename(folder.join(hf::WEIGHTS), folder.join("a.safetensors")).unwrap();
            write(folder, hf::INDEX, index);
            read_all(folder)
        });
    };
    try_index("index that is no JSON", "weight_map");
    try_index("index without a map", "{}");
    try_index("index with a list", r#"{"weight_map": []}"#);
    try_index("index that names a number", r#"{"weight_map": {"a": 5}}"#);
    try_index("index that leads out", r#"{"weight_map": {"a": "../a.safetensors"}}"#);
    try_index("index with an absolute path", r#"{"weight_map": {"a": "/etc/passwd"}}"#);
    try_index("index with a long path", &format!(r#"{{"weight_map": {{"a": "{}/"}}}}"#, "x".repeat(1 << 20)));
    try_index("index of a file that is not there", r#"{"weight_map": {"a": "b.safetensors"}}"#);
    try_index("empty index", r#"{"weight_map": {}}"#);
}

/// `tokenizer.json` with something wrong in it.
pub fn tokenizer(group: &mut Group) {
    let good = String::from_utf8(good(&format!("{TEACHER}/tokenizer.json"))).unwrap();
    let mut try_text = |name: &str, text: String| {
        group.input(name, |folder| {
            copy(TEACHER, folder);
            write(folder, hf::TOKENIZER, text);
            bitllama_formats::model::open(folder)
        });
    };
    try_text("empty", String::new());
    try_text("no JSON", "hello".into());
    try_text("null", "null".into());
    try_text("a list", "[]".into());
    try_text("an object", "{}".into());
    try_text("cut", good[..good.len() / 2].into());
    try_text("deep", nested(100_000));
    let mut change = |name: &str, pointer: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&good).unwrap();
        *at(&mut json, pointer) = value;
        try_text(name, json.to_string());
    };
    change("no model", "/model", Value::Null);
    change("unknown model", "/model/type", json!("GPT"));
    change("vocabulary as list", "/model/vocab", json!(["a"]));
    change("merges of tokens that are not there", "/model/merges", json!(["x y"]));
    change("merges as numbers", "/model/merges", json!([1]));
    change("decoder as number", "/decoder", json!(5));
    change("added tokens as text", "/added_tokens", json!("</s>"));
    change("one token too many", "/model/vocab/one too many", json!(288));
    change("unknown version", "/version", json!("7.0"));
}
