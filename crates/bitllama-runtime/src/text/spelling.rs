//! Control tokens that a text spells: text in a corpus, tokens in a prompt.

use std::borrow::Cow;
use std::collections::HashSet;

use bitllama_formats::tokenizer::guarded;
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::{Error, Result};

/// The tokenizer for the texts of evaluation, calibration and training, where `</s>` is four characters and not the end of a
/// sequence, as for llama.cpp (`parse_special = false`); with `parse_special` the tokenizer as it is. BOS and EOS that
/// the tokenizer's template puts around a text stay.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer cannot be changed or fails.
pub fn for_corpus(tokenizer: &Tokenizer, parse_special: bool) -> Result<Cow<'_, Tokenizer>> {
    let control: Vec<(u32, String)> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (id, token.content))
        .collect();
    if parse_special || control.is_empty() {
        return Ok(Cow::Borrowed(tokenizer));
    }
    let mut tokenizer = tokenizer.clone();
    tokenizer.set_encode_special_tokens(true);
    if spells(&tokenizer, &control)? {
        let model = without(tokenizer.get_model(), &control).map_err(|e| Error::Tokenizer(e.to_string()))?;
        tokenizer.with_model(model);
    }
    Ok(Cow::Owned(tokenizer))
}

/// True if the model makes a control token of its own spelling: Unigram has them among its pieces, and merges of a BPE may
/// end in one.
fn spells(tokenizer: &Tokenizer, control: &[(u32, String)]) -> Result<bool> {
    for (id, content) in control {
        for text in [content.clone(), format!("a{content}a"), format!("a {content} a")] {
            let encoding = guarded(|| tokenizer.encode_fast(text, false)).map_err(Error::Tokenizer)?;
            if encoding.get_ids().contains(id) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The model without a way from text to the control tokens: they keep their ids and get names that no text has.
fn without(model: &ModelWrapper, control: &[(u32, String)]) -> serde_json::Result<ModelWrapper> {
    let mut json = serde_json::to_value(model)?;
    // Found by this name where a text has no token for something; bytes likewise.
    let unknown = json["unk_token"].as_str().unwrap_or_default().to_string();
    let names: HashSet<&str> = control
        .iter()
        .map(|(_, content)| &content[..])
        .filter(|name| *name != unknown && !(name.len() == 6 && name.starts_with("<0x") && name.ends_with('>')))
        .collect();
    // U+10FFFF is no character and never will be.
    let hidden = |name: &str| format!("\u{10ffff}{name}\u{10ffff}");
    match &mut json["vocab"] {
        Value::Object(vocab) => {
            for name in &names {
                if let Some(id) = vocab.remove(*name) {
                    vocab.insert(hidden(name), id);
                }
            }
        }
        Value::Array(pieces) => {
            for piece in pieces.iter_mut().filter_map(|piece| piece.get_mut(0)) {
                if let Some(name) = piece.as_str().filter(|name| names.contains(name)) {
                    *piece = hidden(name).into();
                }
            }
        }
        _ => {}
    }
    if let Value::Array(merges) = &mut json["merges"] {
        merges.retain(|merge| match [&merge[0], &merge[1]].map(Value::as_str) {
            [Some(a), Some(b)] => !names.contains(a) && !names.contains(b) && !names.contains(&format!("{a}{b}")[..]),
            _ => true,
        });
    }
    serde_json::from_value(json)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::encode;

    /// A tokenizer with `<s>` in front, and with the control tokens `<s>`, `</s>` and a token `[user]` that is none.
    fn tokenizer(pre_tokenizer: Value, model: Value) -> Tokenizer {
        let added = |id: u32, content: &str, special: bool| {
            json!({ "id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
        };
        let template = json!({ "type": "TemplateProcessing", "pair": [],
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } });
        let json = json!({ "version": "1.0", "normalizer": null, "pre_tokenizer": pre_tokenizer, "model": model,
            "added_tokens": [added(1, "<s>", true), added(2, "</s>", true), added(3, "[user]", false)],
            "post_processor": template, "decoder": null });
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    const PIECES: [&str; 12] = ["<unk>", "<s>", "</s>", "[user]", "<", "/", "s", ">", "a", "</", "</s", "as"];

    fn vocab() -> Value {
        PIECES
            .iter()
            .zip(0..)
            .map(|(piece, id)| (piece.to_string(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    #[test]
    fn spelled_control_tokens_are_text_for_every_model() {
        let merges = json!([["<", "/"], ["</", "s"], ["</s", ">"], ["a", "s"]]);
        let bpe = json!({ "type": "BPE", "vocab": vocab(), "merges": merges, "unk_token": "<unk>" });
        let pieces: Vec<Value> =
            PIECES.iter().map(|piece| json!([piece, if piece.len() > 1 { 0.0 } else { -3.0 }])).collect();
        let unigram = json!({ "type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false });
        let words = json!({ "type": "WordLevel", "vocab": vocab(), "unk_token": "<unk>" });
        let split = json!({ "type": "WhitespaceSplit" });
        for (pre_tokenizer, model, text, wanted) in [
            (Value::Null, bpe, "as</s>a[user]<s>", vec![11, 10, 7, 8, 3, 4, 6, 7]),
            (Value::Null, unigram, "as</s>a[user]<s>", vec![11, 10, 7, 8, 3, 4, 6, 7]),
            (split, words, "as </s> [user] <s> a", vec![11, 0, 3, 0, 8]),
        ] {
            let tokenizer = tokenizer(pre_tokenizer, model.clone());
            let text_only = for_corpus(&tokenizer, false).unwrap();
            assert_eq!(encode(&text_only, None, text).unwrap(), wanted, "{model}");
            // What the tokenizer puts around a text by itself stays, and so do the names of tokens.
            assert_eq!(text_only.encode(text, true).unwrap().get_ids()[0], 1);
            assert_eq!(text_only.decode(&[2, 11], false).unwrap(), "</s> as");
            let parsed = for_corpus(&tokenizer, true).unwrap();
            assert!(encode(&parsed, None, text).unwrap().contains(&2));
        }
    }

    #[test]
    fn a_tokenizer_without_control_tokens_is_not_copied() {
        let tokenizer = Tokenizer::new(tokenizers::models::bpe::BPE::default());
        assert!(matches!(for_corpus(&tokenizer, false), Ok(Cow::Borrowed(_))));
    }
}
