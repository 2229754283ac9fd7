//! JSON schemas of requests: what is supported of them, and their bounds.

use bitllama_core::excerpt::excerpt;
use serde_json::{Map, Value};

/// Deepest nesting of a schema, as `serde_json` has it.
const DEEPEST: usize = 128;
/// Most values in a schema.
const MOST_VALUES: usize = 50_000;

/// Most properties of an object: a model may leave out each of them, and all that may follow are looked at for each token.
const MOST_PROPERTIES: usize = 400;
/// The largest bound of a number, up to which all whole numbers are exact.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// The least common multiple of all `multipleOf`, in units of their last digits, is at most this.
const LARGEST_MULTIPLE: u64 = 10_000;
/// The dialects whose keywords are read here.
const DIALECTS: [&str; 3] = [
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
];

/// Keywords with a schema.
const ONE: [&str; 3] = ["items", "additionalProperties", "additionalItems"];
/// Keywords with a list of schemas.
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords with schemas by name.
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords with numbers that bound others.
const BOUNDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
/// Keywords with other values.
const VALUES: [&str; 12] = [
    "type",
    "const",
    "enum",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
];
/// Keywords that describe and demand nothing.
const DESCRIPTIONS: [&str; 14] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
    "contentMediaType",
    "contentEncoding",
    "$id",
    "$comment",
    "$anchor",
];

/// `schema`, if it is supported and within bounds. Where `closed`, objects that name their properties have no others, unless they
/// say otherwise or schemas are combined.
pub(crate) fn checked(schema: &Value, closed: bool) -> Result<Value, String> {
    let mut values = 0;
    measure(schema, 0, &mut values)?;
    let mut multiple = 1;
    walk(schema, "the schema", &mut multiple)?;
    if *schema == Value::Bool(false) {
        return Err("the schema admits nothing".into());
    }
    let mut schema = schema.clone();
    if closed && !combines(&schema) {
        close(&mut schema);
    }
    Ok(schema)
}

fn measure(value: &Value, depth: usize, values: &mut usize) -> Result<(), String> {
    *values += 1;
    if depth > DEEPEST {
        return Err(format!("the schema is nested deeper than {DEEPEST} levels"));
    }
    if *values > MOST_VALUES {
        return Err(format!("the schema has more than {MOST_VALUES} values"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| measure(item, depth + 1, values)),
        Value::Object(items) => items.values().try_for_each(|item| measure(item, depth + 1, values)),
        _ => Ok(()),
    }
}

/// Checks the keywords of a schema and of those within it; `place` names it, `multiple` is that of all `multipleOf` so far.
fn walk(schema: &Value, place: &str, multiple: &mut u64) -> Result<(), String> {
    let object = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(object) => object,
        _ => return Err(format!("{place} is neither an object nor true or false")),
    };
    for (key, value) in object {
        let name = excerpt(key);
        let within = || format!("`{name}` in {place}");
        match key.as_str() {
            "items" if value.is_array() => list(value, &name, place, multiple)?,
            key if ONE.contains(&key) => walk(value, &within(), multiple)?,
            key if LISTS.contains(&key) => list(value, &name, place, multiple)?,
            key if MAPS.contains(&key) => {
                let named = value.as_object().ok_or_else(|| format!("{} is no object", within()))?;
                if named.len() > MOST_PROPERTIES && key.ends_with("roperties") {
                    return Err(format!("{} has more than {MOST_PROPERTIES} entries", within()));
                }
                named.iter().try_for_each(|(own, schema)| walk(schema, &format!("`{}`", excerpt(own)), multiple))?;
            }
            "$ref" if value.as_str().is_some_and(|at| at == "#" || at.starts_with("#/")) => {}
            "$ref" => return Err(format!("{} must begin with `#/`: references go within the schema", within())),
            key if BOUNDS.contains(&key) => {
                if value.as_f64().is_some_and(|bound| bound.abs() > LARGEST) {
                    return Err(format!("{} is beyond 2^53", within()));
                }
                if key == "multipleOf" {
                    let common = digits(value).and_then(|digits| least_common_multiple(*multiple, digits));
                    *multiple = common.ok_or_else(|| format!("{} has too many digits", within()))?;
                }
            }
            "$schema" => {
                let dialect = value.as_str().unwrap_or_default().trim_end_matches('#');
                if !DIALECTS.contains(&dialect) {
                    return Err(format!("{} names a dialect that is not supported", within()));
                }
            }
            key if VALUES.contains(&key) || DESCRIPTIONS.contains(&key) => {}
            key if key.starts_with("x-") && key != "x-guidance" => {}
            _ => return Err(format!("the keyword {} is not supported", within())),
        }
    }
    Ok(())
}

fn list(value: &Value, name: &str, place: &str, multiple: &mut u64) -> Result<(), String> {
    let items = value.as_array().ok_or_else(|| format!("`{name}` in {place} is no list"))?;
    items.iter().try_for_each(|schema| walk(schema, &format!("`{name}` in {place}"), multiple))
}

/// The digits of a number, as a whole number: 25 of 0.25.
fn digits(number: &Value) -> Option<u64> {
    let text = number.as_number()?.to_string();
    let digits = text.split(['e', 'E']).next()?.trim_end_matches(".0").replace('.', "");
    digits.parse().ok().filter(|digits| *digits > 0)
}

fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor).checked_mul(b).filter(|multiple| *multiple <= LARGEST_MULTIPLE)
}

/// The schemas right within a schema.
fn within(object: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    object.iter().flat_map(|(key, value)| -> Box<dyn Iterator<Item = &Value>> {
        match (key.as_str(), value) {
            (key, Value::Object(named)) if MAPS.contains(&key) => Box::new(named.values()),
            (key, Value::Array(items)) if LISTS.contains(&key) || key == "items" => Box::new(items.iter()),
            (key, value) if ONE.contains(&key) => Box::new(std::iter::once(value)),
            _ => Box::new(std::iter::empty()),
        }
    })
}

/// Whether a value has to meet several schemas of objects at once somewhere, so that closing one would forbid the others.
fn combines(schema: &Value) -> bool {
    let Some(object) = schema.as_object() else { return false };
    let has = |keys: &[&str]| keys.iter().any(|key| object.contains_key(*key));
    has(&["allOf"])
        || (has(&["anyOf", "oneOf", "$ref"]) && has(&["properties", "patternProperties", "required"]))
        || within(object).any(combines)
}

fn close(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for (key, value) in object.iter_mut() {
        match (key.as_str(), value) {
            (key, Value::Object(named)) if MAPS.contains(&key) => named.values_mut().for_each(close),
            (key, Value::Array(items)) if LISTS.contains(&key) || key == "items" => items.iter_mut().for_each(close),
            (key, value) if ONE.contains(&key) => close(value),
            _ => {}
        }
    }
    let named = object.contains_key("properties") && !object.contains_key("patternProperties");
    if named && !object.contains_key("additionalProperties") {
        object.insert("additionalProperties".into(), Value::Bool(false));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cause(schema: Value) -> String {
        checked(&schema, false).unwrap_err()
    }

    #[test]
    fn keywords_that_are_not_supported_are_named_with_their_place() {
        assert_eq!(cause(json!({"not": {}})), "the keyword `not` in the schema is not supported");
        assert_eq!(cause(json!({"requird": []})), "the keyword `requird` in the schema is not supported");
        assert_eq!(
            cause(json!({"properties": {"a": {"items": {"uniqueItems": true}}}})),
            "the keyword `uniqueItems` in `items` in `a` is not supported"
        );
        assert_eq!(
            cause(json!({"x-guidance": {"lenient": true}})),
            "the keyword `x-guidance` in the schema is not supported"
        );
        assert_eq!(cause(json!({"anyOf": {}})), "`anyOf` in the schema is no list");
        assert_eq!(cause(json!({"properties": []})), "`properties` in the schema is no object");
        assert_eq!(cause(json!([])), "the schema is neither an object nor true or false");
        let elsewhere = cause(json!({"$ref": "https://example.org/schema"}));
        assert_eq!(elsewhere, "`$ref` in the schema must begin with `#/`: references go within the schema");
        let properties = json!({"properties": {"not": {"type": "string", "x-order": 1}}, "x-note": 1});
        assert_eq!(checked(&properties, false).unwrap(), properties);
    }

    #[test]
    fn bounds_are_checked_before_a_schema_is_read() {
        let mut deep = json!({});
        for _ in 0..DEEPEST {
            deep = json!({ "items": deep });
        }
        assert_eq!(checked(&deep, false).unwrap(), deep);
        assert_eq!(cause(json!({ "items": deep })), "the schema is nested deeper than 128 levels");
        let wide = json!({"enum": vec![1; MOST_VALUES]});
        let bound = json!({"properties": {"a": {"maximum": 1e300}}});
        assert_eq!(cause(bound), "`maximum` in `a` is beyond 2^53");
        assert_eq!(cause(json!({"multipleOf": 0.0012345})), "`multipleOf` in the schema has too many digits");
        let several = json!({"allOf": [{"multipleOf": 9973}, {"multipleOf": 11}]});
        assert_eq!(cause(several), "`multipleOf` in `allOf` in the schema has too many digits");
        assert!(checked(&json!({"items": {"multipleOf": 0.01}, "anyOf": [{"multipleOf": 2.5}]}), false).is_ok());
        assert_eq!(cause(json!({"$schema": "urn:a"})), "`$schema` in the schema names a dialect that is not supported");
        let properties: Map<String, Value> = (0..401).map(|name| (name.to_string(), json!({}))).collect();
        let cause_of_many = "`properties` in the schema has more than 400 entries";
        assert_eq!(cause(json!({ "properties": properties })), cause_of_many);
        assert_eq!(cause(wide), "the schema has more than 50000 values");
    }

    #[test]
    fn objects_are_closed_unless_schemas_are_combined() {
        let open =
            json!({"properties": {"a": {"properties": {}}, "b": {"properties": {}, "additionalProperties": true}}});
        let closed = checked(&open, true).unwrap();
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(closed["properties"]["a"]["additionalProperties"], false);
        assert_eq!(closed["properties"]["b"]["additionalProperties"], true);
        for open in [
            json!({"allOf": [{"properties": {}}, {"properties": {}}]}),
            json!({"anyOf": [{"properties": {}}], "properties": {}}),
            json!({"type": "object"}),
        ] {
            assert_eq!(checked(&open, true).unwrap(), open);
        }
    }
}
