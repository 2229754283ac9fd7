//! Python's `str` and `repr` of values, which templates write and Jinja's filter `string` gives.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use crate::python;

/// The deepest nesting of what is written; a namespace may hold itself.
const DEPTH: usize = 128;

/// `str(value)`.
///
/// # Errors
///
/// If lists and dicts in it are nested deeper than 128 levels, or fuel runs out.
pub fn str(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => repr(state, value, &mut out, 0)?,
    }
    Ok(out)
}

/// Appends `repr(value)` to `out`.
fn repr(state: &State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    let start = out.len();
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => string(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => out.push_str(&python::number(value)),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if depth == DEPTH => {
            return Err(Error::new(ErrorKind::InvalidOperation, "a value has more than 128 levels"));
        }
        ValueKind::Seq | ValueKind::Iterable => list(state, value, out, depth + 1)?,
        ValueKind::Map => map(state, value, out, depth + 1)?,
        _ => out.push_str(&value.to_string()),
    }
    state.consume_fuel(1 + (out.len() - start) as u64 / 16)
}

fn list(state: &State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
    out.push(open);
    let mut count = 0;
    for item in value.try_iter()?.checked() {
        out.push_str(if count == 0 { "" } else { ", " });
        repr(state, &item?, out, depth)?;
        count += 1;
    }
    out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
    out.push(close);
    Ok(())
}

fn map(state: &State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    out.push('{');
    for (count, key) in value.try_iter()?.checked().enumerate() {
        let key = key?;
        out.push_str(if count == 0 { "" } else { ", " });
        repr(state, &key, out, depth)?;
        out.push_str(": ");
        repr(state, &value.get_item(&key)?, out, depth)?;
    }
    out.push('}');
    Ok(())
}

fn string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if python::is_printable(c) => out.push(c),
            c => out.push_str(&escape(c as u32)),
        }
    }
    out.push(quote);
}

fn escape(code: u32) -> String {
    match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    }
}
