//! The vocabulary of a GGUF: tokens, their kinds, and which of them are found in a text before it is split.

use std::borrow::Cow;
use std::collections::HashSet;

use bitllama_core::excerpt;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::super::{Array, Gguf};
use crate::Result;
use crate::tokenizer::MAX_TOKEN;

/// `llama_token_type`, where it matters.
pub(in crate::gguf) const NORMAL: i64 = 1;
pub(in crate::gguf) const UNKNOWN: i64 = 2;
pub(in crate::gguf) const CONTROL: i64 = 3;
pub(in crate::gguf) const USER_DEFINED: i64 = 4;

pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<Cow<'a, str>>,
    /// The `llama_token_type` of each.
    pub(super) kinds: Cow<'a, [i64]>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(file: &'a Gguf) -> Result<Self> {
        let Array::Strings(tokens) = file.required("tokenizer.ggml.tokens", Gguf::array)? else {
            return Err(file.invalid("metadata tokenizer.ggml.tokens is no list of strings"));
        };
        // Before anything is made of them: rows of the embedding are in the file, tokens may be of no length.
        let rows = file.tensor("token_embd.weight").map_or(usize::MAX, |embedding| embedding.shape[0]);
        if tokens.len() > rows {
            let tokens = tokens.len();
            return Err(
                file.invalid(format!("the tokenizer has {tokens} tokens, but the model's vocab_size is {rows}"))
            );
        }
        if let Some(long) = tokens.iter().find(|token| token.len() > MAX_TOKEN) {
            let reason = format!("tokenizer.ggml.tokens has a token of {} bytes, more than {MAX_TOKEN}", long.len());
            return Err(file.invalid(reason));
        }
        let mut seen = HashSet::with_capacity(tokens.len());
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(file.invalid(format!("tokenizer.ggml.tokens has `{}` twice", excerpt(twice))));
        }
        let kinds = match file.array("tokenizer.ggml.token_type")? {
            None => vec![NORMAL; tokens.len()].into(),
            Some(Array::Integers(kinds)) if kinds.len() == tokens.len() => kinds.into(),
            Some(_) => {
                let reason = format!("metadata tokenizer.ggml.token_type is no list of {} integers", tokens.len());
                return Err(file.invalid(reason));
            }
        };
        Ok(Vocabulary { tokens: tokens.iter().map(|token| token.as_str().into()).collect(), kinds })
    }

    pub(super) fn ids(&self) -> Vocab {
        (0..).zip(&self.tokens).map(|(id, token)| (token.to_string(), id)).collect()
    }

    /// The tokens that are found in a text as they are, before it is split.
    pub(super) fn added(&self, strip: Strip) -> Vec<AddedToken> {
        let found = |kind: &i64| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED);
        let tokens = self.tokens.iter().zip(self.kinds.iter());
        tokens
            .filter(|(token, kind)| found(kind) && !token.is_empty())
            .map(|(token, kind)| strip.token(token, *kind))
            .collect()
    }
}

/// Whether control tokens swallow the white space beside them. Files do not say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Strip {
    None,
    /// Phi 3: behind all but `<unk>`, `<s>` and `<|endoftext|>`.
    Phi3,
    /// Phi 4 14B: on both sides.
    Phi4,
}

impl Strip {
    /// As the family's `tokenizer_config.json` has it (`lstrip`, `rstrip`); llama.cpp knows Phi 3's by the model's name
    /// (`llama-vocab.cpp`).
    pub(super) fn of(file: &Gguf) -> Result<Self> {
        if file.text("general.architecture")? != Some("phi3") {
            return Ok(Strip::None);
        }
        Ok(match (file.text("tokenizer.ggml.model")?, file.text("tokenizer.ggml.pre")?) {
            (Some("llama"), _) => Strip::Phi3,
            (Some("gpt2"), Some("dbrx")) => Strip::Phi4,
            _ => Strip::None,
        })
    }

    /// Special by kind: a user-defined token stays when special ones are left out of decoded text.
    fn token(self, text: &str, kind: i64) -> AddedToken {
        let control = kind == CONTROL;
        let right = match self {
            Strip::None => false,
            Strip::Phi3 => control && !["<unk>", "<s>", "<|endoftext|>"].contains(&text) || text == "</s>",
            Strip::Phi4 => control,
        };
        let left = self == Strip::Phi4 && control;
        AddedToken::from(text, kind != USER_DEFINED).normalized(false).lstrip(left).rstrip(right)
    }
}
