//! Byte-level BPE: merges as the file lists them, and how a text is split before merging, by name.
//!
//! Names are those that `convert_hf_to_gguf.py` writes into `tokenizer.ggml.pre`, and `llama-vocab.cpp` knows which of them
//! mean one split. The patterns here are those of the models' own `tokenizer.json`.

use bitllama_core::excerpt;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
    SplitDelimiterBehavior, Tokenizer,
};

use super::super::{Array, Gguf};
use super::vocabulary::Vocabulary;
use super::{PROBE, damaged};
use crate::Result;

/// One step of a split.
#[derive(Clone, Copy)]
enum Step {
    /// Matches of the pattern apart from each other and from what is between them.
    Matches(&'static str),
    /// Every digit by itself.
    Digits,
    /// GPT-2's pattern, which the library has built in.
    Gpt2,
}

/// How a family splits texts.
struct PreTokenizer {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether texts are brought into Unicode's normal form C first.
    nfc: bool,
    /// Whether a piece that is a token is taken as it is, though no merges lead there.
    whole_pieces: bool,
    /// Whether a BOS is put in front where the metadata do not say.
    bos: bool,
}

const PLAIN: PreTokenizer = PreTokenizer { names: &[], steps: &[], nfc: false, whole_pieces: false, bos: false };

const LLAMA3: Step = Step::Matches(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
));
const QWEN2: Step = Step::Matches(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
));
const TEKKEN: Step = Step::Matches(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
));
const GPT4O: Step = Step::Matches(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
));
const LINE_ENDS: Step = Step::Matches(r"[\r\n]");
const CJK: Step = Step::Matches("[一-龥ࠀ-一가-퟿]+");
/// Letters of alphabets with two cases, listed one range after the other.
const DEEPSEEK_LETTERS: Step = Step::Matches(concat!(
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}",
    r"\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}",
    r"\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}",
    r"\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}",
    r"\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}",
    r"\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}",
    r"\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}",
    r"\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}",
    r"\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}",
    r"\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}",
    r"\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}",
    r"\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}",
    r"\x{1e900}-\x{1e943}]+",
));
const DEEPSEEK_V3: Step = Step::Matches(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
));

/// The splits that are known.
const SPLITS: [PreTokenizer; 12] = [
    PreTokenizer { names: &["default", "gpt-2", "gpt2", "phi-2"], steps: &[Step::Gpt2], ..PLAIN },
    // SmolLM 1 and 2; Granite 3 is `refact`.
    PreTokenizer { names: &["smollm", "refact", "starcoder"], steps: &[Step::Digits, Step::Gpt2], ..PLAIN },
    PreTokenizer { names: &["command-r"], steps: &[Step::Digits, Step::Gpt2], nfc: true, ..PLAIN },
    // Llama 3, BitNet b1.58 2B4T, DeepSeek-R1-Distill-Llama.
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        steps: &[LLAMA3],
        whole_pieces: true,
        bos: true,
        ..PLAIN
    },
    // SmolLM3: Llama 3's vocabulary without BOS.
    PreTokenizer { names: &["smaug-bpe"], steps: &[LLAMA3], whole_pieces: true, ..PLAIN },
    // Phi 4, OLMo 2.
    PreTokenizer { names: &["dbrx"], steps: &[LLAMA3], ..PLAIN },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen"], steps: &[QWEN2], nfc: true, ..PLAIN },
    PreTokenizer { names: &["tekken"], steps: &[TEKKEN], whole_pieces: true, bos: true, ..PLAIN },
    // Phi 4 mini.
    PreTokenizer { names: &["gpt-4o", "llama4"], steps: &[GPT4O], ..PLAIN },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            LINE_ENDS,
            DEEPSEEK_LETTERS,
            Step::Matches(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Step::Matches(r"\s+$"),
            CJK,
            Step::Digits,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[LINE_ENDS, Step::Matches(r"\s?\p{L}+"), Step::Matches(r"\s?\p{P}+"), CJK, Step::Digits],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        steps: &[Step::Matches(r"\p{N}{1,3}"), Step::Matches("[一-龥぀-ゟ゠-ヿ]+"), DEEPSEEK_V3],
        ..PLAIN
    },
];

/// The tokenizer without added tokens and template, and whether its family puts a BOS in front if the metadata do not say.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) if the merges are missing or no pairs of tokens, or the split is not known.
pub(super) fn tokenizer(file: &Gguf, vocabulary: &Vocabulary) -> Result<(Tokenizer, bool)> {
    let Some(pre) = file.text("tokenizer.ggml.pre")? else {
        return Err(
            file.invalid("has no tokenizer.ggml.pre, so how it splits text is not known; convert the model anew")
        );
    };
    let split = SPLITS.iter().find(|split| split.names.contains(&pre)).ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        let (pre, known) = (excerpt(pre), known.join(", "));
        file.invalid(format!("tokenizer.ggml.pre = {pre} is not supported; supported are {known}"))
    })?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges(file)?)
        .ignore_merges(split.whole_pieces)
        .build()
        .map_err(|e| damaged(file, e))?;
    let mut tokenizer = Tokenizer::new(model);
    if split.nfc {
        tokenizer.with_normalizer(Some(NFC));
    }
    let steps = split.pre_tokenizers().map_err(|e| damaged(file, e))?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok((tokenizer, split.bos))
}

/// The name of the split of a byte-level tokenizer: that of the first one which splits a text of many kinds of characters as the
/// tokenizer does. Splits that differ in `whole_pieces` only have names of their own.
///
/// # Errors
/// A tokenizer that none of the known ones is, in one line without the file.
pub(in crate::gguf) fn split_name(
    tokenizer: &Tokenizer,
    whole_pieces: bool,
) -> std::result::Result<&'static str, String> {
    let own = pieces(tokenizer).map_err(|e| format!("the tokenizer fails: {e}"))?;
    let same = |split: &&PreTokenizer| {
        let mut other = Tokenizer::new(BPE::default());
        if split.nfc {
            other.with_normalizer(Some(NFC));
        }
        let Ok(steps) = split.pre_tokenizers() else { return false };
        other.with_pre_tokenizer(Some(Sequence::new(steps)));
        split.whole_pieces == whole_pieces && pieces(&other).is_ok_and(|pieces| pieces == own)
    };
    SPLITS
        .iter()
        .find(same)
        .map(|split| split.names[0])
        .ok_or_else(|| "the tokenizer splits texts in a way that has no name in GGUF files (tokenizer.ggml.pre)".into())
}

/// The pieces into which a tokenizer splits [`PROBE`] before merging.
fn pieces(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<String>> {
    let mut text = NormalizedString::from(PROBE);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut text)?;
    }
    let mut text = PreTokenizedString::from(text);
    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut text)?;
    }
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(splits.into_iter().map(|(piece, ..)| piece.to_string()).collect())
}

impl PreTokenizer {
    /// The steps, the last of which turns bytes into the characters that tokens are written in.
    fn pre_tokenizers(&self) -> tokenizers::Result<Vec<PreTokenizerWrapper>> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let mut bytes = ByteLevel::new(false, true, false);
        for step in self.steps {
            match step {
                Step::Matches(pattern) => {
                    let pattern = SplitPattern::Regex((*pattern).into());
                    steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
                }
                Step::Digits => steps.push(Digits::new(true).into()),
                Step::Gpt2 => bytes = ByteLevel::new(false, true, true),
            }
        }
        steps.push(bytes.into());
        Ok(steps)
    }
}

fn merges(file: &Gguf) -> Result<Merges> {
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
    Ok(merges)
}
