//! The shape of `model`, checked without building anything from it. A list where a number belongs takes a hundred times the
//! bytes of its text once the library has read it, before the library finds that it does not belong there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::parts::{self, Part};

/// Bytes of a field other than `vocab` and `merges`: names of tokens, numbers and switches.
const MAX_FIELD: usize = 64 << 10;

/// Checks that `vocab` maps tokens to numbers, or lists tokens with their scores, and that `merges` lists pairs of tokens.
///
/// # Errors
/// The field that is of another shape.
pub(super) fn check(model: &Part) -> Result<(), String> {
    let Some(fields) = parts::split(model.text) else { return Err("its model is not an object".into()) };
    for field in &fields {
        let key = bitllama_core::excerpt(&field.key);
        let shape = match field.key.as_str() {
            "vocab" => serde_json::from_str(field.text).map(|Vocabulary| ()),
            "merges" => serde_json::from_str(field.text).map(|Merges| ()),
            _ if field.text.len() > MAX_FIELD => {
                return Err(format!("its model.{key} takes {} bytes, more than {MAX_FIELD}", field.text.len()));
            }
            _ => Ok(()),
        };
        shape.map_err(|e| format!("model.{key}: {e}"))?;
    }
    Ok(())
}

/// A string, not kept.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Text, E> {
                Ok(Text)
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// `{ token: id, .. }` or `[[token, score], ..]`.
struct Vocabulary;

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tokens with their ids or scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                while map.next_entry::<IgnoredAny, f64>()?.is_some() {}
                Ok(Vocabulary)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                while list.next_element::<(Text, f64)>()?.is_some() {}
                Ok(Vocabulary)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// `["a b", ..]` or `[["a", "b"], ..]`.
struct Merges;

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of pairs of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
                while list.next_element::<Merge>()?.is_some() {}
                Ok(Merges)
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

/// `"a b"` or `["a", "b"]`.
struct Merge;

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Merge, E> {
                Ok(Merge)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
                while pair.next_element::<Text>()?.is_some() {}
                Ok(Merge)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(model: &str) -> Result<(), String> {
        let json = format!("{{\"model\": {model}}}");
        check(&parts::split(&json).unwrap()[0])
    }

    #[test]
    fn models_of_every_kind_pass_and_other_shapes_are_named() {
        for sound in [
            r#"{"type": "BPE", "vocab": {"a": 0, "b\n": 1}, "merges": ["a b"], "unk_token": null}"#,
            r#"{"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}"#,
            r#"{"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.5], ["b", 0]]}"#,
        ] {
            assert_eq!(checked(sound), Ok(()), "{sound}");
        }
        for (field, model) in [
            ("model.vocab: ", r#"{"vocab": {"a": []}}"#),
            ("model.vocab: ", r#"{"vocab": [["a"]]}"#),
            ("model.vocab: ", r#"{"vocab": [[[], 1]]}"#),
            ("model.vocab: ", r#"{"vocab": [["a", 1, []]]}"#),
            ("model.merges: ", r#"{"merges": [[["a"], "b"]]}"#),
            ("model.merges: ", r#"{"merges": {"a": 1}}"#),
        ] {
            let message = checked(model).unwrap_err();
            assert!(message.starts_with(field), "{message}");
        }
        let long = format!(r#"{{"other": [{}0]}}"#, "0,".repeat(MAX_FIELD));
        assert_eq!(checked(&long).unwrap_err(), "its model.other takes 131075 bytes, more than 65536");
    }
}
