//! Files beside `tokenizer.json`: chat template, special tokens by role, what ends a generation. They travel with a model into
//! checkpoints, Hugging Face directories and artifacts, byte for byte, so that `AutoTokenizer` finds there what it found before.
//!
//! Vocabularies in other forms (`vocab.json`, `merges.txt`, `tokenizer.model`) are left behind: all that is in them is in
//! `tokenizer.json`, and two vocabularies could contradict each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bitllama_core::ModelConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::hf::{TOKENIZER, one_line};
use crate::tokenizer::{own_bos, quoted};
use crate::{Error, Result, atomic};

/// Settings that `transformers` needs for the tokenizer beside it: class, special tokens by role, often the chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Special tokens by role, in the form of older versions.
pub const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Default sampling settings of the model, and the tokens that end a generation.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// The names of all companions.
pub const NAMES: [&str; 6] = [
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    GENERATION_CONFIG,
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
];

/// Tokens that llama.cpp (`llama-vocab.cpp`) takes for the end of a turn or a text by their names, for want of metadata. Those of
/// architectures that are not read here are left out.
pub(crate) const END_NAMES: [&str; 16] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "▁<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Bytes of one companion; published ones have some ten thousand.
const MAX_FILE: u64 = 8 << 20;

/// The companions of a tokenizer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Companions {
    /// Folder or file that they were read from.
    folder: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// The text of the tokenizer's EOS.
    eos: Option<String>,
    /// Tokens that end a generation by [`GENERATION_CONFIG`].
    ends: Vec<u32>,
}

/// A tokenizer and its companions, to be written.
#[derive(Clone, Copy)]
pub struct TokenizerFiles<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Companions to write beside it; without any, a minimal `tokenizer_config.json` for `AutoTokenizer` is written.
    pub companions: Option<&'a Companions>,
}

impl<'a> From<&'a Tokenizer> for TokenizerFiles<'a> {
    fn from(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, companions: None }
    }
}

/// A special token in [`TOKENIZER_CONFIG`] and [`SPECIAL_TOKENS`]: its text, alone or with how it is matched.
#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token is neither a text nor an object with `content`")]
enum Special {
    Text(String),
    Token { content: String },
}

#[derive(Deserialize)]
struct Specials {
    eos_token: Option<Special>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id is neither a token id nor a list of them")]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

#[derive(Deserialize)]
struct Generation {
    eos_token_id: Option<Ids>,
}

impl Companions {
    /// Reads those of a folder that are there.
    ///
    /// # Errors
    /// [`Error`] if one is too long, cannot be read, or says nothing that makes sense of what is needed here: special tokens
    /// and ids.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut found = Companions { folder: folder.to_path_buf(), ..Self::default() };
        for name in NAMES {
            let path = folder.join(name);
            if path.is_file() {
                found.insert(name, read_short(&path)?)?;
            }
        }
        Ok(found)
    }

    /// Adds or replaces the file `name`.
    ///
    /// # Errors
    /// As [`Companions::read`].
    pub(crate) fn insert(&mut self, name: &'static str, bytes: Vec<u8>) -> Result<()> {
        let wrong = |e: serde_json::Error| Error::invalid(self.folder.join(name), format!("is damaged: {e}"));
        match name {
            GENERATION_CONFIG => {
                let generation: Generation = serde_json::from_slice(&bytes).map_err(wrong)?;
                self.ends = match generation.eos_token_id {
                    None => Vec::new(),
                    Some(Ids::One(id)) => vec![id],
                    Some(Ids::Several(ids)) => ids,
                };
            }
            // The older file has the same, and is read after the other one.
            TOKENIZER_CONFIG | SPECIAL_TOKENS => {
                let specials: Specials = serde_json::from_slice(&bytes).map_err(wrong)?;
                let eos = specials.eos_token.map(|(Special::Text(text) | Special::Token { content: text })| text);
                self.eos = self.eos.take().or(eos.filter(|text| !text.is_empty()));
            }
            _ => {}
        }
        self.files.insert(name, bytes);
        Ok(())
    }

