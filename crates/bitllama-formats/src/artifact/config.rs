//! The architecture, read back out of a manifest of any age.

use std::path::Path;

use bitllama_core::weights::{BLOCK_SUB_NORMS, EMBEDDING, HEAD};
use bitllama_core::{ModelConfig, RopeScaling, excerpt};
use serde_json::{Map, Value};

use super::files::Files;
use super::forms::artifact_name;
use super::manifest::SWIGLU;

use crate::Error;
use crate::npz::Npz;

/// What the older tools meant where they said nothing: the values of Llama 2.
const RMS_NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10000.0;
const CONTEXT_LENGTH: usize = 2048;
/// The variant of attention that sees so many tokens back as `window_size` says.
const SLIDING: &str = "sliding-window";

/// The architecture of what [`Artifact::open`](super::Artifact::open) opens, with what had to be assumed because the tool that wrote
/// it left it out, one line each.
///
/// # Errors
/// [`Error`] with what is missing or wrong.
pub fn read_config(path: &Path) -> crate::Result<(ModelConfig, Vec<String>)> {
    let (files, mut notes) = (Files::open(path)?, Vec::new());
    let config = read(&files.manifest, &files, &mut notes).map_err(|reason| Error::invalid(&files.path, reason))?;
    Ok((config, notes))
}

/// Whether what [`Artifact::open`](super::Artifact::open) opens has a weight of that name (ours: `lm_head.weight`), in whatever form.
///
/// # Errors
/// [`Error`] if the manifest or the NPZ is damaged.
pub fn has_weight(path: &Path, name: &str) -> crate::Result<bool> {
    Ok(Files::open(path)?.has(&artifact_name(name)))
}

/// Our manifests hold the whole config; older ones are pieced together from `architecture`, then the `_config_*`
/// arrays of the NPZ, then from the shapes of weights. What had to be assumed is added to `notes`.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn read(manifest: &Value, files: &Files, notes: &mut Vec<String>) -> Result<ModelConfig, String> {
    let stated = manifest.get("model_config");
    let stated: Option<ModelConfig> = stated
        .map(|config| serde_json::from_value(config.clone()).map_err(|e| format!("model_config: {e}")))
        .transpose()?;
    // Manifests of other models than Llamas are our own, and `model_config` says everything.
    if !manifest.is_null() && stated.as_ref().is_none_or(|config| config.arch.is_llama()) {
        check_architecture(manifest, notes)?;
    }
    let config = match stated {
        Some(config) => config,
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

/// Refuses an architecture that would be computed as another one. What a manifest leaves out is assumed and noted.
///
/// # Errors
/// The field, its value and what it must be.
fn check_architecture(manifest: &Value, notes: &mut Vec<String>) -> Result<(), String> {
    let (model, architecture) = (&manifest["model"], &manifest["architecture"]);
    let attention = &architecture["attention"];
    let family = if model["primary_family"].is_null() { &model["families"][0] } else { &model["primary_family"] };
    let known: [(&str, &Value, &[&str]); 4] = [
        ("model.primary_family", family, &["llama", "mistral"]),
        ("architecture.activation", &architecture["activation"], &[SWIGLU]),
        ("architecture.norm", &architecture["norm"], &["rmsnorm"]),
        ("architecture.attention.variant", &attention["variant"], &["full", "gqa", "mqa", SLIDING]),
    ];
    for (field, value, known) in known {
        match value {
            Value::String(value) if known.contains(&value.as_str()) => {}
            // Heads are counted apart, and manifests of ours say all of it twice.
            Value::Null if known.contains(&SLIDING) || manifest.get("model_config").is_some() => {}
            Value::Null => notes.push(format!("the manifest does not tell {field}; {} is assumed", known[0])),
            other => {
                let (other, known) = (other.to_string(), known.join(", "));
                return Err(format!("{field} = {} is not supported; supported are {known}", excerpt(&other)));
            }
        }
    }
    if manifest.get("model_config").is_none() {
        rope_scaling(&architecture["rope"])?;
    }
    // A window as long as the context is none.
    let (window, context) = (&attention["window_size"], &architecture["context_length"]);
    let whole_context = window.as_u64().zip(context.as_u64()).is_some_and(|(window, context)| window >= context);
    if whole_context || (window.is_null() && attention["variant"] != SLIDING) {
        return Ok(());
    }
    let window = window.to_string();
    Err(format!(
        "architecture.attention.window_size = {} is not supported; sliding windows must span the context_length",
        excerpt(&window)
    ))
}

fn rebuild(manifest: &Value, files: &Files, notes: &mut Vec<String>) -> Result<ModelConfig, String> {
    let architecture = &manifest["architecture"];
    let attention = &architecture["attention"];
    let rope = &architecture["rope"];
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
        arch: Default::default(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
    })
}

