//! Tokenizers, walks and a validator of JSON for the tests.

pub mod validator;

use std::sync::Arc;

use bitllama_structured::{Constraint, Grammar, Vocabulary};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

/// A tokenizer with its vocabulary.
pub struct Model {
    pub tokenizer: Tokenizer,
    pub vocabulary: Arc<Vocabulary>,
}

impl Model {
    pub fn new(tokenizer: Tokenizer, size: usize, ends: &[u32]) -> Self {
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer, size, ends).unwrap());
        Self { tokenizer, vocabulary }
    }

    pub fn start(&self, grammar: &Grammar) -> Constraint {
        Constraint::new(&self.vocabulary, grammar).unwrap()
    }

    pub fn of_schema(&self, schema: &Value) -> Constraint {
        self.start(&Grammar::json_schema(schema, false).unwrap())
    }

    /// The tokens that may come next.
    pub fn allowed(&self, constraint: &mut Constraint) -> Vec<u32> {
        let mut logits = vec![0.0; self.vocabulary.size()];
        constraint.allow(&mut logits).unwrap();
        (0..).zip(logits).filter(|(_, logit)| *logit == 0.0).map(|(token, _)| token).collect()
    }

    /// The text of a token with its special ones.
    pub fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap()
    }

    /// Whether a text is in a grammar, token by token.
    pub fn admits(&self, grammar: &Grammar, text: &str) -> bool {
        let mut constraint = self.start(grammar);
        let encoding = self.tokenizer.encode(text, false).unwrap();
        encoding.get_ids().iter().all(|token| constraint.accept(*token).is_ok()) && constraint.may_end().unwrap()
    }

    /// The text of a random walk over allowed tokens to an end. Signs that close something are preferred.
    pub fn walk(&self, mut constraint: Constraint, random: &mut ChaCha8Rng) -> String {
        let mut tokens = Vec::new();
        while !constraint.is_over() {
            assert!(tokens.len() < 5000, "no end: {}", self.text(&tokens));
            let allowed = self.allowed(&mut constraint);
            let (ends, others): (Vec<u32>, Vec<u32>) =
                allowed.into_iter().partition(|token| self.vocabulary.end_tokens().contains(token));
            assert_eq!(!ends.is_empty(), constraint.may_end().unwrap());
            if !ends.is_empty() && (others.is_empty() || random.random_bool(0.2)) {
                break;
            }
            let closing: Vec<u32> = others.iter().copied().filter(|token| self.closes(*token)).collect();
            let from = if closing.is_empty() || random.random_bool(0.4) { &others } else { &closing };
            let token = *from.choose(random).unwrap();
            constraint.accept(token).unwrap();
            tokens.push(token);
        }
        self.text(&tokens)
    }

    fn closes(&self, token: u32) -> bool {
        self.text(&[token]).starts_with(['"', '}', ']', ','])
    }
}

/// A token per byte, and special tokens from 256 on; the first of them ends a text. There are logits of tokens that do not exist.
pub fn bytes(special: &[&str]) -> Model {
    let mut vocabulary = Map::new();
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    for byte in 0..=255 {
        let character = if printable(byte) { byte } else { others.next().unwrap() };
        vocabulary.insert(char::from_u32(character).unwrap().to_string(), byte.into());
    }
    let added: Vec<Value> = (256..).zip(["<end>"].iter().chain(special)).map(|(id, text)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    }).collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Model::new(tokenizer.to_string().parse().unwrap(), 300, &[256])
}

/// The tokenizer of the model in the repository.
pub fn nano() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano/tokenizer.json");
    Model::new(Tokenizer::from_file(path).unwrap(), 1024, &[0])
}
