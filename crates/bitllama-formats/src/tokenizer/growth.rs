//! Steps of a tokenizer that make text longer: a chain of them can double it forty times.
//!
//! Each step is built and tried by itself, on the characters that the steps speak of, and refused before the next one where
//! the text has grown beyond all that real tokenizers do.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::{Decoder, NormalizedString, Normalizer, PreTokenizedString, PreTokenizer};
use tokenizers::{OffsetReferential, OffsetType};

use super::panics::guarded;
use super::parts::{steps, strings};

/// Steps of one kind in all; published tokenizers have less than ten.
const MAX_STEPS: usize = 256;
/// Bytes of a text that a step inserts.
const MAX_INSERTED: usize = 256;
/// Bytes of a pattern; those of published tokenizers have some hundred.
const MAX_PATTERN: usize = 16 << 10;
/// Largest factor by which a text may grow. Byte-level alphabets double it, NFKD has a character that becomes eleven times
/// as long.
const MAX_GROWTH: usize = 32;
/// Bytes that may come on top, however short the text.
const MAX_ADDED: usize = 1024;
/// Time for the trial of all steps of one kind.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Characters of a text that is tried, so that a regular expression that backtracks is not tried for long.
const PROBE_CHARS: usize = 8;
/// Characters that are tried beside those of the steps: byte-level alphabets, spaces, NFKD and lowercasing change them.
const CHARACTERS: &str = "\t\n éİ日🦙\u{fdfa}\u{1f82}\u{301}▁";

/// Tries the normalizers of `part`, none where it is null.
///
/// # Errors
/// The step that cannot be built, fails, or makes a text too long.
pub(super) fn normalizers(part: Value) -> Result<(), String> {
    let step = |step: &NormalizerWrapper, text: &mut NormalizedString| {
        step.normalize(text)?;
        Ok(text.get().len())
    };
    check(part, "normalizers", "normalizer", |text| NormalizedString::from(text), step)
}

/// As [`normalizers`], of the steps that split a text.
///
/// # Errors
/// As [`normalizers`].
pub(super) fn pre_tokenizers(part: Value) -> Result<(), String> {
    let step = |step: &PreTokenizerWrapper, text: &mut PreTokenizedString| {
        step.pre_tokenize(text)?;
        let pieces = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok(pieces.iter().map(|(piece, ..)| piece.len()).sum())
    };
    check(part, "pretokenizers", "pre_tokenizer", |text| PreTokenizedString::from(text), step)
}

/// As [`normalizers`], of the steps that make text of tokens.
///
/// # Errors
/// As [`normalizers`].
pub(super) fn decoders(part: Value) -> Result<(), String> {
    let step = |step: &DecoderWrapper, tokens: &mut Vec<String>| {
        *tokens = step.decode_chain(std::mem::take(tokens))?;
        Ok(tokens.iter().map(String::len).sum())
    };
    check(part, "decoders", "decoder", |text| vec![text.to_string()], step)
}

fn check<Step, Text>(
    part: Value,
    list: &str,
    name: &str,
    start: impl Fn(&str) -> Text,
    run: impl Fn(&Step, &mut Text) -> tokenizers::Result<usize>,
) -> Result<(), String>
where
    Step: serde::de::DeserializeOwned,
{
    let values = steps(part, list);
    if values.len() > MAX_STEPS {
        return Err(format!("the {name} has {} steps, more than {MAX_STEPS}", values.len()));
    }
    let (mut built, mut written) = (Vec::with_capacity(values.len()), Vec::new());
    for value in &values {
        let inserted = ["content", "prepend", "replacement", "prefix", "suffix"].map(|key| value[key].as_str());
        if let Some(length) = inserted.iter().flatten().map(|text| text.len()).max().filter(|n| *n > MAX_INSERTED) {
            return Err(format!("the {name} inserts a text of {length} bytes, more than {MAX_INSERTED}"));
        }
        let patterns = ["Regex", "String"].map(|key| value["pattern"][key].as_str());
        if let Some(length) = patterns.iter().flatten().map(|text| text.len()).find(|n| *n > MAX_PATTERN) {
            return Err(format!("the {name} has a pattern of {length} bytes, more than {MAX_PATTERN}"));
        }
        let wrong = |e: String| format!("the {name} cannot be built: {e}");
        built.push(guarded(|| Ok(serde_json::from_value::<Step>(value.clone())?)).map_err(wrong)?);
        strings(value, &mut written);
    }
    let started = Instant::now();
    for probe in probes(&written) {
        let limit = MAX_GROWTH * probe.len() + MAX_ADDED;
        let mut text = start(&probe);
        for step in &built {
            let length = guarded(|| run(step, &mut text)).map_err(|e| format!("the {name} fails on {probe:?}: {e}"))?;
            if length > limit {
                return Err(format!("the {name} makes {length} bytes or more of the {} in {probe:?}", probe.len()));
            }
            if started.elapsed() > MAX_TIME {
                return Err(format!("the {name} takes more than {} s on a few characters", MAX_TIME.as_secs()));
            }
        }
    }
    Ok(())
}

