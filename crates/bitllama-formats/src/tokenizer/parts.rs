//! The parts of a `tokenizer.json`, found in its text without building anything from them.

use serde_json::Value;

/// One value of the file's object.
#[derive(Debug, PartialEq)]
pub(super) struct Part<'a> {
    pub(super) key: String,
    /// Its JSON.
    pub(super) text: &'a str,
    /// Objects and lists within each other.
    pub(super) depth: usize,
    /// Bytes of its longest string, as it is written.
    pub(super) longest_string: usize,
}

/// The values of the object that `json` is; it must be valid JSON. None if it is no object.
pub(super) fn split(json: &str) -> Option<Vec<Part<'_>>> {
    let mut rest = json.trim_start().strip_prefix('{')?;
    let mut parts = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
        if !rest.starts_with('"') {
            return Some(parts);
        }
        let key_end = 1 + string_length(&rest.as_bytes()[1..]);
        let key = serde_json::from_str(rest.get(..key_end)?).ok()?;
        rest = rest.get(key_end..)?.trim_start().strip_prefix(':')?.trim_start();
        let (length, depth, longest_string) = measure(rest.as_bytes());
        parts.push(Part { key, text: rest.get(..length)?.trim_end(), depth, longest_string });
        rest = rest.get(length..)?;
    }
}

/// Bytes of a string up to and with its closing quote; `bytes` begin behind the opening one.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Bytes, depth and longest string of the value that `bytes` begin with.
fn measure(bytes: &[u8]) -> (usize, usize, usize) {
    let (mut at, mut depth, mut deepest, mut longest) = (0, 0usize, 0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let length = string_length(&bytes[at + 1..]);
                longest = longest.max(length.saturating_sub(1));
                at += length;
            }
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            // The end of the object that the value is in.
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => break,
            _ => {}
        }
        at += 1;
    }
    (at.min(bytes.len()), deepest, longest)
}

/// The steps of a part that may be a sequence of others, listed under `list`, in the order in which they work.
pub(super) fn steps(part: Value, list: &str) -> Vec<Value> {
    match part {
        Value::Null => Vec::new(),
        Value::Object(mut fields) => match fields.get_mut(list).map(Value::take) {
            Some(Value::Array(inner)) => inner.into_iter().flat_map(|step| steps(step, list)).collect(),
            _ => vec![Value::Object(fields)],
        },
        other => vec![other],
    }
}

/// The strings of a value, keys left out.
pub(super) fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, out)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, out)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_found_by_their_key_however_it_is_written() {
        let json = r#" { "a" : [1, {"b": "}\"]"}] , "\u0062\n":null,"c":"x,y" , "d": 12 } "#;
        let found: Vec<_> =
            split(json).unwrap().into_iter().map(|p| (p.key, p.text, p.depth, p.longest_string)).collect();
        let expected =
            [("a", r#"[1, {"b": "}\"]"}]"#, 2, 4), ("b\n", "null", 0, 0), ("c", "\"x,y\"", 0, 3), ("d", "12", 0, 0)];
        assert_eq!(found, expected.map(|(key, text, depth, longest)| (key.to_string(), text, depth, longest)));
        assert_eq!(split("[1]"), None);
        assert_eq!(split("{}"), Some(Vec::new()));
    }

    #[test]
    fn sequences_are_taken_apart() {
        let nested =
            json!({ "type": "Sequence", "n": [{ "x": 1 }, { "type": "Sequence", "n": [{ "x": 2 }] }, { "x": 3 }] });
        assert_eq!(steps(nested, "n"), [json!({ "x": 1 }), json!({ "x": 2 }), json!({ "x": 3 })]);
        assert_eq!(steps(Value::Null, "n"), Vec::<Value>::new());
        let mut found = Vec::new();
        let value = json!({ "a": ["b", { "c": "d" }], "e": 1 });
        strings(&value, &mut found);
        assert_eq!(found, ["b", "d"]);
    }
}
