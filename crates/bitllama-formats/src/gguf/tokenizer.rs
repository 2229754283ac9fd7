//! The tokenizer that a GGUF was made from, rebuilt from metadata.
//!
//! Metadata hold vocabulary and merges, but how text is split before merging only by name (`tokenizer.ggml.pre`). A name
//! that is not known is refused: a wrong split gives other tokens without any error.

use std::collections::HashSet;

use bitllama_core::excerpt;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::{Array, Gguf, special};
use crate::tokenizer::{MAX_TOKEN, check};
use crate::{Error, Result};

/// `llama_token_type`, where it matters.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splits of text before merging, as the `tokenizer.json` of Llama 3 and of Qwen 2 have them.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Rebuilds the tokenizer.
///
/// # Errors
/// [`Error::Invalid`] if metadata are missing or do not fit together, or name a model or a split that is not known.
pub(super) fn tokenizer(file: &Gguf) -> Result<Tokenizer> {
    let vocabulary = Vocabulary::read(file)?;
    let (mut tokenizer, bos) = match file.required("tokenizer.ggml.model", Gguf::text)? {
        "gpt2" => byte_level(file, &vocabulary)?,
        "llama" => (sentence_piece(file, &vocabulary)?, true),
        other => {
            let other = excerpt(other);
            let reason = format!("tokenizer.ggml.model = {other} is not supported; it must be gpt2 or llama");
            return Err(file.invalid(reason));
        }
    };
    let mut added = Vec::new();
    for (token, kind) in vocabulary.tokens.iter().zip(&vocabulary.kinds) {
        if matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty() {
            added.push(AddedToken::from(token, *kind != USER_DEFINED).normalized(false));
        }
    }
    // Goes by the flag of each: a user-defined token stays when special ones are left out of decoded text.
    tokenizer.add_tokens(&added);
    template(file, &mut tokenizer, &vocabulary, bos)?;
    check(&tokenizer).map_err(|reason| file.invalid(reason))?;
    Ok(tokenizer)
}

struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let Array::Strings(tokens) = file.required("tokenizer.ggml.tokens", Gguf::array)? else {
            return Err(file.invalid("metadata tokenizer.ggml.tokens is no list of strings"));
        };
        // Before anything is made of them: rows of the embedding are in the file, tokens may be of no length.
        let rows = file.tensor("token_embd.weight").map_or(usize::MAX, |embedding| embedding.shape[0]);
        if tokens.len() > rows {
            let tokens = tokens.len();
            return Err(
                file.invalid(format!("the tokenizer has {tokens} tokens, but the model's vocab_size is {rows}"))
            );
        }
        if let Some(long) = tokens.iter().find(|token| token.len() > MAX_TOKEN) {
            let reason = format!("tokenizer.ggml.tokens has a token of {} bytes, more than {MAX_TOKEN}", long.len());
            return Err(file.invalid(reason));
        }
        let mut seen = HashSet::with_capacity(tokens.len());
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(file.invalid(format!("tokenizer.ggml.tokens has `{}` twice", excerpt(twice))));
        }
        let kinds = match file.array("tokenizer.ggml.token_type")? {
            None => vec![NORMAL; tokens.len()],
            Some(Array::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            Some(_) => {
                let reason = format!("metadata tokenizer.ggml.token_type is no list of {} integers", tokens.len());
                return Err(file.invalid(reason));
            }
        };
        Ok(Vocabulary { tokens, kinds })
    }

    fn ids(&self) -> Vocab {
        (0..).zip(self.tokens).map(|(id, token)| (token.clone(), id)).collect()
    }
}

