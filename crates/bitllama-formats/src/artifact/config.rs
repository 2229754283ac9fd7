//! The architecture, read back out of a manifest of any age.

use bitllama_core::weights::{BLOCK_SUB_NORMS, EMBEDDING, HEAD};
use bitllama_core::{ModelConfig, RopeScaling};
use serde_json::Value;

use super::files::Files;
use super::forms::artifact_name;

use crate::npz::Npz;

/// What the older tools meant where they said nothing: the values of Llama 2.
const RMS_NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10000.0;
const CONTEXT_LENGTH: usize = 2048;

/// Our manifests hold the whole config; older ones are pieced together from `architecture`, then the `_config_*`
/// arrays of the NPZ, then from the shapes of weights. What had to be assumed is added to `notes`.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn read(manifest: &Value, files: &Files, notes: &mut Vec<String>) -> Result<ModelConfig, String> {
    let config = match manifest.get("model_config") {
        Some(config) => serde_json::from_value(config.clone()).map_err(|e| format!("model_config: {e}"))?,
        None => rebuild(manifest, files, notes)?,
    };
    config.validate().map_err(|e| e.to_string())?;
    // Every layer has arrays of its own, so a number beyond theirs is damage, and would be expensive to list.
    if config.num_hidden_layers > files.array_count() {
        return Err(format!(
            "{} layers cannot be held by {} arrays and files",
            config.num_hidden_layers,
            files.array_count()
        ));
    }
    Ok(config)
}

fn rebuild(manifest: &Value, files: &Files, notes: &mut Vec<String>) -> Result<ModelConfig, String> {
    let architecture = &manifest["architecture"];
    let attention = &architecture["attention"];
    let rope = &architecture["rope"];
    for (field, known) in [("activation", "swiglu"), ("norm", "rmsnorm")] {
        match &architecture[field] {
            Value::Null => {}
            Value::String(value) if value == known => {}
            other => return Err(format!("architecture.{field} is {other}, only `{known}` is supported")),
        }
    }
    if !attention["window_size"].is_null() {
        return Err(format!("architecture.attention.window_size is {}, not supported", attention["window_size"]));
    }
    let npz = files.npz.as_ref();
    let whole = |value: &Value, key: &str| whole(value, npz, key);
    let needed = |value: &Value, field: &str, key: &str| {
        whole(value, key)?.ok_or_else(|| format!("neither architecture.{field} nor {key} is there"))
    };
    let hidden_size = needed(&architecture["hidden_size"], "hidden_size", "_config_hidden_size")?;
    let heads = needed(&attention["num_heads"], "attention.num_heads", "_config_num_heads")?;
    let head_dim = match whole(&attention["head_dim"], "_config_head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(heads).ok_or("architecture.attention.num_heads is 0")?,
    };
    let mut assume = |what: &str, value: &dyn std::fmt::Display| {
        notes.push(format!("the manifest does not tell {what}; {value} is assumed"));
    };
    // `kv_groups` counted heads in some tools and queries per head in others; the shape of a matrix cannot lie.
    let key_rows = files.rows_of(&artifact_name("layers.0.self_attn.k_proj.weight"));
    let key_value_heads = match key_rows.and_then(|rows| rows.checked_div(head_dim)) {
        Some(count) => count,
        None => whole(&attention["num_key_value_heads"], "_config_num_kv_heads")?
            .or(whole(&attention["kv_groups"], "_config_kv_groups")?)
            .unwrap_or(heads),
    };
    Ok(ModelConfig {
        vocab_size: match whole(&architecture["vocab_size"], "_config_vocab_size")? {
            Some(size) => size,
            None => files
                .rows_of(&artifact_name(EMBEDDING))
                .ok_or("neither architecture.vocab_size nor _config_vocab_size is there")?,
        },
        hidden_size,
        intermediate_size: needed(
            &architecture["intermediate_size"],
            "intermediate_size",
            "_config_intermediate_size",
        )?,
        num_hidden_layers: needed(&architecture["num_layers"], "num_layers", "_config_num_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads,
        head_dim,
        max_position_embeddings: whole(&architecture["context_length"], "_config_context_length")?.unwrap_or_else(
            || {
                assume("the context length", &CONTEXT_LENGTH);
                CONTEXT_LENGTH
            },
        ),
        rms_norm_eps: number(&architecture["rms_norm_eps"], npz, "_config_rms_norm_eps")?.unwrap_or_else(|| {
            assume("rms_norm_eps", &RMS_NORM_EPS);
            RMS_NORM_EPS
        }),
        rope_theta: number(&rope["base_theta"], npz, "_config_rope_theta")?.unwrap_or_else(|| {
            assume("the base of the rotary embedding", &ROPE_THETA);
            ROPE_THETA
        }),
        rope_scaling: rope_scaling(rope)?,
        tie_word_embeddings: !files.has(HEAD),
        sub_norm: files.has(&artifact_name(&format!("layers.0.{}.weight", BLOCK_SUB_NORMS[0]))),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
    })
}

fn rope_scaling(rope: &Value) -> Result<Option<RopeScaling>, String> {
    if rope.get("rope_type").is_some_and(|kind| !kind.is_null()) {
        return serde_json::from_value(rope.clone()).map_err(|e| format!("architecture.rope: {e}")).map(Some);
    }
    match rope["scale"].as_f64() {
        None | Some(1.0) => Ok(None),
        Some(factor) => Ok(Some(RopeScaling::Linear { factor })),
    }
}

fn whole(value: &Value, npz: Option<&Npz>, key: &str) -> Result<Option<usize>, String> {
    match number(value, npz, key)? {
        None => Ok(None),
        Some(number) if number >= 0.0 && number.fract() == 0.0 && number <= u32::MAX as f64 => {
            Ok(Some(number as usize))
        }
        Some(number) => Err(format!("{key} is {number}, not a count")),
    }
}

/// A number of the manifest or, where it has none, of the NPZ.
fn number(value: &Value, npz: Option<&Npz>, key: &str) -> Result<Option<f64>, String> {
    match (value, npz.filter(|npz| npz.contains(key))) {
        (Value::Number(number), _) => Ok(number.as_f64()),
        (Value::Null, None) => Ok(None),
        (Value::Null, Some(npz)) => {
            let array = npz.array(key).map_err(|e| e.to_string())?;
            array.to_number().map(Some).ok_or_else(|| format!("{key} has the shape {:?}, not one number", array.shape))
        }
        (other, _) => Err(format!("the manifest holds {other} in place of {key}")),
    }
}
