//! A tokenizer as GGUF metadata: the inverse of `gguf/tokenizer/`.
//!
//! Metadata name the split of texts (`tokenizer.ggml.pre`) and have scores in place of SentencePiece's merges. Whether the file
//! means the same tokenizer is found out by reading it back ([`differences`]).

use std::collections::HashMap;

use bitllama_core::ModelConfig;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::super::tokenizer::{CONTROL, NORMAL, PROBE, UNKNOWN, USER_DEFINED, split_name};
use super::super::{Array, Value};
use crate::companions::{Companions, TOKENIZER_CONFIG};
use crate::tokenizer::own_bos;

/// `llama_token_type` of a row of the embedding without a token.
const UNUSED: i64 = 5;
/// The same of a byte.
const BYTE: i64 = 6;

/// A space, as SentencePiece's tokens have it.
const SPACE: char = '▁';

/// Metadata of a tokenizer.
///
/// # Errors
/// A tokenizer that GGUF has no form for, in one line without the file.
pub(super) fn metadata(
    tokenizer: &Tokenizer,
    companions: Option<&Companions>,
    config: &ModelConfig,
) -> Result<Vec<(String, Value)>, String> {
    let json = serde_json::to_value(tokenizer).map_err(|e| format!("the tokenizer cannot be written: {e}"))?;
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or_default();
    if kind != "BPE" {
        return Err(format!("a tokenizer of type {kind} has no form in GGUF files; BPE has"));
    }
    let sentence_piece = model["byte_fallback"].as_bool().unwrap_or(false);
    let added = added_tokens(&json);
    let mut tokens: Vec<Option<String>> = vec![None; config.vocab_size];
    for (token, id) in tokenizer.get_vocab(true) {
        let place = tokens.get_mut(id as usize);
        *place.ok_or_else(|| format!("the token of id {id} has no row in the embedding"))? = Some(token);
    }
    let unknown = model["unk_token"].as_str();
    let kinds: Vec<i64> =
        (0..).zip(&tokens).map(|(id, token)| kind_of(id, token.as_deref(), &added, unknown, sentence_piece)).collect();
    let mut out: Vec<(&str, Value)> = Vec::new();
    if sentence_piece {
        out.push(("model", Value::String("llama".into())));
        out.push(("pre", Value::String("default".into())));
        out.push(("scores", Value::Array(Array::Floats(scores(model, &tokens)?))));
        let prefix = json["normalizer"].to_string().contains("\"Prepend\"");
        out.push(("add_space_prefix", Value::Bool(prefix)));
        let id = unknown.and_then(|unknown| tokenizer.token_to_id(unknown));
        out.extend(id.map(|id| ("unknown_token_id", Value::Unsigned(id.into()))));
    } else {
        out.push(("model", Value::String("gpt2".into())));
        let pre = split_name(tokenizer, model["ignore_merges"].as_bool().unwrap_or(false))?;
        out.push(("pre", Value::String(pre.into())));
        let merges = merges(model).map(|(left, right)| format!("{left} {right}")).collect();
        out.push(("merges", Value::Array(Array::Strings(merges))));
    }
    let spelled = (0..).zip(tokens).zip(&kinds).map(|((id, token), kind)| spelling(id, token, *kind)).collect();
    out.push(("tokens", Value::Array(Array::Strings(spelled))));
    out.push(("token_type", Value::Array(Array::Integers(kinds))));

    let bos = own_bos(tokenizer)?;
    out.push(("add_bos_token", Value::Bool(bos.is_some())));
    out.push(("add_eos_token", Value::Bool(false)));
    let eos = config.eos_token_ids.first().copied();
    // Tokens that end a generation: readers know one beside the EOS, and those with names that say so.
    let turn = config.end_tokens().find(|id| Some(*id) != eos);
    for (name, id) in [("bos", bos.or(config.bos_token_id)), ("eos", eos), ("eot", turn)] {
        let key = match name {
            "bos" => "bos_token_id",
            "eos" => "eos_token_id",
            _ => "eot_token_id",
        };
        out.extend(id.map(|id| (key, Value::Unsigned(id.into()))));
    }
    let mut out: Vec<_> = out.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    out.extend(chat_template(companions));
    Ok(out)
}

/// Added tokens by id, and whether they are special.
fn added_tokens(json: &Json) -> HashMap<u32, bool> {
    let tokens = json["added_tokens"].as_array().into_iter().flatten();
    let token = |token: &Json| Some((u32::try_from(token["id"].as_u64()?).ok()?, token["special"].as_bool()?));
    tokens.filter_map(token).collect()
}

