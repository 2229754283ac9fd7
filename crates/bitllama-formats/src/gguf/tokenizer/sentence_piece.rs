//! SentencePiece BPE, as `LlamaConverter` and `GemmaConverter` of `transformers` (`convert_slow_tokenizer.py`) express it.

use std::collections::HashSet;

use tokenizers::Tokenizer;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};

use super::super::{Array, Gguf};
use super::damaged;
use super::vocabulary::{NORMAL, UNKNOWN, USER_DEFINED, Vocabulary};
use crate::Result;

/// A space, as tokens have it.
const SPACE: &str = "▁";

/// The tokenizer without added tokens and template.
///
/// A prefix that is wanted is put in front of every piece of text, also those behind a special token: what `transformers` calls legacy,
/// and what llama.cpp does too.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) if scores or the unknown token are missing.
pub(super) fn tokenizer(file: &Gguf, vocabulary: &mut Vocabulary) -> Result<Tokenizer> {
    let scores = match file.required("tokenizer.ggml.scores", Gguf::array)? {
        Array::Floats(scores) if scores.len() == vocabulary.tokens.len() => scores,
        _ => {
            let reason = format!("metadata tokenizer.ggml.scores is no list of {} numbers", vocabulary.tokens.len());
            return Err(file.invalid(reason));
        }
    };
    runs_of_spaces(vocabulary);
    let ids = vocabulary.ids();
    let merges = merges_of_scores(vocabulary, scores, &ids);
    let unknown = match file.whole("tokenizer.ggml.unknown_token_id")? {
        Some(id) => vocabulary.tokens.get(id),
        None => vocabulary.kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| &vocabulary.tokens[id]),
    };
    let unknown = unknown.ok_or_else(|| file.invalid("the tokenizer has no unknown token"))?;
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .unk_token(unknown.to_string())
        .fuse_unk(true)
        .byte_fallback(true)
        .build();
    let mut tokenizer = Tokenizer::new(model.map_err(|e| damaged(file, e))?);
    let mark = Replace::new(" ", SPACE).map_err(|e| damaged(file, e))?;
    let unmark = Replace::new(SPACE, " ").map_err(|e| damaged(file, e))?;
    let mut decoders = vec![unmark.into(), ByteFallback::new().into(), Fuse::new().into()];
    let mut normalizers = vec![mark.into()];
    if file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, Prepend::new(SPACE.into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Gives user-defined runs of spaces (Gemma 2 and 3) the spelling back that they have in `tokenizer.json`: converters write
/// them with plain spaces, which no text has once it is normalized. Those that the vocabulary has under that spelling too stay.
fn runs_of_spaces(vocabulary: &mut Vocabulary) {
    let made_of = |token: &str, piece: &str| !token.is_empty() && token.replace(piece, "").is_empty();
    let taken: HashSet<String> =
        vocabulary.tokens.iter().filter(|token| made_of(token, SPACE)).map(|token| token.to_string()).collect();
    for (token, _) in vocabulary.tokens.iter_mut().zip(&*vocabulary.kinds).filter(|(_, kind)| **kind == USER_DEFINED) {
        let spelled = token.replace(' ', SPACE);
        if made_of(token, " ") && !taken.contains(&spelled) {
            *token = spelled.into();
        }
    }
}

/// All ways to put a token together from two others, best score first (`generate_merges`). Control and byte tokens are
/// never merged; of user-defined ones only runs of spaces, before all else: the others are found before anything is merged.
///
/// The order of tokens stands for scores that are all alike, as conversions from `tokenizer.json` have them: SentencePiece numbers
/// tokens as it found them.
fn merges_of_scores(vocabulary: &Vocabulary, scores: &[f64], ids: &Vocab) -> Merges {
    let run_of_spaces = |id: usize| {
        vocabulary.kinds[id] == USER_DEFINED && vocabulary.tokens[id].chars().all(|char| SPACE.contains(char))
    };
    let mergeable: Vec<bool> =
        (0..vocabulary.tokens.len()).map(|id| vocabulary.kinds[id] == NORMAL || run_of_spaces(id)).collect();
    let normal = || scores.iter().zip(&*vocabulary.kinds).filter(|(_, kind)| **kind == NORMAL).map(|(score, _)| score);
    let all_alike = normal().all(|score| Some(score) == normal().next());
    let find = |piece: &str| ids.get(piece).copied().filter(|id| mergeable[*id as usize]);
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| mergeable[*id]) {
        let score = match vocabulary.kinds[id] {
            USER_DEFINED => f64::INFINITY,
            _ if all_alike => -(id as f64),
            _ => scores[id],
        };
        let first = merges.len();
        let length = token.chars().count();
        for (left_length, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (find(left), find(right)) {
                merges.push((score, left_length, length - left_length, (left_id, right_id)));
            }
        }
        merges[first..].sort_by_key(|merge| merge.3);
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2))));
    let token = |id: u32| vocabulary.tokens[id as usize].to_string();
    merges.into_iter().map(|(.., (left, right))| (token(left), token(right))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sentence_piece_file;
    use super::*;

    fn merges(file: &Gguf) -> Vec<(String, String)> {
        let mut vocabulary = Vocabulary::read(file).unwrap();
        runs_of_spaces(&mut vocabulary);
        let Some(Array::Floats(scores)) = file.array("tokenizer.ggml.scores").unwrap() else { panic!() };
        merges_of_scores(&vocabulary, scores, &vocabulary.ids())
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(left, right)| (left.into(), right.into())).into()
    }

    #[test]
    fn merges_are_those_of_transformers_generate_merges() {
        let (_folder, path) = sentence_piece_file().file();
        assert_eq!(merges(&Gguf::open(&path).unwrap()), pairs([("b", "c"), ("▁", "a"), ("▁a", "b")]));
    }

    #[test]
    fn where_all_scores_are_alike_the_order_of_tokens_stands_for_them() {
        let (_folder, path) = sentence_piece_file().f32s("tokenizer.ggml.scores", &[-1000.0; 13]).file();
        assert_eq!(merges(&Gguf::open(&path).unwrap()), pairs([("▁", "a"), ("▁a", "b"), ("b", "c")]));
    }

    #[test]
    fn user_defined_runs_of_spaces_are_merged_before_all_else() {
        let mut writer = sentence_piece_file();
        let tokens = ["<unk>", "<s>", "</s>", "   ", "  ", "<0x0A>", "▁a", "▁ab", "bc", "▁", "a", "b", "c"];
        writer.texts("tokenizer.ggml.tokens", &tokens);
        writer.i32s("tokenizer.ggml.token_type", &[2, 3, 3, 4, 4, 6, 1, 1, 1, 1, 1, 1, 1]);
        let (_folder, path) = writer.file();
        let found = merges(&Gguf::open(&path).unwrap());
        assert_eq!(found[..3], pairs([("▁▁", "▁"), ("▁", "▁▁"), ("▁", "▁")]));
        assert_eq!(found[3..], pairs([("b", "c"), ("▁", "a"), ("▁a", "b")]));
    }
}
