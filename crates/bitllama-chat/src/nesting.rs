//! Bounds on the nesting of values. The engine walks values by recursion, so a template that nests them without end would overflow
//! the stack. Loops, macros and brackets have bounds of their own; variables could carry nesting from step to step.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// The deepest nesting of a variable's value.
const DEPTH: usize = 100;

/// `value`, if lists and dicts in it are at most 100 levels deep.
///
/// # Errors
///
/// If they are deeper, or fuel runs out.
pub fn set(state: &State, value: Value) -> Result<Value, Error> {
    Walk { state, namespaces: true, steps: 0 }.value(&value, 0)?;
    Ok(value)
}

/// `value`, if in addition it holds nothing that could hold the namespace that it becomes an attribute of.
///
/// # Errors
///
/// If it does, or for the reasons of [`set`].
pub fn set_attribute(state: &State, value: Value) -> Result<Value, Error> {
    Walk { state, namespaces: false, steps: 0 }.value(&value, 0)?;
    Ok(value)
}

struct Walk<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    namespaces: bool,
    steps: u64,
}

impl Walk<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let nested = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
        if nested && depth == DEPTH {
            return Err(invalid("a variable takes a value of at most 100 levels"));
        }
        if !self.namespaces && may_hold_anything(value) {
            return Err(invalid("an attribute of a namespace takes neither a function nor a namespace"));
        }
        self.steps += 1;
        if self.steps.is_multiple_of(8) {
            self.state.consume_fuel(1)?;
        }
        if nested { self.items(value, depth + 1) } else { Ok(()) }
    }

    fn items(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        for item in value.try_iter()?.checked() {
            let item = item?;
            self.value(&item, depth)?;
            if value.kind() == ValueKind::Map {
                self.value(&value.get_item(&item)?, depth)?;
            }
        }
        Ok(())
    }
}

/// Whether `value` is a namespace or an object that may keep one out of sight.
fn may_hold_anything(value: &Value) -> bool {
    let name = value.as_object().map_or("", |object| object.type_name());
    value.kind() == ValueKind::Plain || name.ends_with("::Namespace") || name.ends_with("::Loop")
}

fn invalid(cause: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, cause)
}
