//! `config.json` of the Llama family, with the defaults of `configuration_llama.py`, `configuration_mistral.py` and
//! `configuration_bitnet.py`: a `bitnet` with `hidden_act` = silu is a Llama with sub-norms
//! ([`ModelConfig::sub_norm`]), and what such a model is written as, so that `transformers` computes the same.
//!
//! What would change the arithmetic and is not supported (biases, other activations, sliding windows, other rope
//! types) is refused: a model that loads and computes something else is worse than one that does not load.

use std::path::Path;

use bitllama_core::{ModelConfig, RopeScaling, excerpt};
use serde_json::{Map, Value, json};

use super::{Dtype, write_json};
use crate::{Error, Result, json as json_file};

/// Reads a `config.json`, beside weights or alone. Token ids that are absent are taken as none.
///
/// # Errors
/// [`Error`] naming file, field and value if the file is no JSON object, a field is missing or of another type, the
/// architecture is not supported, or the numbers do not fit together.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    parse_config(path, &json_file::read(path)?)
}

/// [`read_config`] of JSON that was read already; `path` is for errors.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(path: &Path, json: &Value) -> Result<ModelConfig> {
    let object = json.as_object().ok_or_else(|| Error::invalid(path, "not a JSON object"))?;
    let fields = Fields { path, prefix: "", object };
    let family = refuse_unsupported(&fields)?;

    let hidden_size = fields.required("hidden_size", Fields::whole)?;
    let heads = fields.required("num_attention_heads", Fields::whole)?;
    let (kv_heads, positions, eps, theta) = match family {
        Family::Llama => (heads, 2048, 1e-6, 1e4),
        Family::Mistral => (8, 131_072, 1e-6, 1e4),
        // To `BitNetConfig` null means as many as heads, and an absent field 5, which fits its own model only.
        Family::BitNet => (heads, 2048, 1e-5, 5e5),
    };
    if family == Family::BitNet && !object.contains_key("num_key_value_heads") {
        return Err(Error::invalid(path, "num_key_value_heads is missing"));
    }
    let (rope_theta, rope_scaling) = rope(&fields, theta)?;
    let config = ModelConfig {
        vocab_size: fields.required("vocab_size", Fields::whole)?,
        hidden_size,
        intermediate_size: fields.required("intermediate_size", Fields::whole)?,
        num_hidden_layers: fields.required("num_hidden_layers", Fields::whole)?,
        num_attention_heads: heads,
        num_key_value_heads: fields.whole("num_key_value_heads")?.unwrap_or(kv_heads),
        head_dim: match fields.whole("head_dim")? {
            Some(width) => width,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        },
        max_position_embeddings: fields.whole("max_position_embeddings")?.unwrap_or(positions),
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(eps),
        rope_theta,
        rope_scaling,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        sub_norm: family == Family::BitNet,
        bos_token_id: fields.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: fields.tokens("eos_token_id")?,
        end_token_ids: Vec::new(),
    };
    config.validate().map_err(|e| Error::invalid(path, e))?;
    Ok(config)
}

/// What `model_type` names; each has defaults of its own.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Mistral,
    BitNet,
}

/// Refuses what the architecture here does not compute.
fn refuse_unsupported(fields: &Fields) -> Result<Family> {
    let family = match fields.text("model_type")? {
        Some("llama") => Family::Llama,
        Some("mistral") => Family::Mistral,
        Some("bitnet") => Family::BitNet,
        Some(_) => return Err(fields.wrong("model_type", "is not supported; it must be llama, mistral or bitnet")),
        None => return Err(fields.wrong("model_type", "must be llama, mistral or bitnet")),
    };
    // An absent field means 4096 to `MistralConfig`.
    if family == Family::Mistral && fields.object.get("sliding_window") != Some(&Value::Null) {
        return Err(fields.wrong("sliding_window", "is not supported; it must be null"));
    }
    // An absent field means relu2 to `BitNetConfig`.
    let act = fields.text("hidden_act")?;
    if !matches!(act, None | Some("silu")) || (act.is_none() && family == Family::BitNet) {
        return Err(fields.wrong("hidden_act", "is not supported; it must be silu"));
    }
    for name in ["attention_bias", "mlp_bias"] {
        if fields.flag(name)? == Some(true) {
            return Err(fields.wrong(name, "is not supported; it must be false"));
        }
    }
    if fields.get("quantization_config").is_some() {
        return Err(Error::invalid(fields.path, "has a quantization_config; a model in full precision is needed"));
    }
    Ok(family)
}

