//! JSON files that describe something: configs, indices, manifests, states. They are small, whatever they describe.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// Values that a file may hold. A value takes a hundred times the memory of its two bytes in a file, and the largest file there
/// is, the index of a model of 91,000 tensors, has a third of this.
const MAX_VALUES: usize = 1 << 18;

/// Reads a file.
///
/// # Errors
/// [`Error`] if it cannot be read, is no JSON, or holds more values than any such file has.
pub fn read(path: &Path) -> Result<Value> {
    parse(path, &std::fs::read(path).map_err(Error::io(path))?)
}

/// [`read`] of bytes that were read already; `path` is for errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    limit(bytes).map_err(|reason| Error::invalid(path, reason))?;
    serde_json::from_slice(bytes).map_err(|e| Error::invalid(path, format!("not JSON: {e}")))
}

/// Refuses JSON that would take many times its size in memory.
///
/// # Errors
/// The number of values, if there are too many.
pub fn limit(bytes: &[u8]) -> std::result::Result<(), String> {
    let values = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    match values <= MAX_VALUES {
        true => Ok(()),
        false => Err(format!("holds about {values} values, more than JSON of this kind has")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_very_many_values_is_refused_before_it_is_parsed() {
        let many = |count: usize| format!("[0{}]", ",0".repeat(count - 1));
        assert_eq!(parse("a.json".as_ref(), many(1000).as_bytes()).unwrap().as_array().unwrap().len(), 1000);
        let message = parse("a.json".as_ref(), many(MAX_VALUES + 1).as_bytes()).unwrap_err().to_string();
        assert!(message.starts_with("a.json: holds about 262145 values"), "{message}");
        assert!(parse("a.json".as_ref(), b"{").unwrap_err().to_string().starts_with("a.json: not JSON: EOF"));
    }
}
