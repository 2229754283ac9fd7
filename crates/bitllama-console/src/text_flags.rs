//! Flags of every command that reads text.

use anyhow::ensure;
use bitllama_runtime::text::Reading;
use clap::Args;

/// Flags that say how text is read from files and whether control tokens in it are parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct TextFlags {
    /// Field of a JSON object that has the text [default: text]
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,
    /// Read control tokens that a text spells, like </s>, as such and not as text
    #[arg(long)]
    parse_special: bool,
}

impl TextFlags {
    /// The flags as the library takes them.
    pub fn reading(&self) -> Reading {
        Reading { text_field: self.text_field.clone(), parse_special: self.parse_special }
    }

    /// Refuses `--text-field` in a command that was given no text.
    ///
    /// # Errors
    /// One line that says so.
    pub fn check(&self, text: bool) -> anyhow::Result<()> {
        ensure!(self.text_field.is_none() || text, "--text-field is of no use without a text to read");
        Ok(())
    }
}
