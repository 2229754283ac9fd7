//! GGUF files, damaged where they are laid out: `tests/fuzz/corpus/gguf/tiny.gguf`.

use bitllama_core::weights::specs;
use bitllama_formats::{Error, model};

use super::Group;
use super::edit::{good, write};

/// The place behind the key, or the name of a tensor.
fn behind(bytes: &[u8], name: &str) -> usize {
    let encoded = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    bytes.windows(encoded.len()).position(|window| window == encoded).unwrap() + encoded.len()
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// The value of a key: behind its type.
fn value(bytes: &mut [u8], key: &str, part: &[u8]) {
    let at = behind(bytes, key) + 4;
    put(bytes, at, part);
}

/// The type of a key.
fn kind(bytes: &mut [u8], key: &str, kind: u32) {
    let at = behind(bytes, key);
    put(bytes, at, &kind.to_le_bytes());
}

/// A field of a matrix behind its name: the number of dimensions is at 0, the dimensions at 4 and 12, the type at 20, the
/// offset at 24.
fn field(bytes: &mut [u8], tensor: &str, field: usize, part: &[u8]) {
    let at = behind(bytes, tensor) + field;
    put(bytes, at, part);
}

/// Metadata strings of the same length.
fn text(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = behind(bytes, from) - from.len();
    put(bytes, at, to.as_bytes());
}

/// A change of the good file.
type Change = fn(&mut Vec<u8>);

const CHANGES: [(&str, Change); 41] = [
    ("empty", |b| b.clear()),
    ("three bytes", |b| b.truncate(3)),
    ("another magic", |b| put(b, 0, b"GGML")),
    ("no version", |b| b.truncate(4)),
    ("version 1", |b| put(b, 4, &1u32.to_le_bytes())),
    ("version 4", |b| put(b, 4, &4u32.to_le_bytes())),
    ("big-endian", |b| put(b, 4, &3u32.to_be_bytes())),
    ("huge count of tensors", |b| put(b, 8, &u64::MAX.to_le_bytes())),
    ("more tensors than there are", |b| put(b, 8, &100u64.to_le_bytes())),
    ("huge count of metadata", |b| put(b, 16, &u64::MAX.to_le_bytes())),
    ("more metadata than there are", |b| put(b, 16, &40u64.to_le_bytes())),
    ("cut in a key", |b| b.truncate(40)),
    ("cut in the data", |b| b.truncate(b.len() - 200)),
    ("huge key", |b| put(b, 24, &(1u64 << 40).to_le_bytes())),
    ("key that is no UTF-8", |b| b[33] = 0xff),
    ("unknown type of a value", |b| kind(b, "llama.block_count", 13)),
    ("text in place of a number", |b| kind(b, "llama.block_count", 8)),
    ("fraction of a count", |b| kind(b, "llama.block_count", 6)),
    ("negative count", |b| {
        kind(b, "llama.block_count", 5);
        value(b, "llama.block_count", &(-1i32).to_le_bytes());
    }),
    ("a bool of 7", |b| {
        kind(b, "llama.block_count", 7);
        value(b, "llama.block_count", &[7]);
    }),
    ("too many blocks", |b| value(b, "llama.block_count", &4000u32.to_le_bytes())),
    ("huge blocks", |b| value(b, "llama.block_count", &u32::MAX.to_le_bytes())),
    ("no blocks", |b| value(b, "llama.block_count", &0u32.to_le_bytes())),
    ("another width", |b| value(b, "llama.embedding_length", &64u32.to_le_bytes())),
    ("no heads", |b| value(b, "llama.attention.head_count", &0u32.to_le_bytes())),
    ("NaN epsilon", |b| value(b, "llama.attention.layer_norm_rms_epsilon", &f32::NAN.to_le_bytes())),
    ("huge context", |b| value(b, "llama.context_length", &u32::MAX.to_le_bytes())),
    ("another architecture", |b| text(b, "llama", "mamba")),
    ("another tokenizer", |b| text(b, "gpt2", "bert")),
    ("another split", |b| text(b, "smollm", "viking")),
    ("list of lists", |b| value(b, "tokenizer.ggml.tokens", &9u32.to_le_bytes())),
    ("list that is longer than the file", |b| {
        let at = behind(b, "tokenizer.ggml.tokens") + 8;
        put(b, at, &(1u64 << 40).to_le_bytes());
    }),
    ("a token twice", |b| text(b, "ab", "12")),
    ("start token outside", |b| value(b, "tokenizer.ggml.bos_token_id", &500u32.to_le_bytes())),
    ("no dimensions", |b| field(b, "blk.0.attn_q.weight", 0, &0u32.to_le_bytes())),
    ("nine dimensions", |b| field(b, "blk.0.attn_q.weight", 0, &9u32.to_le_bytes())),
    ("dimension of 0", |b| field(b, "blk.0.attn_q.weight", 4, &0u64.to_le_bytes())),
    ("dimensions whose product wraps", |b| {
        field(b, "blk.0.attn_q.weight", 4, &(1u64 << 33).to_le_bytes());
        field(b, "blk.0.attn_q.weight", 12, &(1u64 << 33).to_le_bytes());
    }),
    ("unknown block format", |b| field(b, "blk.0.attn_q.weight", 20, &99u32.to_le_bytes())),
    ("offset beyond the file", |b| field(b, "blk.0.attn_q.weight", 24, &(1u64 << 62).to_le_bytes())),
    ("a tensor that is not there", |b| {
        let at = behind(b, "blk.0.ffn_up.weight") - 1;
        b[at] = b'T';
    }),
];

/// GGUF files with something wrong in them.
pub fn gguf(group: &mut Group) {
    for (name, change) in CHANGES {
        let mut bytes = good("tests/fuzz/corpus/gguf/tiny.gguf");
        change(&mut bytes);
        group.input(name, |folder| {
            let model = model::open(&write(folder, "model.gguf", bytes))?;
            for spec in specs(&model.config) {
                model.weights.read(&spec)?;
            }
            Ok::<_, Error>(())
        });
    }
    group.input("no such file", |folder| model::open(&folder.join("none.gguf")));
}
