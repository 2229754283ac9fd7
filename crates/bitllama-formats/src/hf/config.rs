//! `config.json` of every family, with the defaults of its class in `transformers` ([`bitllama_core::families`]).
//!
//! A key that would change the arithmetic and is not understood is refused by name: a model that loads and computes something else
//! is worse than one that does not load.

use std::path::Path;

use bitllama_core::families::{Extra, Family, FamilyName, model_types, of_model_type, refuse_mixture};
use bitllama_core::{Architecture, HiddenAct, ModelConfig, excerpt};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::rope::{ropes, scaling_json};
use super::unpack::Quantization;
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
    parse(object).map_err(|reason| Error::invalid(path, reason))
}

fn parse(object: &Map<String, Value>) -> std::result::Result<ModelConfig, String> {
    let fields = Fields::new("", object);
    let family = family(&fields)?;
    Quantization::stated(&Value::Object(object.clone()))?;
    let hidden_size = fields.required("hidden_size", Fields::whole)?;
    let heads = fields.required("num_attention_heads", Fields::whole)?;
    let absent = &family.absent;
    let positions = fields.whole("max_position_embeddings")?.unwrap_or(absent.max_position_embeddings);
    let arch = family.arch();
    let ropes = ropes(&fields, absent.rope_theta, arch.local_rope.clone(), positions)?;
    let mut config = ModelConfig {
        vocab_size: fields.required("vocab_size", Fields::whole)?,
        hidden_size,
        intermediate_size: fields.required("intermediate_size", Fields::whole)?,
        num_hidden_layers: fields.required("num_hidden_layers", Fields::whole)?,
        num_attention_heads: heads,
        num_key_value_heads: match fields.whole("num_key_value_heads")? {
            Some(heads) => heads,
            None if object.contains_key("num_key_value_heads") => heads,
            None => absent.num_key_value_heads.unwrap_or(heads),
        },
        head_dim: match fields.whole("head_dim")?.or(absent.head_dim) {
            Some(width) => width,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        },
        max_position_embeddings: positions,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(absent.rms_norm_eps),
        rope_theta: ropes.theta,
        rope_scaling: ropes.scaling,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(absent.tie_word_embeddings),
        sub_norm: false,
        arch: Architecture { local_rope: ropes.local, ..arch },
        bos_token_id: fields.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: fields.tokens("eos_token_id")?,
        end_token_ids: Vec::new(),
    };
    // Before a family lists layers, of which damage could make any number.
    config.validate_sizes().map_err(|e| e.to_string())?;
    if let Some(share) = ropes.partial.filter(|share| *share != 1.0) {
        if !family.partial_rotary {
            return Err(format!("partial_rotary_factor = {share} is not supported; it must be 1"));
        }
        config.arch.rotary_dim = Some((config.head_dim as f64 * share) as usize);
    }
    (family.read)(&mut config, &fields)?;
    fields.refuse_unread()?;
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

/// The family that `model_type` names.
fn family(fields: &Fields) -> std::result::Result<&'static Family, String> {
    let Some(name) = fields.text("model_type")? else {
        return Err(fields.wrong("model_type", &format!("must be one of {}", model_types())));
    };
    refuse_mixture("model_type", name)?;
    if name == "gemma3" {
        let what =
            "has images beside text, which is not supported; its text model (model_type gemma3_text) and its GGUF are";
        return Err(fields.wrong("model_type", what));
    }
    let family = of_model_type(name)
        .ok_or_else(|| fields.wrong("model_type", &format!("is not supported; it must be one of {}", model_types())))?;
    Ok(family)
}

/// A config in the form of `config.json`, as `transformers` 4 and 5 read it. `dtype` is what the weights are stored in.
pub fn config_json(config: &ModelConfig, dtype: Dtype) -> Value {
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let family = written_family(config);
    let mut json = json!({
        "architectures": [family.class],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.arch.hidden_act.name(),
        "attention_bias": false,
        "mlp_bias": false,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling_json(config.rope_scaling.as_ref()),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": dtype.torch_name(),
    });
    if let Some(local) = &config.arch.local_rope {
        json["rope_local_base_freq"] = json!(local.theta);
    }
    for (key, value) in (family.write)(config) {
        json[key] = match value {
            Extra::Null => Value::Null,
            Extra::Flag(flag) => json!(flag),
            Extra::Whole(whole) => json!(whole),
            Extra::Number(number) => json!(number),
            Extra::Text(text) => json!(text),
            Extra::Texts(texts) => json!(texts),
            Extra::Wholes(wholes) => json!(wholes),
        };
    }
    json
}

/// The family in whose form a model is written: a Llama with sub-norms is a BitNet with SiLU.
pub(super) fn written_family(config: &ModelConfig) -> &'static Family {
    let family = config.arch.family;
    if config.sub_norm && family == FamilyName::LLAMA && config.arch.hidden_act == HiddenAct::Silu {
        return FamilyName::BITNET.family();
    }
    family.family()
}

/// The reason why no family's files can hold a config, if there is one.
pub(super) fn unwritable(config: &ModelConfig) -> Option<String> {
    let family = written_family(config);
    let arch = &config.arch;
    if config.sub_norm && family.model_type != FamilyName::BITNET.family().model_type {
        return Some(format!("{} models have no sub-norms in `transformers`", excerpt(family.model_type)));
    }
    if arch.local_rope.as_ref().is_some_and(|local| local.scaling.is_some()) {
        return Some("a scaled rotary embedding of layers with a window has no place in config.json".into());
    }
    None
}

/// Writes [`config_json`] to a file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] for choices that no family of `transformers` has together.
pub fn write_config(path: &Path, config: &ModelConfig, dtype: Dtype) -> Result<()> {
    match unwritable(config) {
        Some(reason) => Err(Error::invalid(path, reason)),
        None => write_json(path, &config_json(config, dtype)),
    }
}
