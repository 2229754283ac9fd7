//! The config of a model, out of a GGUF's metadata.

use bitllama_core::families::{GgufFamily, Keys, gguf_architectures, of_gguf, refuse_mixture};
use bitllama_core::{Architecture, ModelConfig, RopeScaling, excerpt, rope};

use super::model::{ROPE_FREQS, ROPE_LONG, ROPE_SHORT, values};
use super::{Array, Gguf, special};
use crate::{Error, Result};

/// Reads the config, and how the family's files are made. The vocabulary is as large as the embedding.
///
/// # Errors
/// [`Error::Invalid`] if a value is missing, or means something that is not supported.
pub(super) fn config(file: &Gguf) -> Result<(ModelConfig, GgufFamily)> {
    let architecture = file.required("general.architecture", Gguf::text)?;
    refuse_mixture("general.architecture", architecture).map_err(|reason| file.invalid(reason))?;
    let family = of_gguf(architecture);
    let Some((family, gguf)) = family.and_then(|family| Some((family, family.gguf?))) else {
        let (architecture, known) = (excerpt(architecture), gguf_architectures());
        let reason = format!("general.architecture = {architecture} is not supported; it must be one of {known}");
        return Err(file.invalid(reason));
    };
    let keys = Metadata { file, architecture };
    let key = |name: &str| format!("{architecture}.{name}");
    let (whole, number) = (|name: &str| file.whole(&key(name)), |name: &str| file.number(&key(name)));
    if whole("expert_count")?.unwrap_or(0) > 0 {
        return Err(file.invalid(format!("{} is not 0; mixtures of experts are not supported", key("expert_count"))));
    }
    let heads = file.required(&key("attention.head_count"), Gguf::whole)?;
    let hidden_size = file.required(&key("embedding_length"), Gguf::whole)?;
    let head_dim = match whole("attention.key_length")? {
        Some(width) => width,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let rotated = whole("rope.dimension_count")?.filter(|width| *width != head_dim);
    let wrong_width = match whole("attention.value_length")?.filter(|width| *width != head_dim) {
        Some(width) => Some(("attention.value_length", width)),
        None => rotated.filter(|_| !family.partial_rotary).map(|width| ("rope.dimension_count", width)),
    };
    if let Some((name, width)) = wrong_width {
        let reason = format!("{} = {width} is not supported; it must be the head's {head_dim}", key(name));
        return Err(file.invalid(reason));
    }
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| file.invalid("has no tensor token_embd.weight"))?;
    let in_block = |part: &str| file.tensor(&format!("blk.0.{part}.bias")).is_some();
    let mut config = ModelConfig {
        vocab_size: embedding.shape[0],
        hidden_size,
        intermediate_size: file.required(&key("feed_forward_length"), Gguf::whole)?,
        num_hidden_layers: file.required(&key("block_count"), Gguf::whole)?,
        num_attention_heads: heads,
        num_key_value_heads: whole("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: file.required(&key("context_length"), Gguf::whole)?,
        rms_norm_eps: shortest(file.required(&key("attention.layer_norm_rms_epsilon"), Gguf::number)?),
        rope_theta: shortest(number("rope.freq_base")?.unwrap_or(1e4)),
        rope_scaling: None,
        tie_word_embeddings: file.tensor("output.weight").is_none(),
        sub_norm: false,
        arch: Architecture {
            qkv_bias: in_block("attn_q") || in_block("attn_qkv"),
            o_bias: in_block("attn_output"),
            mlp_bias: in_block("ffn_gate") || in_block("ffn_up"),
            rotary_dim: rotated,
            ..family.arch()
        },
        bos_token_id: special::token(file, "bos")?,
        eos_token_ids: special::token(file, "eos")?.into_iter().collect(),
        end_token_ids: Vec::new(),
    };
    for id in special::ends(file)? {
        config.add_end(id);
    }
    config.validate_sizes().map_err(|e| file.invalid(e))?;
    config.rope_scaling = scaling(file, &keys, &config)?;
    (family.read_gguf)(&mut config, &keys).map_err(|reason| file.invalid(reason))?;
    config.validate().map_err(|e| file.invalid(e))?;
    if let Some(factors) = file.tensor(ROPE_FREQS) {
        let factors = values(file, ROPE_FREQS, factors)?;
        config.rope_scaling = Some(scaling_of_divisors(file, &config, &factors)?);
        config.validate().map_err(|e| file.invalid(e))?;
    }
    Ok((config, gguf))
}

/// Metadata of one architecture, whose keys begin with its name.
struct Metadata<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}

/// The reason of an error about a file, without its name, which is put in front again later.
fn reason<T>(result: Result<T>) -> std::result::Result<T, String> {
    result.map_err(|e| match e {
        Error::Invalid { reason, .. } => reason,
        other => other.to_string(),
    })
}

