//! The rules of a JSON schema for a value, for the keywords that the tests use.

use serde_json::Value;

/// The first keyword that `value` breaks.
pub fn broken(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let Some(keywords) = schema.as_object() else {
        return (schema == &Value::Bool(false)).then(|| "false".to_owned());
    };
    keywords
        .iter()
        .find(|(key, rule)| !holds(root, schema, key, rule, value))
        .map(|(key, _)| format!("{key} of {value}"))
}

fn holds(root: &Value, schema: &Value, key: &str, rule: &Value, value: &Value) -> bool {
    let fits = |schema: &Value, value: &Value| broken(root, schema, value).is_none();
    let fitting = || rule.as_array().unwrap().iter().filter(|schema| fits(schema, value)).count();
    let number = |test: fn(f64, f64) -> bool| value.as_f64().is_none_or(|value| test(value, rule.as_f64().unwrap()));
    let characters = |test: fn(u64, u64) -> bool| {
        value.as_str().is_none_or(|text| test(text.chars().count() as u64, rule.as_u64().unwrap()))
    };
    let items = |test: fn(u64, u64) -> bool| {
        value.as_array().is_none_or(|items| test(items.len() as u64, rule.as_u64().unwrap()))
    };
    match key {
        "type" => match rule {
            Value::Array(kinds) => kinds.iter().any(|kind| is_a(kind, value)),
            kind => is_a(kind, value),
        },
        "const" => rule == value,
        "enum" => rule.as_array().unwrap().contains(value),
        "anyOf" => fitting() > 0,
        "oneOf" => fitting() == 1,
        "allOf" => fitting() == rule.as_array().unwrap().len(),
        "$ref" => fits(root.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap(), value),
        "minimum" => number(|value, bound| value >= bound),
        "maximum" => number(|value, bound| value <= bound),
        "exclusiveMinimum" => number(|value, bound| value > bound),
        "exclusiveMaximum" => number(|value, bound| value < bound),
        "multipleOf" => number(|value, unit| (value / unit).fract() == 0.0),
        "minLength" => characters(|value, bound| value >= bound),
        "maxLength" => characters(|value, bound| value <= bound),
        "minItems" => items(|value, bound| value >= bound),
        "maxItems" => items(|value, bound| value <= bound),
        "pattern" => {
            value.as_str().is_none_or(|text| regex::Regex::new(rule.as_str().unwrap()).unwrap().is_match(text))
        }
        "format" => value.as_str().is_none_or(|text| regex::Regex::new(format(rule)).unwrap().is_match(text)),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(rule, item))),
        "required" => {
            let names = |object: &serde_json::Map<String, Value>| {
                rule.as_array().unwrap().iter().all(|name| object.contains_key(name.as_str().unwrap()))
            };
            value.as_object().is_none_or(names)
        }
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(name, value)| rule.get(name).is_none_or(|schema| fits(schema, value)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let named = |name: &str| schema.get("properties").is_some_and(|all| all.get(name).is_some());
            object.iter().all(|(name, value)| named(name) || fits(rule, value))
        }),
        "$defs" | "title" | "description" => true,
        key => panic!("the validator does not know {key}"),
    }
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|value| value.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => panic!("there is no type {kind}"),
    }
}

fn format(name: &Value) -> &'static str {
    match name.as_str().unwrap() {
        "date" => r"^\d{4}-\d{2}-\d{2}$",
        "uuid" => r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        "ipv4" => r"^\d{1,3}(\.\d{1,3}){3}$",
        "email" => r"^[^@]+@[^@]+$",
        name => panic!("the validator does not know the format {name}"),
    }
}
