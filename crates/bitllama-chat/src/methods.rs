//! Python's methods of strings, lists and dicts, where `minijinja_contrib::pycompat` lacks them or differs.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::python;

/// The method `name` of `value`.
///
/// # Errors
///
/// If there is no such method, or its arguments are others.
pub fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str().map(|text| string(text, name, args)).transpose()?.flatten() {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" => strip(text, args, true, true)?,
        "lstrip" => strip(text, args, true, false)?,
        "rstrip" => strip(text, args, false, true)?,
        "removeprefix" => Value::from(text.strip_prefix(word(args)?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(word(args)?).unwrap_or(text)),
        "partition" => partition(text, word(args)?),
        "rpartition" => rpartition(text, word(args)?),
        "rsplit" => rsplit(text, args)?,
        "index" => index(text, text.find(word(args)?))?,
        "rindex" => index(text, text.rfind(word(args)?))?,
        "splitlines" => lines(text, args)?,
        "isspace" => Value::from(!text.is_empty() && text.chars().all(python::is_space)),
        _ => return Ok(None),
    }))
}

/// The only argument.
fn word(args: &[Value]) -> Result<&str, Error> {
    from_args::<(&str,)>(args).map(|(word,)| word)
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (set,): (Option<&str>,) = from_args(args)?;
    Ok(Value::from(python::strip_of(text, set, start, end)))
}

fn partition(text: &str, separator: &str) -> Value {
    match text.split_once(separator) {
        Some((before, after)) => tuple([before, separator, after]),
        None => tuple([text, "", ""]),
    }
}

fn rpartition(text: &str, separator: &str) -> Value {
    match text.rsplit_once(separator) {
        Some((before, after)) => tuple([before, separator, after]),
        None => tuple(["", "", text]),
    }
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1) + 1;
    let mut parts: Vec<Value> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "rsplit takes a separator that is not empty")),
        Some(separator) => text.rsplitn(most, separator).map(Value::from).collect(),
        None => python::rsplit_spaces(text, most).into_iter().map(Value::from).collect(),
    };
    parts.reverse();
    Ok(Value::from(parts))
}

/// A place in bytes as one in characters.
fn index(text: &str, at: Option<usize>) -> Result<Value, Error> {
    match at {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None => Err(Error::new(ErrorKind::InvalidOperation, "the substring is not found")),
    }
}

fn lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep_ends,): (Option<bool>,) = from_args(args)?;
    Ok(python::lines(text, keep_ends.unwrap_or(false)).into_iter().map(Value::from).collect())
}