/// The scaling of the rotary frequencies: `scale`, or under `type` (ours: `rope_type`) the fields of Hugging Face's
/// `rope_scaling`.
fn rope_scaling(rope: &Value) -> Result<Option<RopeScaling>, String> {
    const TYPES: [&str; 2] = ["rope_type", "type"];
    const KNOWN: [&str; 6] =
        ["base_theta", "scale", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
    let Some(fields) = rope.as_object() else {
        return match rope {
            Value::Null => Ok(None),
            _ => Err("architecture.rope is not an object".into()),
        };
    };
    let wrong = |key: &str, reason: &str| {
        let value = rope[key].to_string();
        Err(format!("architecture.rope.{} = {} {reason}", excerpt(key), excerpt(&value)))
    };
    let number = |key: &str| match &rope[key] {
        Value::Null => Ok(None),
        value => value.as_f64().map(Some).ok_or_else(|| format!("architecture.rope.{key} is not a number")),
    };
    if let Some((key, _)) = fields.iter().find(|(key, v)| !v.is_null() && !TYPES.iter().chain(&KNOWN).any(|k| k == key))
    {
        return wrong(key, "is not known");
    }
    let mut kinds = TYPES.into_iter().filter(|key| !rope[key].is_null());
    let (kind, other) = (kinds.next(), kinds.next());
    if let (Some(kind), Some(other)) = (kind, other)
        && rope[kind] != rope[other]
    {
        return wrong(other, "and rope_type disagree");
    }
    let (scale, factor) = (number("scale")?.filter(|scale| *scale != 1.0), number("factor")?);
    match (kind, kind.map(|kind| &rope[kind]).and_then(Value::as_str)) {
        (None, _) if factor.is_some() => wrong("factor", "has no type beside it"),
        (None, _) => Ok(scale.map(|factor| RopeScaling::Linear { factor })),
        (Some(_), Some("none" | "default")) if scale.is_some() => wrong("scale", "does not fit a rope without scaling"),
        (Some(_), Some("none" | "default")) => Ok(None),
        (Some(_), Some("linear" | "llama3")) if scale.is_some() && factor.is_some() && scale != factor => {
            wrong("scale", "and factor disagree")
        }
        (Some(kind), Some("linear")) => match scale.or(factor) {
            Some(factor) => Ok(Some(RopeScaling::Linear { factor })),
            None if number("scale")?.is_some() => Ok(None),
            None => wrong(kind, "has no factor beside it"),
        },
        (Some(_), Some("llama3")) => {
            let scaling: Map<String, Value> = fields
                .iter()
                .filter(|(key, _)| !TYPES.contains(&key.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            let mut scaling = Value::Object(scaling);
            scaling["rope_type"] = "llama3".into();
            serde_json::from_value(scaling).map(Some).map_err(|e| format!("architecture.rope: {e}"))
        }
        (Some(kind), _) => wrong(kind, "is not supported; supported are none, linear and llama3"),
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
        (other, _) => Err(format!("the manifest holds {} in place of {key}", excerpt(&other.to_string()))),
    }
}
