//! `tokenizer.json`, read with distrust: the `tokenizers` library panics on some files, and takes gigabytes on others, some of
//! them only once they meet a text. What a file can do is bounded here, before anything is built from it and after.
//!
//! | file | subject |
//! |---|---|
//! | `parts.rs` | the parts of the file, without building anything from them |
//! | `model.rs` | the shape of the model's vocabulary and merges |
//! | `growth.rs` | steps that make a text longer |
//! | `template.rs` | tokens put around a text |
//! | `panics.rs` | calls that may panic |

mod growth;
mod model;
mod panics;
mod parts;
mod template;

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

pub use panics::guarded;
pub use template::own_bos;

use crate::{Error, Result};

/// Bytes of a file; the largest published ones have 35 million.
const MAX_FILE: u64 = 256 << 20;
/// Objects and lists within each other.
const MAX_DEPTH: usize = 16;
/// Bytes of a token as it is written; the longest published ones are runs of some hundred spaces.
pub(crate) const MAX_TOKEN: usize = 8192;
/// Bytes of a normalizer and of each other kind of steps.
const MAX_PART: usize = 256 << 10;
/// Bytes of the table of characters that a normalizer may hold beside, as one string.
const MAX_TABLE: usize = 4 << 20;
/// Texts that every tokenizer is tried on.
const PROBES: [&str; 4] = ["a", "Ab 12, c'd\n", "é日🦙\t\u{fdfa}", "       <s></s>"];
/// Bytes of tokens that a byte of text may give: a byte that is no token becomes six, as in `<0x0A>`.
const MAX_PER_BYTE: usize = 64;

/// Reads a `tokenizer.json`. Truncation and padding, which published files often ask for, are switched off: whole texts
/// are tokenized here.
///
/// # Errors
/// [`Error`] if the file is missing (with how to make it, if another form of it is there), is no tokenizer, or one that panics, makes texts explode, drops or doubles them, gives
/// random tokens, or names tokens that it has not or has under another id.
pub fn read(path: &Path) -> Result<Tokenizer> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) => {
            let folder = path.parent().unwrap_or(path);
            return Err(match crate::hf::advice::tokenizer(path).filter(|_| error.kind() == ErrorKind::NotFound) {
                Some(advice) => Error::invalid(folder, advice),
                None => Error::io(path)(error),
            });
        }
    };
    if size > MAX_FILE {
        return Err(Error::invalid(path, format!("is {size} bytes long, a tokenizer has at most {MAX_FILE}")));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes).map_err(|reason| Error::invalid(path, reason))
}

/// An entry of `added_tokens`, as far as it is checked.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    let json = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    let _: serde::de::IgnoredAny = serde_json::from_str(json).map_err(|e| format!("not JSON: {e}"))?;
    let parts = parts::split(json).ok_or("not a JSON object")?;
    let mut seen = Vec::new();
    for part in &parts {
        if seen.contains(&part.key.as_str()) {
            return Err(format!("has {} twice", quoted(&part.key)));
        }
        seen.push(&part.key);
        if part.depth > MAX_DEPTH {
            return Err(format!("{} nests {} lists and objects, more than {MAX_DEPTH}", quoted(&part.key), part.depth));
        }
    }
    let part = |key: &str| -> Result<Value, String> {
        let Some(part) = parts.iter().find(|part| part.key == key) else { return Ok(Value::Null) };
        if !part.text.starts_with(['{', 'n']) {
            return Err(format!("its {key} is neither an object nor null"));
        }
        // Once read, lists and objects take many times the bytes of their text; one long string does not.
        let table = if key == "normalizer" { part.longest_string.min(MAX_TABLE) } else { 0 };
        let (length, limit) = (part.text.len(), MAX_PART + table);
        if length > limit {
            return Err(format!("its {key} takes {length} bytes, more than {limit}"));
        }
        serde_json::from_str(part.text).map_err(|e| format!("{key}: {e}"))
    };
    for name in ["added_tokens", "model"] {
        if let Some(part) = parts.iter().find(|part| part.key == name && part.longest_string > MAX_TOKEN) {
            return Err(format!("{name} has a token of {} bytes, more than {MAX_TOKEN}", part.longest_string));
        }
    }
    if let Some(part) = parts.iter().find(|part| part.key == "model") {
        model::check(part)?;
    }
    // Before the tokenizer is built: building it normalizes its added tokens.
    growth::normalizers(part("normalizer")?)?;
    growth::pre_tokenizers(part("pre_tokenizer")?)?;
    growth::decoders(part("decoder")?)?;
    let templates = part("post_processor")?;

    let mut tokenizer = guarded(|| Tokenizer::from_bytes(bytes))?;
    guarded(|| tokenizer.with_padding(None).with_truncation(None).map(|_| ()))?;
    if let Some(part) = parts.iter().find(|part| part.key == "added_tokens") {
        let added: Vec<Added> = serde_json::from_str(part.text).map_err(|e| format!("added_tokens: {e}"))?;
        for Added { id, content } in added {
            same_id(&tokenizer, "added_tokens", &content, id)?;
        }
    }
    template::check(templates, &tokenizer)?;
    check(&tokenizer)?;
    Ok(tokenizer)
}

/// Tries a tokenizer, wherever it comes from, on a few texts.
///
/// # Errors
/// A panic, tokens beyond all measure, or random ones.
pub(crate) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && let Some(dropout) = bpe.dropout.filter(|dropout| *dropout > 0.0)
    {
        return Err(format!("model.dropout = {dropout} would give other tokens each time; it must be null"));
    }
    own_bos(tokenizer)?;
    for text in PROBES {
        let at = |e: String| format!("{e}, on the text {text:?}");
        // A vocabulary without a token for what is unknown refuses texts, and may.
        let Ok(encoding) = guarded(|| Ok(tokenizer.encode(text, false))).map_err(at)? else { continue };
        let bytes: usize = encoding.get_tokens().iter().map(String::len).sum();
        if bytes > MAX_PER_BYTE * text.len() {
            return Err(at(format!("makes tokens of {bytes} bytes")));
        }
        let _text = guarded(|| Ok(tokenizer.decode(encoding.get_ids(), false))).map_err(at)?;
    }
    Ok(())
}

/// A token that a file names with an id must have it in the vocabulary.
fn same_id(tokenizer: &Tokenizer, place: &str, token: &str, id: u32) -> Result<(), String> {
    match tokenizer.token_to_id(token) {
        Some(found) if found == id => Ok(()),
        Some(found) => Err(format!("{place} says that {} is token {id}, but it is token {found}", quoted(token))),
        None => Err(format!("{place} names the token {}, which the vocabulary has not", quoted(token))),
    }
}

/// Text out of a file for a message, quoted and cut.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", bitllama_core::excerpt(text))
}

#[cfg(test)]
mod tests;
