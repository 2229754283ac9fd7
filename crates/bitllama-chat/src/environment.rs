//! The environment of templates: that of `transformers`, in its words and in Jinja's defaults.

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, filters};

use crate::error::Raised;
use crate::{date, json, methods, nesting, python, tags, text};

/// The most loops, blocks `with` and calls of macros within each other, where a call counts as five.
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
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    env.remove_global("debug");
    env.add_filter("tojson", json::tojson);
    env.add_filter("trim", trim);
    env.add_filter(tags::ITERATED, iterated);
    env.add_filter(tags::SET, nesting::set);
    env.add_filter(tags::SET_ATTRIBUTE, nesting::set_attribute);
    env.add_filter("string", text::str);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_test("sequence", is_sequence);
    env.add_test("iterable", is_sequence);
    for (name, filter) in nesting_filters() {
        env.add_filter(name, bounded(filter));
    }
    for (name, filter) in lenient_filters() {
        env.add_filter(name, refusing_none(filter));
    }
    set_clock(&mut env, None);
    Ok(env)
}

/// Lets `strftime_now` tell the date of `clock`, or that on the wall.
pub fn set_clock(env: &mut Environment<'_>, clock: Option<NaiveDateTime>) {
    env.add_function("strftime_now", move |format: &str| {
        date::strftime(clock.unwrap_or_else(date::now), format)
            .ok_or_else(|| invalid("strftime_now takes directives of strftime"))
    });
}

fn raise_exception(words: &Value) -> Result<Value, Error> {
    Err(invalid("raised by the template").with_source(Raised(words.to_string())))
}

/// The text that `{{ value }}` writes.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text)?,
        None => out.write_str(&text::str(state, value)?)?,
    }
    Ok(())
}

/// Jinja's `trim`, by Python's white space.
fn trim(value: &Value, set: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let named: Option<&str> = options.get("chars")?;
    options.assert_all_used()?;
    Ok(python::strip_of(&value.to_string(), set.or(named), true, true).to_owned())
}

/// Whatever has items in Python, which strings and mappings have too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}

/// `value`, if Python iterates over it.
fn iterated(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(invalid("none is not iterable")) } else { Ok(value) }
}

/// Filters that take `none` for an empty list, which is an error in Python.
fn lenient_filters() -> [(&'static str, Value); 5] {
    [
        ("list", Value::from_function(filters::list)),
        ("join", Value::from_function(filters::join)),
        ("sort", Value::from_function(filters::sort)),
        ("sum", Value::from_function(filters::sum)),
        ("unique", Value::from_function(filters::unique)),
    ]
}

fn refusing_none(filter: Value) -> impl Fn(&mut State, Value, Rest<Value>, Kwargs) -> Result<Value, Error> {
    move |state, value, options, named| {
        let value = iterated(value)?;
        apply(&filter, state, value, options, named)
    }
}

/// Filters whose results are nested deeper than what they are given.
fn nesting_filters() -> [(&'static str, Value); 4] {
    [
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("zip", Value::from_function(filters::zip)),
        ("groupby", Value::from_function(filters::groupby)),
    ]
}

fn bounded(filter: Value) -> impl Fn(&mut State, Value, Rest<Value>, Kwargs) -> Result<Value, Error> {
    move |state, value, options, named| {
        let result = apply(&filter, state, value, options, named)?;
        nesting::set(state, result)
    }
}

fn apply(filter: &Value, state: &mut State, value: Value, options: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let keywords = named.args().next().is_some().then(|| Value::from(named.clone()));
    let all: Vec<Value> = [value].into_iter().chain(options.0).chain(keywords).collect();
    filter.call(state, &all)
}

/// Jinja's `int`: `default` for what is no number.
fn int(value: &Value, default: Option<Value>) -> Value {
    match (value.as_str(), f64::try_from(value.clone())) {
        (Some(text), _) => number(text).map(|number| number.trunc()),
        (None, Ok(number)) => Some(number.trunc()),
        (None, Err(_)) => None,
    }
    .filter(|number| number.abs() < 9e15)
    .map_or_else(|| default.unwrap_or_else(|| Value::from(0)), |number| Value::from(number as i64))
}

/// Jinja's `float`: `default` for what is no number.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = value.as_str().map_or_else(|| f64::try_from(value.clone()).ok(), number);
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

fn number(text: &str) -> Option<f64> {
    python::strip(text).parse().ok()
}

fn invalid(cause: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, cause)
}