impl Keys for Metadata<'_> {
    fn has(&self, key: &str) -> bool {
        self.file.get(&self.key(key)).is_some()
    }

    fn whole(&self, key: &str) -> std::result::Result<Option<usize>, String> {
        reason(self.file.whole(&self.key(key)))
    }

    fn number(&self, key: &str) -> std::result::Result<Option<f64>, String> {
        Ok(reason(self.file.number(&self.key(key)))?.map(shortest))
    }

    fn flag(&self, key: &str) -> std::result::Result<Option<bool>, String> {
        reason(self.file.flag(&self.key(key)))
    }

    fn text(&self, key: &str) -> std::result::Result<Option<String>, String> {
        Ok(reason(self.file.text(&self.key(key)))?.map(str::to_string))
    }

    fn texts(&self, key: &str) -> std::result::Result<Option<Vec<String>>, String> {
        match reason(self.file.array(&self.key(key)))? {
            Some(Array::Strings(texts)) => Ok(Some(texts.clone())),
            Some(_) => Err(self.wrong(key, "is no list of strings")),
            None => Ok(None),
        }
    }

    fn wholes(&self, key: &str) -> std::result::Result<Option<Vec<usize>>, String> {
        let list = reason(self.file.array(&self.key(key)))?;
        let wholes = match list {
            Some(Array::Integers(list)) => list.iter().map(|whole| usize::try_from(*whole).ok()).collect(),
            Some(Array::Bools(list)) => Some(list.iter().map(|flag| usize::from(*flag)).collect()),
            Some(_) => None,
            None => return Ok(None),
        };
        wholes.map(Some).ok_or_else(|| self.wrong(key, "is no list of whole numbers"))
    }

    fn wrong(&self, key: &str, what: &str) -> String {
        format!("metadata {} {what}", self.key(key))
    }
}

/// The decimal number that was meant: files hold `1e-5` in single precision.
fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

/// The scaling of rotary frequencies, by metadata and LongRoPE's tensors.
fn scaling(file: &Gguf, keys: &Metadata, config: &ModelConfig) -> Result<Option<RopeScaling>> {
    let key = |name: &str| keys.key(&format!("rope.scaling.{name}"));
    let number = |name: &str| Ok::<_, Error>(file.number(&key(name))?.map(shortest));
    let original = file.whole(&key("original_context_length"))?.unwrap_or(config.max_position_embeddings);
    let attention_factor = number("attn_factor")?.unwrap_or(1.0);
    if let (Some(short), Some(long)) = (file.tensor(ROPE_SHORT), file.tensor(ROPE_LONG)) {
        let wide = |name: &str, tensor| -> Result<Vec<f64>> {
            Ok(values(file, name, tensor)?.into_iter().map(|factor| shortest(factor.into())).collect())
        };
        return Ok(Some(RopeScaling::LongRope {
            short_factor: wide(ROPE_SHORT, short)?,
            long_factor: wide(ROPE_LONG, long)?,
            original_max_position_embeddings: original,
            attention_factor,
        }));
    }
    let linear = |factor: Option<f64>| {
        let factor = factor.filter(|factor| *factor != 1.0 && *factor != 0.0);
        factor.map(|factor| RopeScaling::Linear { factor })
    };
    match file.text(&key("type"))? {
        // A factor without a type, and the spelling before scaling types existed, mean linear scaling.
        None => Ok(linear(number("factor")?.or(file.number(&keys.key("rope.scale_linear"))?.map(shortest)))),
        Some("none") => Ok(None),
        Some("linear") => Ok(linear(Some(shortest(file.required(&key("factor"), Gguf::number)?)))),
        Some("yarn") => {
            let factor = shortest(file.required(&key("factor"), Gguf::number)?);
            Ok(Some(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
                // llama.cpp multiplies the stated factor by YaRN's own (`rope_yarn` of `ops.cpp`).
                attention_factor: attention_factor * RopeScaling::yarn_attention_factor(factor, None, None),
                truncate: true,
            }))
        }
        Some(other) => {
            let other = excerpt(other);
            Err(file.invalid(format!("{} = {other} is not supported; it must be none, linear or yarn", key("type"))))
        }
    }
}

/// Converters store Llama 3's scaling as the divisors that follow from it. Its parameters are the same in all published models but
/// `factor`, which is the largest divisor. Divisors that they do not explain are kept as they are, in the form of LongRoPE.
fn scaling_of_divisors(file: &Gguf, config: &ModelConfig, divisors: &[f32]) -> Result<RopeScaling> {
    if config.rope_scaling.is_some() {
        return Err(file.invalid(format!("{ROPE_FREQS} and a rope.scaling.type are two scalings; one can be meant")));
    }
    let factor = divisors.iter().copied().fold(1.0, f32::max).round().into();
    let plain = rope::inverse_frequencies(config);
    let llama3 = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let scaled = ModelConfig { rope_scaling: Some(llama3.clone()), ..config.clone() };
    let scaled = rope::inverse_frequencies(&scaled);
    let explained = divisors.len() == plain.len()
        && plain.iter().zip(&scaled).zip(divisors).all(|((p, s), d)| (p / s / d - 1.0).abs() < 1e-3);
    if explained {
        return Ok(llama3);
    }
    let factors: Vec<f64> = divisors.iter().map(|divisor| shortest((*divisor).into())).collect();
    Ok(RopeScaling::LongRope {
        short_factor: factors.clone(),
        long_factor: factors,
        original_max_position_embeddings: config.max_position_embeddings,
        attention_factor: 1.0,
    })
}