/// Base and scaling of the rotary frequencies, from `rope_theta` and `rope_scaling`, or, as `transformers` 5 writes them,
/// both in `rope_parameters`. Where several of them are there they must agree: which one counts depends on the version of
/// `transformers`.
fn rope(fields: &Fields, default_theta: f64) -> Result<(f64, Option<RopeScaling>)> {
    let named = [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")];
    let mut thetas = vec![("rope_theta", fields.number("rope_theta")?)];
    let mut scalings = Vec::new();
    refuse_partial(fields)?;
    for (name, prefix) in named {
        // An empty object is the same as none.
        let Some(part) = fields.object(name, prefix)?.filter(|part| !part.object.is_empty()) else { continue };
        refuse_partial(&part)?;
        if let Some((kind, _)) = part.object.iter().find(|(_, value)| value.is_object()) {
            return Err(part.wrong(kind, "is not supported; all layers must share one rotary embedding"));
        }
        thetas.push((name, part.number("rope_theta")?));
        scalings.push((name, scaling(&part)?));
    }
    if let [(one, first), (other, second)] = &scalings[..]
        && first != second
    {
        return Err(Error::invalid(fields.path, format!("{one} and {other} disagree; keep the one that is meant")));
    }
    let mut stated = thetas.into_iter().filter_map(|(name, theta)| Some((name, theta?)));
    let Some((place, theta)) = stated.next() else { return Ok((default_theta, scalings.pop().and_then(|s| s.1))) };
    if let Some((other, different)) = stated.find(|(_, other)| *other != theta) {
        let place = if place == "rope_theta" { place.to_string() } else { format!("{place}.rope_theta") };
        let reason =
            format!("{place} = {theta} and {other}.rope_theta = {different} disagree; keep the one that is meant");
        return Err(Error::invalid(fields.path, reason));
    }
    Ok((theta, scalings.pop().and_then(|s| s.1)))
}

fn refuse_partial(fields: &Fields) -> Result<()> {
    match fields.number("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(fields.wrong("partial_rotary_factor", "is not supported; it must be 1")),
    }
}

/// The scaling in `rope_scaling` or `rope_parameters`.
fn scaling(part: &Fields) -> Result<Option<RopeScaling>> {
    let (old, new) = (part.text("type")?, part.text("rope_type")?);
    if let (Some(old), Some(_)) = (old, new)
        && new != Some(old)
    {
        return Err(part.wrong("type", "and rope_type disagree; keep the one that is meant"));
    }
    Ok(match new.or(old) {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: part.required("factor", Fields::number)? }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: part.required("factor", Fields::number)?,
            low_freq_factor: part.required("low_freq_factor", Fields::number)?,
            high_freq_factor: part.required("high_freq_factor", Fields::number)?,
            original_max_position_embeddings: part.required("original_max_position_embeddings", Fields::whole)?,
        }),
        Some(_) => {
            let key = if new.is_some() { "rope_type" } else { "type" };
            return Err(part.wrong(key, "is not supported; it must be default, linear or llama3"));
        }
    })
}

/// A config in the form of `config.json`, as `transformers` 4 and 5 read it. `dtype` is what the weights are stored in.
pub fn config_json(config: &ModelConfig, dtype: Dtype) -> Value {
    let scaling = match &config.rope_scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
    };
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let (architecture, model_type) = match config.sub_norm {
        true => ("BitNetForCausalLM", "bitnet"),
        false => ("LlamaForCausalLM", "llama"),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": dtype.torch_name(),
    })
}

/// Writes [`config_json`] to a file.
///
/// # Errors
/// [`Error::Io`].
pub fn write_config(path: &Path, config: &ModelConfig, dtype: Dtype) -> Result<()> {
    write_json(path, &config_json(config, dtype))
}

/// The fields of one JSON object; an absent one and one that is `null` are the same.
struct Fields<'a> {
    path: &'a Path,
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, what: &str) -> Error {
        let value = self.object.get(name).map_or("(absent)".into(), Value::to_string);
        Error::invalid(self.path, format!("{}{name} = {} {what}", self.prefix, excerpt(&value)))
    }

    fn required<T>(&self, name: &str, get: fn(&Self, &str) -> Result<Option<T>>) -> Result<T> {
        get(self, name)?.ok_or_else(|| Error::invalid(self.path, format!("{}{name} is missing", self.prefix)))
    }

    fn typed<T>(&self, name: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|value| convert(value).ok_or_else(|| self.wrong(name, what))).transpose()
    }

    fn whole(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "is not a whole number", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "is not a number", Value::as_f64)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "is neither true nor false", Value::as_bool)
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "is not a string", Value::as_str)
    }

    fn object(&self, name: &str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        let object = self.typed(name, "is not an object", Value::as_object)?;
        Ok(object.map(|object| Fields { path: self.path, prefix, object }))
    }

    /// One token id or a list of them.
    fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(name, "is neither a token id nor a list of them", |value| match value.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(value).map(|one| vec![one]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}
