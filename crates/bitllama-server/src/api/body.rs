//! Bodies of requests: JSON objects whose keys are all understood.

use axum::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// Keys that change no answer of this server.
const WITHOUT_EFFECT: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
];

/// The content of a request with keys among those of `known`.
///
/// # Errors
/// A body that is no JSON object, has an unknown key, or a value of another type.
pub fn parse<T: DeserializeOwned>(body: &Bytes, known: &[&[&str]]) -> Result<T> {
    let object: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body is no JSON object: {error}")))?;
    // Null is what is not given.
    let object: Map<String, Value> = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
    let is_known = |key: &str| known.iter().any(|keys| keys.contains(&key)) || WITHOUT_EFFECT.contains(&key);
    let unknown = object.keys().find(|key| !is_known(key));
    if let Some(key) = unknown {
        let shown = bitllama_core::excerpt::excerpt(key);
        return Err(ApiError::parameter(&shown, format!("unknown parameter `{shown}`")));
    }
    serde_json::from_value(Value::Object(object)).map_err(|error| ApiError::invalid(bitllama_runtime::one_line(&error)))
}
