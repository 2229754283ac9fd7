//! The tokenizer that a GGUF was made from, rebuilt from metadata.
//!
//! Metadata hold vocabulary and merges or scores, but how text is split before merging only by name (`tokenizer.ggml.pre`).
//! A name that is not known is refused: a wrong split gives other tokens without any error.
//!
//! | file | subject |
//! |---|---|
//! | `vocabulary.rs` | tokens and their kinds; which are found in a text before it is split |
//! | `byte_level.rs` | byte-level BPE: the splits by name |
//! | `sentence_piece.rs` | SentencePiece: merges from scores, marks of spaces |
//! | `template.rs` | BOS and EOS |

mod byte_level;
mod sentence_piece;
mod template;
mod vocabulary;

use bitllama_core::excerpt;
use tokenizers::Tokenizer;

use super::Gguf;
use crate::tokenizer::check;
use crate::{Error, Result};
use vocabulary::{Strip, Vocabulary};

pub(super) use byte_level::split_name;
pub(super) use vocabulary::{CONTROL, NORMAL, UNKNOWN, USER_DEFINED};

/// Text on which tokenizers are compared: digits, contractions, white space, capitals, signs and scripts that splits treat
/// differently.
pub(super) const PROBE: &str = "Hello, world! I'm here; you'LL see 3 33 333 3333 33333 x=y+z\n\n\n\t\ttabs  and   spaces \r\n \
    naïve café ΑΒΓ αβγ Привет мир 你好，世界。今日は 안녕하세요 שלום مرحبا हिन्दी ไทย 🚀🙂👍🏽 ½ ² № “quoted” — dash… \
    camelCase HTTPServer snake_case kebab-case 1.5e-3 $100 50% a/b\\c <tag attr=\"v\"> {json: [1, 2]} // # @user \
    ''''' \"\"\"\" !!!??? ---- ==== .... ,,,,  're 'RE 'Ve'd e\u{301} \u{200b}\u{a0}\u{3000}end ";

/// Rebuilds the tokenizer.
///
/// # Errors
/// [`Error::Invalid`] if metadata are missing or do not fit together, or name a model or a split that is not known.
pub(super) fn tokenizer(file: &Gguf) -> Result<Tokenizer> {
    let mut vocabulary = Vocabulary::read(file)?;
    let (mut tokenizer, bos) = match file.required("tokenizer.ggml.model", Gguf::text)? {
        "gpt2" => byte_level::tokenizer(file, &vocabulary)?,
        "llama" => (sentence_piece::tokenizer(file, &mut vocabulary)?, true),
        other => {
            let other = excerpt(other);
            let reason = format!("tokenizer.ggml.model = {other} is not supported; it must be gpt2 or llama");
            return Err(file.invalid(reason));
        }
    };
    tokenizer.add_tokens(&vocabulary.added(Strip::of(file)?));
    template::add(file, &mut tokenizer, &vocabulary, bos)?;
    check(&tokenizer).map_err(|reason| file.invalid(reason))?;
    Ok(tokenizer)
}

fn damaged(file: &Gguf, error: impl std::fmt::Display) -> Error {
    file.invalid(crate::hf::one_line(&format!("the tokenizer cannot be built: {error}")))
}

#[cfg(test)]
mod published_tests;
#[cfg(test)]
mod tests;
