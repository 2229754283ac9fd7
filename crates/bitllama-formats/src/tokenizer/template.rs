//! Tokens that a tokenizer puts around a text: BOS in front, EOS or a separator behind.

use serde_json::Value;
use tokenizers::{Encoding, Token, Tokenizer};

use super::panics::guarded;
use super::parts::steps;
use super::{quoted, same_id};

/// Pieces of a template, and tokens of a piece.
const MAX_PIECES: usize = 16;

/// The token that the tokenizer puts in front of a text by itself, if any.
///
/// # Errors
/// More than one token in front, or a tokenizer that fails.
pub fn own_bos(tokenizer: &Tokenizer) -> Result<Option<u32>, String> {
    // Only what is put around a text, so that it may be one which the vocabulary has not.
    let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let encoding = guarded(|| tokenizer.post_process(text, None, true))?;
    let front = encoding.get_special_tokens_mask().iter().take_while(|special| **special == 1).count();
    match &encoding.get_ids()[..front] {
        [] => Ok(None),
        [bos] => Ok(Some(*bos)),
        several => Err(format!("the tokenizer puts {} tokens in front of a text; one is supported", several.len())),
    }
}

/// Checks the templates of a `post_processor`: each holds the text once, and all its tokens are in the vocabulary under the ids
/// that it gives.
///
/// # Errors
/// The first fault, with the token.
pub(super) fn check(part: Value, tokenizer: &Tokenizer) -> Result<(), String> {
    for step in steps(part, "processors") {
        match step["type"].as_str() {
            Some("TemplateProcessing") => template(&step, tokenizer)?,
            Some("BertProcessing" | "RobertaProcessing") => {
                for key in ["sep", "cls"] {
                    if let (Some(token), Some(id)) = (step[key][0].as_str(), id(&step[key][1])) {
                        same_id(tokenizer, &format!("post_processor.{key}"), token, id)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn template(step: &Value, tokenizer: &Tokenizer) -> Result<(), String> {
    let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
    if pieces.len() > MAX_PIECES {
        return Err(format!("post_processor.single has {} pieces, more than {MAX_PIECES}", pieces.len()));
    }
    let texts: Vec<&Value> = pieces.iter().map(|piece| &piece["Sequence"]["id"]).filter(|id| !id.is_null()).collect();
    if texts != [&Value::from("A")] {
        return Err("post_processor.single does not hold the text, `$A`, exactly once".into());
    }
    for name in pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        let token = &step["special_tokens"][name];
        let (Some(ids), Some(tokens)) = (token["ids"].as_array(), token["tokens"].as_array()) else {
            return Err(format!("post_processor.single has {}, which special_tokens lacks", quoted(name)));
        };
        if ids.len() != tokens.len() || ids.is_empty() || ids.len() > MAX_PIECES {
            let (ids, tokens) = (ids.len(), tokens.len());
            return Err(format!("post_processor.special_tokens gives {} {tokens} tokens and {ids} ids", quoted(name)));
        }
        for (token, id) in tokens.iter().zip(ids) {
            if let (Some(token), Some(id)) = (token.as_str(), self::id(id)) {
                same_id(tokenizer, "post_processor", token, id)?;
            }
        }
    }
    Ok(())
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| id.try_into().ok())
}
