//! Flags of every command that reads text.

use std::borrow::Cow;
use std::path::Path;

use bitllama_formats::text::{DEFAULT_FIELD, whole};
use serde::Serialize;
use tokenizers::Tokenizer;

use super::for_corpus;
use crate::{Error, Result};

/// Flags that say how text is read from files and whether control tokens in it are parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize)]
pub struct Reading {
    /// Field of a JSON object that has the text [default: text]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Read control tokens that a text spells, like </s>, as such and not as text
    #[arg(long)]
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

    /// Refuses `--text-field` in a command that was given no text.
    ///
    /// # Errors
    /// [`Error::Options`].
    pub fn check(&self, text: bool) -> Result<()> {
        match self.text_field.is_some() && !text {
            true => Err(Error::Options("--text-field is of no use without a text to read".into())),
            false => Ok(()),
        }
    }
}