/// Short texts of all characters that may set a step off.
fn probes(written: &[&str]) -> Vec<String> {
    let mut characters: Vec<char> = (' '..='~').chain(CHARACTERS.chars()).collect();
    characters.extend(written.iter().flat_map(|text| text.chars()));
    characters.sort_unstable();
    characters.dedup();
    let mixed = characters.chunks(PROBE_CHARS).map(|some| some.iter().collect());
    let alike = characters.iter().map(|c| c.to_string().repeat(PROBE_CHARS));
    // Patterns and contents themselves, as one may set off another.
    let whole = written.iter().map(|text| text.chars().take(64).collect());
    mixed.chain(alike).chain(whole).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: &str, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
    }

    fn sequence(steps: Vec<Value>) -> Value {
        json!({ "type": "Sequence", "normalizers": steps })
    }

    #[test]
    fn normalizers_of_published_tokenizers_pass() {
        let llama = sequence(vec![json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")]);
        let albert = sequence(vec![
            replace("``", "\""),
            replace("''", "\""),
            json!({ "type": "NFKD" }),
            json!({ "type": "StripAccents" }),
            json!({ "type": "Lowercase" }),
            json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" }),
        ]);
        // Thirty letters to their full-width forms, each three times as long.
        let wide = ('a'..='z').map(|c| replace(&c.to_string(), "ａ")).collect();
        for normalizer in [Value::Null, json!({ "type": "NFC" }), llama, albert, sequence(wide)] {
            assert_eq!(normalizers(normalizer.clone()), Ok(()), "{normalizer}");
        }
        let split =
            json!({ "type": "Split", "pattern": { "Regex": r"\p{N}" }, "behavior": "Isolated", "invert": false });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        assert_eq!(pre_tokenizers(json!({ "type": "Sequence", "pretokenizers": [split, bytes] })), Ok(()));
        assert_eq!(decoders(bytes), Ok(()));
    }

    #[test]
    fn what_makes_text_explode_is_refused() {
        let doubling = |n: usize| sequence(vec![replace("a", "aa"); n]);
        assert!(normalizers(doubling(40)).unwrap_err().contains("the normalizer makes "));
        let by_regex = json!({ "type": "Replace", "pattern": { "Regex": "." }, "content": "bb" });
        assert!(normalizers(sequence(vec![by_regex; 40])).unwrap_err().contains("makes"));
        // A pair that only grows together, on a character that no other text has.
        let pair = (0..20).flat_map(|_| [replace("ⓩ", "ⓨⓨ"), replace("ⓨ", "ⓩ")]);
        assert!(normalizers(sequence(pair.collect())).unwrap_err().contains("makes"));
        let long = replace("a", &"b".repeat(1000));
        assert_eq!(normalizers(long).unwrap_err(), "the normalizer inserts a text of 1000 bytes, more than 256");
        assert!(normalizers(sequence(vec![replace("a", "b"); 300])).unwrap_err().contains("300 steps"));
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let chain = json!({ "type": "Sequence", "pretokenizers": vec![bytes; 40] });
        assert!(pre_tokenizers(chain).unwrap_err().contains("the pre_tokenizer makes"));
        let chain = json!({ "type": "Sequence", "decoders": vec![replace("a", "aa"); 40] });
        assert!(decoders(chain).unwrap_err().contains("the decoder makes"));
    }

    #[test]
    fn what_panics_is_refused() {
        let fixed = json!({ "type": "FixedLength", "length": 0 });
        assert!(pre_tokenizers(fixed).unwrap_err().contains("panicked"));
        assert!(normalizers(json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" })).is_err());
        assert!(normalizers(json!({ "type": "Replace" })).unwrap_err().contains("cannot be built"));
    }
}