/// Byte-level BPE, and whether its family puts a BOS in front if the metadata do not say.
fn byte_level(file: &Gguf, vocabulary: &Vocabulary) -> Result<(Tokenizer, bool)> {
    let Some(pre) = file.text("tokenizer.ggml.pre")? else {
        return Err(
            file.invalid("has no tokenizer.ggml.pre, so how it splits text is not known; convert the model anew")
        );
    };
    let Array::Strings(listed) = file.required("tokenizer.ggml.merges", Gguf::array)? else {
        return Err(file.invalid("metadata tokenizer.ggml.merges is no list of strings"));
    };
    let mut merges = Merges::with_capacity(listed.len());
    for merge in listed {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let (left, right) = pair
            .ok_or_else(|| file.invalid(format!("tokenizer.ggml.merges has `{}`, not two tokens", excerpt(merge))))?;
        merges.push((left.into(), right.into()));
    }
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let model = BPE::builder().vocab_and_merges(vocabulary.ids(), merges).ignore_merges(llama3).build();
    let mut tokenizer = Tokenizer::new(model.map_err(|e| damaged(file, e))?);
    let whole = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.into());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| damaged(file, e))
    };
    match pre {
        "default" | "gpt-2" | "gpt2" => tokenizer.with_pre_tokenizer(Some(whole)),
        "smollm" => {
            let parts = vec![Digits::new(true).into(), whole.into()];
            tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(parts)))
        }
        "qwen2" => {
            let parts = vec![split(QWEN2_SPLIT)?.into(), bytes_only.into()];
            tokenizer.with_normalizer(Some(NFC)).with_pre_tokenizer(Some(PreTokenizers::new(parts)))
        }
        _ if llama3 => {
            let parts = vec![split(LLAMA3_SPLIT)?.into(), bytes_only.into()];
            tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(parts)))
        }
        _ => {
            let known = "default, gpt-2, smollm, llama-bpe, qwen2";
            let pre = excerpt(pre);
            return Err(file.invalid(format!("tokenizer.ggml.pre = {pre} is not supported; supported are {known}")));
        }
    };
    tokenizer.with_decoder(Some(whole));
    Ok((tokenizer, llama3))
}

/// SentencePiece BPE, as `LlamaConverter` of `transformers` (`convert_slow_tokenizer.py`) expresses it.
fn sentence_piece(file: &Gguf, vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let scores = match file.required("tokenizer.ggml.scores", Gguf::array)? {
        Array::Floats(scores) if scores.len() == vocabulary.tokens.len() => scores,
        _ => {
            let reason = format!("metadata tokenizer.ggml.scores is no list of {} numbers", vocabulary.tokens.len());
            return Err(file.invalid(reason));
        }
    };
    let ids = vocabulary.ids();
    let merges = merges_of_scores(vocabulary, scores, &ids);
    let unknown = match file.whole("tokenizer.ggml.unknown_token_id")? {
        Some(id) => vocabulary.tokens.get(id),
        None => vocabulary.kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| &vocabulary.tokens[id]),
    };
    let unknown = unknown.ok_or_else(|| file.invalid("the tokenizer has no unknown token"))?;
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .unk_token(unknown.clone())
        .fuse_unk(true)
        .byte_fallback(true)
        .build();
    let mut tokenizer = Tokenizer::new(model.map_err(|e| damaged(file, e))?);
    let mark = || Replace::new(" ", "▁").map_err(|e| damaged(file, e));
    let unmark = Replace::new("▁", " ").map_err(|e| damaged(file, e))?;
    let mut decoders = vec![unmark.into(), ByteFallback::new().into(), Fuse::new().into()];
    if file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        let parts = vec![Prepend::new("▁".into()).into(), mark()?.into()];
        tokenizer.with_normalizer(Some(Normalizers::new(parts)));
        decoders.push(Strip::new(' ', 1, 0).into());
    } else {
        tokenizer.with_normalizer(Some(Normalizers::new(vec![mark()?.into()])));
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// All ways to put a token together from two others, best score first (`generate_merges`). Control and byte tokens are
/// never merged.
fn merges_of_scores(vocabulary: &Vocabulary, scores: &[f64], ids: &Vocab) -> Merges {
    let normal = |piece: &str| ids.get(piece).copied().filter(|id| vocabulary.kinds[*id as usize] == NORMAL);
    let mut merges = Vec::new();
    for (token, score) in vocabulary.tokens.iter().zip(scores) {
        if normal(token).is_none() {
            continue;
        }
        let first = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (normal(left), normal(right)) {
                merges.push((*score, left, right, (left_id, right_id)));
            }
        }
        merges[first..].sort_by_key(|merge| merge.3);
    }
    let chars = |piece: &str| piece.chars().count();
    merges.sort_by(|a, b| {
        let by_length = || (chars(b.1), chars(b.2)).cmp(&(chars(a.1), chars(a.2)));
        b.0.total_cmp(&a.0).then_with(by_length)
    });
    merges.into_iter().map(|(_, left, right, _)| (left.into(), right.into())).collect()
}

/// Puts BOS in front and EOS behind where the model's own tokenizer does.
fn template(file: &Gguf, tokenizer: &mut Tokenizer, vocabulary: &Vocabulary, bos_if_unsaid: bool) -> Result<()> {
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
        specials.push((token.clone(), id));
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

fn damaged(file: &Gguf, error: impl std::fmt::Display) -> Error {
    file.invalid(crate::hf::one_line(&format!("the tokenizer cannot be built: {error}")))
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
