//! Documents out of JSON: objects line by line, or the elements of one array. Neither is ever held as a tree.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

use bitllama_core::excerpt;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{Error, Result};

/// Fields that an error lists.
const LISTED: usize = 8;

/// Gives the text of each line's object to `each`; blank lines are left out. Lines are parsed while they are read: a line
/// takes the memory of its text, not its own beside it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Line`] for a line without a text; those of `each`.
pub(super) fn lines<E: From<Error>>(
    path: &Path,
    reader: &mut impl BufRead,
    field: &str,
    each: &mut impl FnMut(String) -> Result<(), E>,
) -> Result<(), E> {
    let (mut line, mut indent) = (1, 0);
    loop {
        let block = reader.fill_buf().map_err(Error::io(path))?;
        match block.first() {
            None => return Ok(()),
            Some(b'\n') => {
                reader.consume(1);
                (line, indent) = (line + 1, 0);
            }
            Some(byte) if byte.is_ascii_whitespace() => {
                reader.consume(1);
                indent += 1;
            }
            Some(_) => {
                let refused = |reason| Error::Line { path: path.into(), line, reason };
                let text = match object(Line(reader), field) {
                    Ok(found) => found.map_err(refused)?,
                    Err(e) if e.is_io() => return Err(Error::io(path)(e.into()).into()),
                    Err(e) => {
                        let reason = format!("no JSON object: {} (column {})", cause(&e), indent + e.column());
                        return Err(refused(reason).into());
                    }
                };
                each(text)?;
            }
        }
    }
}

/// Text of the object that stands alone in `line`.
fn object(line: Line<impl BufRead>, field: &str) -> serde_json::Result<Found> {
    let mut deserializer = serde_json::Deserializer::from_reader(line);
    let found = Document { field, strings: false }.deserialize(&mut deserializer)?;
    deserializer.end().map(|()| found)
}

/// A reader up to the end of its line.
struct Line<'a, R>(&'a mut R);

impl<R: BufRead> Read for Line<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let block = self.0.fill_buf()?;
        let block = &block[..block.len().min(out.len())];
        let n = block.iter().position(|byte| *byte == b'\n').unwrap_or(block.len());
        out[..n].copy_from_slice(&block[..n]);
        self.0.consume(n);
        Ok(n)
    }
}

/// Gives the text of each element of an array to `each`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Line`] for what is no JSON; [`Error::Invalid`] for an element without a text; those of `each`.
pub(super) fn array<E: From<Error>>(
    path: &Path,
    reader: impl BufRead,
    field: &str,
    each: &mut impl FnMut(String) -> Result<(), E>,
) -> Result<(), E> {
    let mut stopped = None;
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let elements = Elements { path, field, each, stopped: &mut stopped };
    let read = deserializer.deserialize_seq(elements).and_then(|()| deserializer.end());
    match (stopped, read) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() => Err(Error::io(path)(e.into()).into()),
        (None, Err(e)) => {
            let reason = format!("no JSON array: {} (column {})", cause(&e), e.column());
            Err(Error::Line { path: path.into(), line: e.line(), reason }.into())
        }
    }
}

/// A JSON error without its place, which is told by other means.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    excerpt(text.rsplit_once(" at line ").map_or(&text[..], |(cause, _)| cause)).into_owned()
}

/// Text of one value, or the reason why it has none.
type Found = Result<String, String>;

/// One value that should be a document.
struct Document<'a> {
    /// Field of an object that has the text.
    field: &'a str,
    /// True if a string is a document, too.
    strings: bool,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        let (strings, expected) = (self.strings, if self.strings { "an object or a string" } else { "an object" });
        let found = match deserializer.deserialize_any(Value { field: Some(self.field) })? {
            Given::String(text) if strings => Ok(text),
            Given::Object(found) => found,
            other => Err(format!("{}, where {expected} is needed", other.name())),
        };
        Ok(found)
    }
}

/// Type of a JSON value.
enum Given {
    String(String),
    Object(Found),
    Other(&'static str),
}

impl Given {
    fn name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Object(_) => "an object",
            Self::Other(name) => name,
        }
    }
}

/// Takes any value apart; of an object, `field`.
struct Value<'a> {
    field: Option<&'a str>,
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_str<E>(self, text: &str) -> Result<Given, E> {
        Ok(Given::String(text.to_string()))
    }

    fn visit_string<E>(self, text: String) -> Result<Given, E> {
        Ok(Given::String(text))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Given, E> {
        Ok(Given::Other("a truth value"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Given, E> {
        Ok(Given::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Given, E> {
        Ok(Given::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Given, E> {
        Ok(Given::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Given, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Given::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Given, A::Error> {
        let (mut found, mut twice) = (None, false);
        let (mut chat, mut names, mut fields) = (None, Vec::new(), 0);
        while let Some(name) = map.next_key::<String>()? {
            if Some(&name[..]) == self.field {
                twice |= found.replace(map.next_value_seed(Field)?).is_some();
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            fields += 1;
            if names.len() < LISTED {
                names.push(format!("`{}`", excerpt(&name)));
            }
            chat = chat.or(["messages", "conversations"].into_iter().find(|chat| *chat == name));
        }
        let field = excerpt(self.field.unwrap_or_default());
        let advice = "name the one that has the text with --text-field, or data.text_field in a recipe";
        Ok(Given::Object(match (found, chat) {
            (Some(_), _) if twice => Err(format!("field `{field}` stands here twice")),
            (Some(Given::String(text)), _) => Ok(text),
            (Some(other), _) => Err(format!("field `{field}` is {}, not a string: {advice}", other.name())),
            (None, Some(chat)) => Err(format!(
                "chat data (`{chat}`), which is not read yet, and no field `{field}`: write each chat as a text"
            )),
            (None, None) => {
                let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                let more = if fields > LISTED { ", …" } else { "" };
                Err(format!("no field `{field}` (it has {names}{more}): {advice}"))
            }
        }))
    }
}

/// The value of the text field.
struct Field;

impl<'de> DeserializeSeed<'de> for Field {
    type Value = Given;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Given, D::Error> {
        deserializer.deserialize_any(Value { field: None })
    }
}

/// The elements of an array, given away one by one.
struct Elements<'a, F, E> {
    path: &'a Path,
    field: &'a str,
    each: &'a mut F,
    /// Why the reading ended, where that was not for the JSON.
    stopped: &'a mut Option<E>,
}

impl<'de, E: From<Error>, F: FnMut(String) -> Result<(), E>> Visitor<'de> for Elements<'_, F, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of documents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { path, field, each, stopped } = self;
        let mut number = 0;
        while let Some(found) = seq.next_element_seed(Document { field, strings: true })? {
            number += 1;
            let given = match found {
                Ok(text) => each(text),
                Err(reason) => Err(Error::invalid(path, format!("element {number}: {reason}")).into()),
            };
            if let Err(error) = given {
                *stopped = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
