//! Versions of the files that this program writes; FORMATS.md says what each promises.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The field that says which version of its format a JSON file has.
pub const FIELD: &str = "format_version";

/// Checks `format_version` before anything else is read: the fields of a newer version may mean something else. A file
/// without the field is of the first version, which had none.
///
/// # Errors
/// [`Error::Invalid`] for a version that is newer than `newest`, or no version at all.
pub fn check(path: &Path, json: &Value, newest: u32) -> Result<()> {
    match &json[FIELD] {
        Value::Null => Ok(()),
        Value::Number(version)
            if version.as_u64().is_some_and(|version| (1..=u64::from(newest)).contains(&version)) =>
        {
            Ok(())
        }
        Value::Number(version) if version.as_u64().is_some_and(|version| version > u64::from(newest)) => {
            let reason = format!(
                "{FIELD} = {version} was written by a newer version of this program, and this one reads up to {newest}"
            );
            Err(Error::invalid(path, reason))
        }
        other => {
            let other = other.to_string();
            Err(Error::invalid(path, format!("{FIELD} = {} is no version", bitllama_core::excerpt(&other))))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn older_versions_pass_and_newer_ones_are_refused() {
        let check = |json: Value| check("a.json".as_ref(), &json, 2).map_err(|e| e.to_string());
        for good in [json!({}), json!({ "format_version": 1 }), json!({ "format_version": 2 })] {
            check(good).unwrap();
        }
        let newer = check(json!({ "format_version": 3 })).unwrap_err();
        assert_eq!(
            newer,
            "a.json: format_version = 3 was written by a newer version of this program, and this one reads up to 2"
        );
        for wrong in [json!(0), json!(-1), json!(1.5), json!("2"), json!([1])] {
            let message = check(json!({ "format_version": wrong })).unwrap_err();
            assert!(message.ends_with("is no version"), "{message}");
        }
    }
}
