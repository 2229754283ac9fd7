//! Python's methods of strings, lists and dicts, where `minijinja_contrib::pycompat` lacks them or differs.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::python;

/// The method `name` of `value`.
///
/// # Errors
///
/// If there is no such method, or its arguments are others.
pub fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq | ValueKind::Iterable => list(value, name, args)?,
        ValueKind::Map if name == "copy" => from_args::<()>(args).map(|()| Some(value.clone()))?,
        _ => None,
    };
    own.map_or_else(|| pycompat::unknown_method_callback(state, value, name, args), Ok)
}

fn list(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let items = || value.try_iter()?.checked().collect::<Result<Vec<_>, _>>();
    let (sought, copied) = match name {
        "index" | "count" => (from_args::<(&Value,)>(args)?.0, false),
        "copy" => (value, true),
        _ => return Ok(None),
    };
    let items = items()?;
    match items.iter().position(|item| item == sought) {
        _ if copied => Ok(Some(Value::from(items))),
        _ if name == "count" => Ok(Some(Value::from(items.iter().filter(|item| *item == sought).count()))),
        Some(at) => Ok(Some(Value::from(at))),
        None => Err(Error::new(ErrorKind::InvalidOperation, "the list does not have the item")),
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
        "join" => return all_strings(args),
        "splitlines" => lines(text, args)?,
        "isspace" => Value::from(!text.is_empty() && text.chars().all(python::is_space)),
        _ => return Ok(None),
    }))
}

/// `join` is left to `pycompat`, which would join numbers too.
fn all_strings(args: &[Value]) -> Result<Option<Value>, Error> {
    let (items,): (&Value,) = from_args(args)?;
    for item in items.try_iter()?.checked() {
        if item?.as_str().is_none() {
            return Err(Error::new(ErrorKind::InvalidOperation, "join takes a list of strings"));
        }
    }
    Ok(None)
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
