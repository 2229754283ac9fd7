//! The bytes of tokens.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// The way in which a vocabulary writes the bytes of its tokens.
#[derive(Debug)]
pub enum Spelling {
    /// A character per byte, as GPT-2 has them.
    Characters(HashMap<char, u8>),
    /// Text with a character for the space, and tokens `<0x0A>` for bytes.
    Spaces(char),
}

impl Spelling {
    /// The spelling that a tokenizer's decoder undoes.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] for a decoder that is neither that of bytes nor that of SentencePiece.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let parts = match decoder.get("decoders").and_then(Value::as_array) {
            Some(parts) => parts.iter().collect(),
            None => vec![&decoder],
        };
        let mut spelling = None;
        for part in parts {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("none");
            spelling = match (kind, spelling) {
                ("ByteLevel", _) => Some(Self::Characters(characters())),
                ("Metaspace", _) => Some(Self::Spaces(character(&part["replacement"]).unwrap_or('▁'))),
                ("Replace", None) if part["content"] == " " => character(&part["pattern"]["String"]).map(Self::Spaces),
                ("ByteFallback", None) => Some(Self::Spaces('▁')),
                ("Replace" | "ByteFallback" | "Fuse" | "Strip", spelling) => spelling,
                (kind, _) => return Err(Error::Vocabulary(format!("the decoder `{kind}` is not supported"))),
            };
        }
        spelling
            .ok_or_else(|| Error::Vocabulary("the decoder is neither that of bytes nor that of SentencePiece".into()))
    }

    /// The bytes that a token stands for.
    pub fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::Characters(bytes) => {
                let mapped: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
                mapped.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Spaces(space) => match byte(token) {
                Some(byte) => vec![byte],
                None => token.replace(*space, " ").into_bytes(),
            },
        }
    }
}

/// The only character of a text.
fn character(text: &Value) -> Option<char> {
    let mut characters = text.as_str()?.chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The bytes that GPT-2's characters stand for: printable ones of Latin-1 themselves, the others from U+0100 on.
fn characters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=u8::MAX).filter(printable).map(|byte| (char::from(byte), byte));
    let others = (0..=u8::MAX).filter(|byte| !printable(byte));
    own.chain(('\u{100}'..).zip(others)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_gpt2_stand_for_all_bytes() {
        let characters = characters();
        assert_eq!(characters.len(), 256);
        assert_eq!([characters[&'Ġ'], characters[&'Ċ'], characters[&'a']], [b' ', b'\n', b'a']);
        let spelling = Spelling::Characters(characters);
        assert_eq!(spelling.bytes("ĠÃ¼"), " ü".as_bytes());
        // An added token may have characters that stand for no byte.
        assert_eq!(spelling.bytes("a b"), b"a b");
    }

    #[test]
    fn sentencepiece_has_spaces_and_bytes() {
        let spelling = Spelling::Spaces('▁');
        assert_eq!(spelling.bytes("▁a▁"), b" a ");
        assert_eq!(spelling.bytes("<0x0A>"), b"\n");
        assert_eq!(spelling.bytes("<0xÄ>"), "<0xÄ>".as_bytes());
    }

    #[test]
    fn other_decoders_are_an_error() {
        let tokenizer = Tokenizer::new(tokenizers::models::wordpiece::WordPiece::default());
        let error = Spelling::of(&tokenizer).unwrap_err().to_string();
        assert_eq!(error, "tokenizer: the decoder `none` is not supported");
    }
}
