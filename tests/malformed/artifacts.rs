//! Artifacts: `manifest.json` and what it says of `weights.npz`.

use std::fs;

use bitllama_core::weights::specs;
use bitllama_formats::Artifact;
use serde_json::{Value, json};

use super::Group;
use super::edit::{at, copy, json, nested, write};

/// A change of a good manifest.
type Change = fn(&mut Value);

const UP: &str = "/weights/transformer.layers.0.mlp.up_proj.weight";

const CHANGES: [(&str, Change); 25] = [
    ("newer version", |m| m["format_version"] = json!(4)),
    ("version as text", |m| m["format_version"] = json!("two")),
    ("version 0", |m| m["format_version"] = json!(0)),
    ("config without a field", |m| drop(m["model_config"].as_object_mut().unwrap().remove("hidden_size"))),
    ("config as text", |m| m["model_config"] = json!("llama")),
    ("width as text", |m| m["model_config"]["hidden_size"] = json!("sixteen")),
    ("negative width", |m| m["model_config"]["hidden_size"] = json!(-16)),
    ("huge width", |m| m["model_config"]["hidden_size"] = json!(u64::MAX)),
    ("huge layers", |m| m["model_config"]["num_hidden_layers"] = json!(1u64 << 60)),
    ("more layers than weights", |m| m["model_config"]["num_hidden_layers"] = json!(500)),
    ("one layer too many", |m| m["model_config"]["num_hidden_layers"] = json!(3)),
    ("odd heads", |m| m["model_config"]["head_dim"] = json!(7)),
    ("smaller vocabulary", |m| m["model_config"]["vocab_size"] = json!(100)),
    ("end token outside", |m| m["model_config"]["eos_token_ids"] = json!([4_000_000_000u32])),
    ("long unknown rope", |m| m["model_config"]["rope_scaling"] = json!({ "rope_type": "x".repeat(1 << 20) })),
    ("archive that leads out", |m| m["model"]["source_npz"] = json!("../weights.npz")),
    ("archive with an absolute path", |m| m["model"]["source_npz"] = json!("/etc/passwd")),
    ("archive with a long path", |m| m["model"]["source_npz"] = json!(format!("../{}", "x".repeat(1 << 20)))),
    ("archive that is not there", |m| m["model"]["source_npz"] = json!("none.npz")),
    ("archive that is the manifest", |m| m["model"]["source_npz"] = json!("manifest.json")),
    ("shape of another matrix", |m| *at(m, &format!("{UP}/shape")) = json!([16, 64])),
    ("long shape", |m| *at(m, &format!("{UP}/shape")) = json!(vec![1; 100_000])),
    ("key that is not there", |m| *at(m, &format!("{UP}/npz_key")) = json!("none")),
    ("unknown rounding of inputs", |m| *at(m, &format!("{UP}/activation_dtype")) = json!("x".repeat(1 << 20))),
    ("rounding of keys by sign", |m| m["quantization"]["kv_cache_dtype"] = json!("sign")),
];

/// Changes of a manifest of the older tools.
const OLD_CHANGES: [(&str, Change); 7] = [
    ("old: huge layers", |m| m["architecture"]["num_layers"] = json!(1e18)),
    ("old: negative heads", |m| m["architecture"]["attention"]["num_heads"] = json!(-4)),
    ("old: no heads", |m| m["architecture"]["attention"]["num_heads"] = json!(0)),
    ("old: fraction of layers", |m| m["architecture"]["num_layers"] = json!(1.5)),
    ("old: another norm", |m| m["architecture"]["norm"] = json!("x".repeat(1 << 20))),
    ("old: a window", |m| m["architecture"]["attention"]["window_size"] = json!(16)),
    ("old: a bias", |m| m["weights"]["transformer.layers.0.mlp.up_proj.bias"] = json!({})),
];

fn read_all(folder: &std::path::Path) -> anyhow::Result<()> {
    let artifact = Artifact::open(folder)?;
    for spec in specs(&artifact.config) {
        artifact.weight(&spec)?;
    }
    Ok(artifact.verify()?)
}

/// Artifacts with something wrong in them.
pub fn manifest(group: &mut Group) {
    for (good, changes) in
        [("tests/fixtures/v0.1.0/artifact", &CHANGES[..]), ("tests/golden/v2_artifact", &OLD_CHANGES)]
    {
        for (name, change) in changes {
            group.input(name, |folder| {
                copy(good, folder);
                json(folder, "manifest.json", change);
                read_all(folder)
            });
        }
    }
    let texts = [
        ("empty", String::new()),
        ("no JSON", "hello".into()),
        ("a list", "[]".into()),
        ("null", "null".into()),
        ("deep", nested(100_000)),
        ("an object", "{}".into()),
    ];
    for (name, text) in texts {
        group.input(name, |folder| {
            copy("tests/fixtures/v0.1.0/artifact", folder);
            write(folder, "manifest.json", text);
            read_all(folder)
        });
    }
    let mut try_file = |name: &str, file: &str, change: fn(Vec<u8>) -> Vec<u8>| {
        group.input(name, |folder| {
            copy("tests/fixtures/v0.1.0/artifact", folder);
            let bytes = fs::read(folder.join(file)).unwrap();
            write(folder, file, change(bytes));
            read_all(folder)
        });
    };
    try_file("cut weights", "weights.npz", |bytes| bytes[..bytes.len() - 1000].to_vec());
    try_file("empty weights", "weights.npz", |_| Vec::new());
    try_file("another's tokenizer", "tokenizer.json", |_| b"{}".to_vec());
    group.input("weights that are gone", |folder| {
        copy("tests/fixtures/v0.1.0/artifact", folder);
        fs::remove_file(folder.join("weights.npz")).unwrap();
        read_all(folder)
    });
    group.input("no such folder", |folder| Artifact::open(&folder.join("none")));
    group.input("an NPZ without an architecture", |folder| {
        Artifact::open(&write(folder, "a.npz", super::edit::good("tests/fuzz/corpus/npz/stored.npz")))
    });
}
