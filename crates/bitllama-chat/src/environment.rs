//! The environment of templates: that of `transformers`, in its words and in Jinja's defaults.

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use crate::error::Raised;
use crate::{date, json, methods, python};

/// The deepest nesting of calls of macros.
const RECURSION: usize = 128;

/// An environment without templates.
///
/// # Errors
///
/// If the engine refuses the syntax, which it does not.
pub fn new() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(print);
    env.add_function("raise_exception", raise_exception);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("cycler", minijinja_contrib::globals::cycler);
    env.remove_global("debug");
    env.add_filter("tojson", json::tojson);
    env.add_filter("trim", trim);
    env.add_test("sequence", is_sequence);
    set_clock(&mut env, None);
    Ok(env)
}

/// Lets `strftime_now` tell the date of `clock`, or that on the wall.
pub fn set_clock(env: &mut Environment<'_>, clock: Option<NaiveDateTime>) {
    env.add_function("strftime_now", move |format: &str| {
        date::strftime(clock.unwrap_or_else(date::now), format).ok_or_else(|| invalid("strftime_now takes directives of strftime"))
    });
}

fn raise_exception(words: &Value) -> Result<Value, Error> {
    Err(invalid("raised by the template").with_source(Raised(words.to_string())))
}

/// What `{{ value }}` writes.
fn print(out: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    let written = match f64::try_from(value.clone()) {
        Ok(float) if value.kind() == ValueKind::Number && !value.is_integer() && float.is_finite() => {
            out.write_str(&python::float(float))
        }
        _ => write!(out, "{value}"),
    };
    written.map_err(Error::from)
}

/// Jinja's `trim`, by Python's white space.
fn trim(value: &Value, set: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let named: Option<&str> = options.get("chars")?;
    options.assert_all_used()?;
    Ok(python::strip_of(&value.to_string(), set.or(named), true, true).to_owned())
}

/// Whatever has a length and items, in Python: strings and mappings too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
}

fn invalid(cause: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, cause)
}