/// The `llama_token_type` of a token.
fn kind_of(id: u32, token: Option<&str>, added: &HashMap<u32, bool>, unknown: Option<&str>, bytes: bool) -> i64 {
    let Some(token) = token else { return UNUSED };
    let is_byte = || bytes && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
    match added.get(&id) {
        _ if bytes && unknown == Some(token) => UNKNOWN,
        Some(true) => CONTROL,
        Some(false) => USER_DEFINED,
        None if is_byte() => BYTE,
        None => NORMAL,
    }
}

/// A token as the file spells it. Tokens that a user defined are found in plain text, where spaces are spaces.
fn spelling(id: u32, token: Option<String>, kind: i64) -> String {
    match token {
        Some(token) if kind == USER_DEFINED && token.chars().all(|char| char == SPACE) => token.replace(SPACE, " "),
        Some(token) => token,
        None => format!("[PAD{id}]"),
    }
}

/// The merges of a BPE model, best first: pairs, or in older files pairs with a space between them.
fn merges(model: &Json) -> impl Iterator<Item = (&str, &str)> {
    model["merges"].as_array().into_iter().flatten().filter_map(|merge| match merge {
        Json::String(merge) => merge.split_once(' '),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    })
}

/// SentencePiece's score of each token: the lower, the later its first merge comes.
fn scores(model: &Json, tokens: &[Option<String>]) -> Result<Vec<f64>, String> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges(model).enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    // f32 counts up to 2^24.
    if ranks.len() >= 1 << 24 {
        return Err(format!("the tokenizer has {} merged tokens, more than scores can tell apart", ranks.len()));
    }
    let last = merges(model).count();
    let rank = |token: &Option<String>| token.as_ref().and_then(|token| ranks.get(token)).copied().unwrap_or(last);
    Ok(tokens.iter().map(|token| -(rank(token) as f64)).collect())
}

/// The chat template of `tokenizer_config.json` or a file of its own.
fn chat_template(companions: Option<&Companions>) -> Vec<(String, Value)> {
    let Some(companions) = companions else { return Vec::new() };
    let key = || "tokenizer.chat_template".to_string();
    if let Some(text) = companions.get("chat_template.jinja").and_then(|bytes| std::str::from_utf8(bytes).ok()) {
        return vec![(key(), Value::String(text.into()))];
    }
    let json = |name: &str| companions.get(name).and_then(|bytes| serde_json::from_slice::<Json>(bytes).ok());
    let files = ["chat_template.json", TOKENIZER_CONFIG].into_iter().filter_map(json);
    let template = files.map(|json| json["chat_template"].clone()).find(|template| !template.is_null());
    match template {
        Some(Json::String(text)) => vec![(key(), Value::String(text))],
        // Several by name; `default` is the plain one.
        Some(Json::Array(named)) => {
            let pair = |item: &Json| Some((item["name"].as_str()?.to_string(), item["template"].as_str()?.to_string()));
            let named: Vec<(String, String)> = named.iter().filter_map(pair).collect();
            let names = named.iter().map(|(name, _)| name).filter(|name| *name != "default").cloned().collect();
            let key_of = |name: &str| if name == "default" { key() } else { format!("{}.{name}", key()) };
            let mut out: Vec<_> =
                named.iter().map(|(name, text)| (key_of(name), Value::String(text.clone()))).collect();
            out.push(("tokenizer.chat_templates".into(), Value::Array(Array::Strings(names))));
            out
        }
        _ => Vec::new(),
    }
}

/// The first text on which two tokenizers differ in ids, with or without special tokens: of [`PROBE`], and of all texts of the
/// vocabulary put together in pieces.
pub(super) fn difference(written: &Tokenizer, back: &Tokenizer) -> Option<String> {
    let words: Vec<String> =
        (0..written.get_vocab_size(true) as u32).step_by(7).filter_map(|id| written.decode(&[id], true).ok()).collect();
    let pieces = words.chunks(64).map(|words| words.concat());
    let lines = PROBE.split_inclusive(' ').map(str::to_string);
    let texts = std::iter::once(PROBE.to_string()).chain(lines).chain(pieces);
    let ids = |tokenizer: &Tokenizer, text: &str| {
        let encode = |special| tokenizer.encode_fast(text, special).ok().map(|found| found.get_ids().to_vec());
        [encode(false), encode(true)]
    };
    texts.into_iter().find(|text| ids(written, text) != ids(back, text))
}
