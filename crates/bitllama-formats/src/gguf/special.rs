//! Special tokens of a GGUF: which begin and end a text, which end a generation, and the files that say so elsewhere.

use bitllama_core::ModelConfig;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{Array, Gguf};
use crate::Result;
use crate::companions::{Companions, END_NAMES, TOKENIZER_CONFIG, tokenizer_config};

/// `llama_token_type` of tokens that text does not spell by chance: control tokens, and those that a user added.
const ADDED: [i64; 2] = [3, 4];

/// The special token `name` (`bos`, `eos`, ..), if the file has one. SentencePiece models have BOS 1 and EOS 2 where nothing is
/// said, as in llama.cpp.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a value that is no token id.
pub(super) fn token(file: &Gguf, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.whole(&key)? else {
        let unsaid = match (file.text("tokenizer.ggml.model")?, name) {
            (Some("llama"), "bos") => 1,
            (Some("llama"), "eos") => 2,
            _ => return Ok(None),
        };
        return Ok(kinds(file)?.get(unsaid as usize).is_some_and(|kind| ADDED.contains(kind)).then_some(unsaid));
    };
    u32::try_from(id).map(Some).map_err(|_| file.invalid(format!("{key} = {id} is no token id")))
}

/// Tokens that end a generation beside the EOS: end of a turn, end of a message, and the tokens of [`END_NAMES`].
///
/// # Errors
/// As [`token`].
pub(super) fn ends(file: &Gguf) -> Result<Vec<u32>> {
    let mut ends: Vec<u32> = [token(file, "eot")?, token(file, "eom")?].into_iter().flatten().collect();
    if let Some(Array::Strings(tokens)) = file.array("tokenizer.ggml.tokens")? {
        let end = |text: &str, kind: i64| {
            // Gemma's `</s>` is a tag of HTML, which a user added.
            END_NAMES.contains(&text) && ADDED.contains(&kind) && (text != "</s>" || kind == ADDED[0])
        };
        let tokens = (0..).zip(tokens).zip(kinds(file)?);
        ends.extend(tokens.filter(|((_, text), kind)| end(text, **kind)).map(|((id, _), _)| id));
    }
    Ok(ends)
}

/// Kinds of the tokens, as `llama_token_type` numbers them; empty where the file does not say.
fn kinds(file: &Gguf) -> Result<&[i64]> {
    match file.array("tokenizer.ggml.token_type")? {
        Some(Array::Integers(kinds)) => Ok(kinds),
        _ => Ok(&[]),
    }
}

/// The companions that a Hugging Face directory would have for this file's tokenizer: its chat template, or several by name.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a template that is no string.
pub(super) fn companions(file: &Gguf, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Companions> {
    let mut companions = Companions::default();
    let default = file.text("tokenizer.chat_template")?;
    let mut named = Vec::new();
    if let Some(Array::Strings(names)) = file.array("tokenizer.chat_templates")? {
        for name in names {
            let template = file.text(&format!("tokenizer.chat_template.{name}"))?;
            named.extend(template.map(|template| json!({ "name": name, "template": template })));
        }
    }
    let template = match (default, named.is_empty()) {
        (None, true) => return Ok(companions),
        (Some(template), true) => Value::from(template),
        (default, false) => {
            named.extend(default.map(|template| json!({ "name": "default", "template": template })));
            Value::from(named)
        }
    };
    let mut json = tokenizer_config(config, tokenizer);
    json["chat_template"] = template;
    companions.insert(TOKENIZER_CONFIG, format!("{json:#}\n").into_bytes())?;
    Ok(companions)
}

#[cfg(test)]
#[path = "special_tests.rs"]
mod tests;
