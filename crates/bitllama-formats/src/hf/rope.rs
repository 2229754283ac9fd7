//! Rotary embedding in a `config.json`: `rope_theta` and `rope_scaling`, or, as `transformers` 5 writes them, both in
//! `rope_parameters`, which has an object for each kind of layer where these differ.

use bitllama_core::{Rope, RopeScaling};
use serde_json::{Value, json};

use super::fields::Fields;

/// The rotary embeddings of a config.
pub(super) struct Ropes {
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    /// Rotary embedding of layers with a window, where a family has one.
    pub local: Option<Rope>,
    /// Share of a head that is rotated.
    pub partial: Option<f64>,
}

type Result<T> = std::result::Result<T, String>;

/// One object that says something of the rotary embedding: its name, and what it says.
struct Part {
    name: &'static str,
    theta: Option<f64>,
    scaling: Option<RopeScaling>,
    partial: Option<f64>,
}

/// Reads the rotary embeddings. Where a value is stated in several places they must agree: which one counts depends on the version
/// of `transformers`. `default_theta` is that of a config without one, `local` the embedding of layers with a window in a config
/// that says nothing of it; `positions` is `max_position_embeddings`.
pub(super) fn ropes(fields: &Fields, default_theta: f64, local: Option<Rope>, positions: usize) -> Result<Ropes> {
    let top = fields.number("partial_rotary_factor")?;
    let mut parts = Vec::new();
    let mut local_part = None;
    for (name, prefix) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
        // An empty object is the same as none.
        let Some(object) = fields.object(name, prefix)?.filter(|object| !object.object.is_empty()) else { continue };
        let nested = object.object.iter().find(|(_, value)| value.is_object());
        match (nested, local.is_some()) {
            (Some(_), true) => {
                if let Some(full) = object.object("full_attention", "rope_parameters.full_attention.")? {
                    parts.push(part(fields, name, &full, positions)?);
                }
                if let Some(sliding) = object.object("sliding_attention", "rope_parameters.sliding_attention.")? {
                    local_part = Some(part(fields, name, &sliding, positions)?);
                }
            }
            (Some((kind, _)), false) => {
                return Err(object.wrong(kind, "is not supported; all layers must share one rotary embedding"));
            }
            (None, _) => parts.push(part(fields, name, &object, positions)?),
        }
    }
    let disagree = |one: String, other: String| Err(format!("{one} and {other} disagree; keep the one that is meant"));
    if let [one, other] = &parts[..]
        && one.scaling != other.scaling
    {
        return disagree(one.name.into(), other.name.into());
    }
    let thetas = std::iter::once(("rope_theta".to_string(), fields.number("rope_theta")?))
        .chain(parts.iter().map(|part| (format!("{}.rope_theta", part.name), part.theta)));
    let mut stated = thetas.filter_map(|(place, theta)| Some((place, theta?)));
    let first = stated.next();
    if let Some((place, theta)) = &first
        && let Some((other, different)) = stated.find(|(_, other)| other != theta)
    {
        return disagree(format!("{place} = {theta}"), format!("{other} = {different}"));
    }
    let local = match (local, local_part) {
        (Some(default), Some(part)) => Some(Rope { theta: part.theta.unwrap_or(default.theta), scaling: part.scaling }),
        (Some(default), None) => {
            let theta = fields.number("rope_local_base_freq")?.unwrap_or(default.theta);
            Some(Rope { theta, scaling: None })
        }
        (None, _) => None,
    };
    Ok(Ropes {
        theta: first.map_or(default_theta, |(_, theta)| theta),
        partial: top.or_else(|| parts.iter().find_map(|part| part.partial)),
        scaling: parts.pop().and_then(|part| part.scaling),
        local,
    })
}

fn part(config: &Fields, name: &'static str, part: &Fields, positions: usize) -> Result<Part> {
    Ok(Part {
        name,
        theta: part.number("rope_theta")?,
        scaling: scaling(config, part, positions)?,
        partial: part.number("partial_rotary_factor")?,
    })
}

/// The scaling in `rope_scaling` or `rope_parameters`.
fn scaling(config: &Fields, part: &Fields, positions: usize) -> Result<Option<RopeScaling>> {
    let (old, new) = (part.text("type")?, part.text("rope_type")?);
    if let (Some(old), Some(_)) = (old, new)
        && new != Some(old)
    {
        return Err(part.wrong("type", "and rope_type disagree; keep the one that is meant"));
    }
    let original = || match config.whole("original_max_position_embeddings")? {
        // Phi's place for it, which comes first.
        Some(original) => Ok::<_, String>(original),
        None => Ok(part.whole("original_max_position_embeddings")?.unwrap_or(positions)),
    };
    let phi = config.text("model_type")? == Some("phi3");
    Ok(match new.or(old) {
        // `dynamic` changes frequencies beyond `max_position_embeddings` only, which no sequence exceeds here.
        None | Some("default" | "dynamic") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: part.required("factor", Fields::number)? }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: part.required("factor", Fields::number)?,
            low_freq_factor: part.required("low_freq_factor", Fields::number)?,
            high_freq_factor: part.required("high_freq_factor", Fields::number)?,
            original_max_position_embeddings: match part.whole("original_max_position_embeddings")? {
                Some(original) => original,
                None => return Err(format!("{}original_max_position_embeddings is missing", part.prefix)),
            },
        }),
        // Old configs of Phi call LongRoPE so.
        Some("longrope") => Some(longrope(part, original()?, positions)?),
        Some("su" | "yarn") if phi => Some(longrope(part, original()?, positions)?),
        Some("yarn") => {
            let original = original()?;
            let factor = part.number("factor")?.unwrap_or(positions as f64 / original.max(1) as f64);
            let (mscale, all) = (part.number("mscale")?, part.number("mscale_all_dim")?);
            let attention_factor = match part.number("attention_factor")? {
                Some(factor) => factor,
                None => RopeScaling::yarn_attention_factor(factor, mscale, all),
            };
            let beta = |name: &str, absent: f64| {
                Ok::<_, String>(part.number(name)?.filter(|beta| *beta != 0.0).unwrap_or(absent))
            };
            Some(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                attention_factor,
                truncate: part.flag("truncate")?.unwrap_or(true),
            })
        }
        Some(_) => {
            let key = if new.is_some() { "rope_type" } else { "type" };
            let known = "default, linear, dynamic, llama3, yarn, longrope";
            return Err(part.wrong(key, &format!("is not supported; supported are {known}")));
        }
    })
}

fn longrope(part: &Fields, original: usize, positions: usize) -> Result<RopeScaling> {
    let factor = part.number("factor")?.unwrap_or(positions as f64 / original.max(1) as f64);
    let attention_factor = match part.number("attention_factor")? {
        Some(factor) => factor,
        None => RopeScaling::longrope_attention_factor(factor, original),
    };
    Ok(RopeScaling::LongRope {
        short_factor: part.required("short_factor", Fields::numbers)?,
        long_factor: part.required("long_factor", Fields::numbers)?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

/// A scaling in the form of `rope_scaling`.
pub(super) fn scaling_json(scaling: Option<&RopeScaling>) -> Value {
    let mut json = match scaling {
        None => return Value::Null,
        Some(scaling) => json!(scaling),
    };
    if let Some(RopeScaling::LongRope { .. }) = scaling {
        // `transformers` 4 checks the old name of the key.
        json["type"] = "longrope".into();
    }
    json
}
