//! The filter `tojson`: Python's `json.dumps`, without the escapes for HTML that Jinja's own filter adds.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use crate::python;

/// The deepest nesting of what is written.
const DEPTH: usize = 128;

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// # Errors
///
/// If the value has no JSON, is nested deeper than 128 levels, or an argument is of the wrong type.
pub fn tojson(state: &State, value: &Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let mut arguments = [Value::UNDEFINED, Value::UNDEFINED, Value::UNDEFINED, Value::UNDEFINED];
    for (at, (name, argument)) in
        ["ensure_ascii", "indent", "separators", "sort_keys"].into_iter().zip(&mut arguments).enumerate()
    {
        *argument = options.get::<Option<Value>>(name)?.or_else(|| positional.get(at).cloned()).unwrap_or_default();
    }
    options.assert_all_used()?;
    if positional.len() > arguments.len() {
        return Err(invalid("tojson takes four options"));
    }
    let [ensure_ascii, indent, separators, sort_keys] = arguments;
    let indent = if indent.is_none() || indent.is_undefined() { None } else { Some(indentation(&indent)?) };
    let (item, key) = separators_of(&separators, indent.is_some())?;
    let (ensure_ascii, sort_keys) = (ensure_ascii.is_true(), sort_keys.is_true());
    let mut writer = Writer { state, out: String::new(), paid: 0, indent, item, key, ensure_ascii, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// Separators between items and after keys.
fn separators_of(value: &Value, indented: bool) -> Result<(String, String), Error> {
    if value.is_none() || value.is_undefined() {
        return Ok((if indented { "," } else { ", " }.to_owned(), ": ".to_owned()));
    }
    let separators: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
    match separators.iter().map(Value::as_str).collect::<Option<Vec<_>>>().as_deref() {
        Some([item, key]) => Ok(((*item).to_owned(), (*key).to_owned())),
        _ => Err(invalid("tojson takes two texts as separators")),
    }
}

/// `indent` of `json.dumps`: a number of spaces, or the text itself.
fn indentation(indent: &Value) -> Result<String, Error> {
    match (indent.as_str(), indent.as_i64()) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(spaces)) if spaces <= 64 => Ok(" ".repeat(usize::try_from(spaces).unwrap_or(0))),
        _ => Err(invalid("tojson takes an indent of at most 64 spaces")),
    }
}

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    out: String,
    /// The part of `out` that fuel was taken for.
    paid: usize,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            _ if depth == DEPTH => return Err(invalid("tojson takes at most 128 levels")),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth + 1)?,
            ValueKind::Map => self.map(value, depth + 1)?,
            kind => return Err(invalid(&format!("an object of type {kind} has no JSON"))),
        }
        Ok(())
    }

    /// Takes fuel for what was written since the last time: a unit for 16 bytes.
    fn pay(&mut self) -> Result<(), Error> {
        let units = (self.out.len() - self.paid) / 16;
        self.paid += units * 16;
        self.state.consume_fuel(1 + units as u64)
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()?.checked() {
            self.separate(&mut empty, depth);
            self.value(&item?, depth)?;
        }
        self.close(']', empty, depth)
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
        if self.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        let mut empty = true;
        for key in keys {
            self.separate(&mut empty, depth);
            self.string(&key_text(&key)?);
            self.out.push_str(&self.key);
            self.value(&value.get_item(&key)?, depth)?;
        }
        self.close('}', empty, depth)
    }

    fn separate(&mut self, empty: &mut bool, depth: usize) {
        if !std::mem::take(empty) {
            self.out.push_str(&self.item);
        }
        self.line(depth);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) -> Result<(), Error> {
        if !empty {
            self.line(depth - 1);
        }
        self.out.push(bracket);
        self.pay()
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && c > '~' => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// The number as Python's `json` writes it.
fn number(value: &Value) -> String {
    match python::number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        number => number.to_owned(),
    }
}

/// The key as Python's `json` writes it: text, or the JSON of a scalar.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(invalid(&format!("a key of type {kind} has no JSON"))),
    }
}

fn invalid(cause: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, cause.to_owned())
}
