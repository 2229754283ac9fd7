//! A small GGUF writer, and a tiny model written with it.

use std::path::PathBuf;

use bitllama_core::ModelConfig;
use bitllama_core::names::gguf_place;
use bitllama_core::weights;

use super::BlockFormat;

/// A GGUF file in the making.
#[derive(Clone)]
pub(super) struct Writer {
    pub version: u32,
    /// Key, type, encoded value.
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, dimensions in the file's order, type, data.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Writer {
    pub(super) fn new() -> Self {
        Writer { version: 3, metadata: Vec::new(), tensors: Vec::new() }
    }

    pub(super) fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) -> &mut Self {
        self.remove(key).metadata.push((key.into(), kind, value));
        self
    }

    pub(super) fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, ..)| k != key);
        self
    }

    pub(super) fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.set(key, 8, string(text))
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.set(key, 4, value.to_le_bytes().into())
    }

    pub(super) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.set(key, 6, value.to_le_bytes().into())
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.set(key, 7, vec![value.into()])
    }

    fn array(&mut self, key: &str, kind: u32, items: Vec<Vec<u8>>) -> &mut Self {
        let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        self.set(key, 9, [head, items.concat()].concat())
    }

    pub(super) fn texts(&mut self, key: &str, items: &[&str]) -> &mut Self {
        self.array(key, 8, items.iter().map(|t| string(t)).collect())
    }

    pub(super) fn i32s(&mut self, key: &str, items: &[i32]) -> &mut Self {
        self.array(key, 5, items.iter().map(|n| n.to_le_bytes().into()).collect())
    }

    pub(super) fn f32s(&mut self, key: &str, items: &[f32]) -> &mut Self {
        self.array(key, 6, items.iter().map(|n| n.to_le_bytes().into()).collect())
    }

    /// An F32 tensor; `shape` is row-major.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.raw_tensor(name, shape, BlockFormat::F32.id(), bytes)
    }

    pub(super) fn raw_tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> &mut Self {
        let dimensions = shape.iter().rev().map(|n| *n as u64).collect();
        self.tensors.push((name.into(), dimensions, kind, bytes));
        self
    }

    /// Leaves metadata only.
    pub(super) fn without_tensors(&mut self) -> &mut Self {
        self.tensors.clear();
        self
    }

    /// The file, with no padding behind the last tensor.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0;
        for (name, dimensions, kind, data) in &self.tensors {
            out.extend(string(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }

    /// Writes the file into a folder of its own.
    pub(super) fn file(&self) -> (tempfile::TempDir, PathBuf) {
        file(&self.bytes())
    }
}

pub(super) fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(super) fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 12,
        hidden_size: 8,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
        end_token_ids: Vec::new(),
    }
}

/// A model of [`tiny_config`] with a byte-level tokenizer; the value at place `i` of a weight is `i`.
pub(super) fn tiny() -> Writer {
    let config = tiny_config();
    let mut file = Writer::new();
    file.text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 6)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &["<s>", "</s>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "12", "c", "<|x|>"])
        .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4])
        .texts("tokenizer.ggml.merges", &["a b", "Ġ ab", "1 2"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1);
    for spec in weights::specs(&config) {
        let values: Vec<f32> = (0..spec.len()).map(|i| i as f32).collect();
        file.tensor(&gguf_place(&config, &spec).unwrap().tensor, &spec.shape, &values);
    }
    file
}
