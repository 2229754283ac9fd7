//! BOS in front of a text and EOS behind it, where the model's own tokenizer puts them.

use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::super::{Gguf, special};
use super::damaged;
use super::vocabulary::Vocabulary;
use crate::Result;

/// Gives the tokenizer its template. `bos_if_unsaid` is the habit of its family.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) if a token is wanted that is not there.
pub(super) fn add(file: &Gguf, tokenizer: &mut Tokenizer, vocabulary: &Vocabulary, bos_if_unsaid: bool) -> Result<()> {
    let mut pieces = vec!["$A".to_string()];
    let mut specials = Vec::new();
    for (name, if_unsaid) in [("bos", bos_if_unsaid), ("eos", false)] {
        let wanted = file.flag(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(if_unsaid);
        if !wanted {
            continue;
        }
        let Some(id) = special::token(file, name)? else {
            if file.flag(&format!("tokenizer.ggml.add_{name}_token"))? == Some(true) {
                let reason = format!("tokenizer.ggml.add_{name}_token is true, but there is no {name}_token_id");
                return Err(file.invalid(reason));
            }
            continue;
        };
        let token = vocabulary.tokens.get(id as usize);
        let token = token.ok_or_else(|| file.invalid(format!("tokenizer.ggml.{name}_token_id = {id} is no token")))?;
        // `:0` is the number of the segment.
        let piece = format!("{token}:0");
        if name == "bos" {
            pieces.insert(0, piece)
        } else {
            pieces.push(piece)
        }
        specials.push((token.to_string(), id));
    }
    if specials.is_empty() {
        return Ok(());
    }
    let template = TemplateProcessing::builder()
        .try_single(pieces)
        .map_err(|e| damaged(file, e))?
        .special_tokens(specials)
        .build()
        .map_err(|e| damaged(file, e))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}