    /// The bytes of a companion.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// Puts into `config` what its tokenizer knows better: the EOS that ends documents comes first among `eos_token_ids`, and
    /// what else ends a generation is added.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a token is not in the vocabulary, with the file that names it.
    pub fn complete(&self, config: &mut ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
        if let Some(text) = &self.eos {
            let from = if self.files.contains_key(TOKENIZER_CONFIG) { TOKENIZER_CONFIG } else { SPECIAL_TOKENS };
            let eos = tokenizer.token_to_id(text).ok_or_else(|| {
                let reason = format!("eos_token is {}, which the vocabulary of the tokenizer has not", quoted(text));
                Error::invalid(self.folder.join(from), reason)
            })?;
            self.within(config, from, eos)?;
            config.eos_token_ids.retain(|id| *id != eos);
            config.eos_token_ids.insert(0, eos);
        }
        for id in &self.ends {
            self.within(config, GENERATION_CONFIG, *id)?;
            config.add_end(*id);
        }
        Ok(())
    }

    /// Refuses an EOS of the file `name` for which the model has no embedding.
    fn within(&self, config: &ModelConfig, name: &str, eos: u32) -> Result<()> {
        match (eos as usize) < config.vocab_size {
            true => Ok(()),
            false => {
                let reason = format!("EOS {eos} is outside the vocabulary of {} tokens", config.vocab_size);
                Err(Error::invalid(self.folder.join(name), reason))
            }
        }
    }
}

impl TokenizerFiles<'_> {
    /// Writes `tokenizer.json` and the companions into a folder, as Hugging Face directories have them.
    pub(crate) fn write_into(&self, folder: &Path, config: &ModelConfig) -> Result<()> {
        let path = folder.join(TOKENIZER);
        let json = self.tokenizer.to_string(true).map_err(|e| Error::invalid(&path, one_line(&e.to_string())))?;
        atomic::write_bytes(&path, json.as_bytes())?;
        self.write_companions(folder, config)
    }

    /// Writes the companions into a folder; where they lack them, the least from which `AutoTokenizer` loads `tokenizer.json`,
    /// and the tokens of `config` that end a generation.
    pub(crate) fn write_companions(&self, folder: &Path, config: &ModelConfig) -> Result<()> {
        let none = Companions::default();
        let companions = self.companions.unwrap_or(&none);
        for (name, bytes) in &companions.files {
            atomic::write_bytes(&folder.join(name), bytes)?;
        }
        if companions.get(TOKENIZER_CONFIG).is_none() {
            let json = tokenizer_config(config, self.tokenizer);
            atomic::write_bytes(&folder.join(TOKENIZER_CONFIG), format!("{json:#}\n").as_bytes())?;
        }
        if companions.get(GENERATION_CONFIG).is_none() && !config.end_token_ids.is_empty() {
            let ids: Vec<u32> = config.end_tokens().collect();
            let json = json!({ "bos_token_id": config.bos_token_id, "eos_token_id": ids });
            atomic::write_bytes(&folder.join(GENERATION_CONFIG), format!("{json:#}\n").as_bytes())?;
        }
        Ok(())
    }
}

/// The least from which `AutoTokenizer` loads `tokenizer.json`.
pub(crate) fn tokenizer_config(config: &ModelConfig, tokenizer: &Tokenizer) -> Value {
    let mut json = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": false,
    });
    let bos = own_bos(tokenizer).ok().flatten().or(config.bos_token_id);
    for (key, id) in [("bos_token", bos), ("eos_token", config.eos_token_ids.first().copied())] {
        if let Some(token) = id.and_then(|id| tokenizer.id_to_token(id)) {
            json[key] = token.into();
        }
    }
    json
}

/// A file of no more than [`MAX_FILE`] bytes.
fn read_short(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(Error::io(path))?.take(MAX_FILE + 1);
    file.read_to_end(&mut bytes).map_err(Error::io(path))?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(Error::invalid(path, format!("is longer than the {MAX_FILE} bytes that such a file may have"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
#[path = "companions_tests.rs"]
mod tests;
