//! The way in which text is read from files.

use std::borrow::Cow;
use std::path::Path;

use bitllama_formats::text::{DEFAULT_FIELD, whole};
use serde::Serialize;
use tokenizers::Tokenizer;

use super::for_corpus;
use crate::Result;

/// The field of JSON objects that is text, and the reading of control tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Field of a JSON object that has the text; by default [`DEFAULT_FIELD`].
    pub text_field: Option<String>,
    /// Whether control tokens that a text spells, like `</s>`, are read as such and not as text.
    pub parse_special: bool,
}

impl Reading {
    /// The text of a file or folder, as [`whole`] has it.
    ///
    /// # Errors
    /// Those of [`whole`].
    pub fn text(&self, path: &Path) -> Result<String> {
        Ok(whole(path, self.text_field.as_deref().unwrap_or(DEFAULT_FIELD))?)
    }

    /// The tokenizer for such text, as [`for_corpus`] has it.
    ///
    /// # Errors
    /// Those of [`for_corpus`].
    pub fn tokenizer<'a>(&self, tokenizer: &'a Tokenizer) -> Result<Cow<'a, Tokenizer>> {
        for_corpus(tokenizer, self.parse_special)
    }
}
