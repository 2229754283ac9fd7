//! Architecture `llama`: metadata as a config, tensors under Hugging Face's names and in its row order.

use std::sync::Arc;

use bitllama_core::weights::{self, EMBEDDING, FINAL_NORM, HEAD, WeightSpec};
use bitllama_core::{ModelConfig, RopeScaling, excerpt, rope};

use super::{BlockFormat, Gguf, TensorInfo, special};
use crate::{Error, Result, StoredWeight, WeightSource, finite};

/// Reads the config. The vocabulary is as large as the embedding.
///
/// # Errors
/// [`Error::Invalid`] if a value is missing, or means something that is not supported.
pub(super) fn config(file: &Gguf) -> Result<ModelConfig> {
    let architecture = file.required("general.architecture", Gguf::text)?;
    if architecture != "llama" {
        let architecture = excerpt(architecture);
        return Err(file.invalid(format!("general.architecture = {architecture} is not supported; it must be llama")));
    }
    if file.whole("llama.expert_count")?.unwrap_or(0) > 0 {
        return Err(file.invalid("llama.expert_count is not 0; mixtures of experts are not supported"));
    }
    let heads = file.required("llama.attention.head_count", Gguf::whole)?;
    let hidden_size = file.required("llama.embedding_length", Gguf::whole)?;
    let head_dim = match file.whole("llama.attention.key_length")? {
        Some(width) => width,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(width) = file.whole(key)?.filter(|width| *width != head_dim) {
            return Err(file.invalid(format!("{key} = {width} is not supported; it must be the head's {head_dim}")));
        }
    }
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| file.invalid("has no tensor token_embd.weight"))?;
    let mut config = ModelConfig {
        vocab_size: embedding.shape[0],
        hidden_size,
        intermediate_size: file.required("llama.feed_forward_length", Gguf::whole)?,
        num_hidden_layers: file.required("llama.block_count", Gguf::whole)?,
        num_attention_heads: heads,
        num_key_value_heads: file.whole("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: file.required("llama.context_length", Gguf::whole)?,
        rms_norm_eps: shortest(file.required("llama.attention.layer_norm_rms_epsilon", Gguf::number)?),
        rope_theta: shortest(file.number("llama.rope.freq_base")?.unwrap_or(1e4)),
        rope_scaling: linear_scaling(file)?,
        tie_word_embeddings: file.tensor("output.weight").is_none(),
        sub_norm: false,
        bos_token_id: special::token(file, "bos")?,
        eos_token_ids: special::token(file, "eos")?.into_iter().collect(),
        end_token_ids: Vec::new(),
    };
    for id in special::ends(file)? {
        config.add_end(id);
    }
    config.validate().map_err(|e| file.invalid(e))?;
    if let Some(factors) = file.tensor("rope_freqs.weight") {
        let factors = values(file, "rope_freqs.weight", factors)?;
        config.rope_scaling = Some(llama3_scaling(file, &config, &factors)?);
    }
    Ok(config)
}

/// The decimal number that was meant: files hold `1e-5` in single precision.
fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

fn linear_scaling(file: &Gguf) -> Result<Option<RopeScaling>> {
    let factor = match file.text("llama.rope.scaling.type")? {
        // The spelling before scaling types existed.
        None => file.number("llama.rope.scale_linear")?,
        Some("none") => None,
        Some("linear") => Some(file.required("llama.rope.scaling.factor", Gguf::number)?),
        Some(other) => {
            let other = excerpt(other);
            let reason = format!("llama.rope.scaling.type = {other} is not supported; it must be none or linear");
            return Err(file.invalid(reason));
        }
    };
    Ok(factor.filter(|factor| *factor != 1.0).map(|factor| RopeScaling::Linear { factor: shortest(factor) }))
}

/// Converters store Llama 3's scaling as the divisors that follow from it. Its parameters are the same in all published
/// models but `factor`, which is the largest divisor; whether they explain all divisors is checked.
fn llama3_scaling(file: &Gguf, config: &ModelConfig, divisors: &[f32]) -> Result<RopeScaling> {
    let factor = divisors.iter().copied().fold(1.0, f32::max).round().into();
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let plain = rope::inverse_frequencies(&ModelConfig { rope_scaling: None, ..config.clone() });
    let scaled = rope::inverse_frequencies(&ModelConfig { rope_scaling: Some(scaling.clone()), ..config.clone() });
    let explained = divisors.len() == plain.len()
        && plain.iter().zip(&scaled).zip(divisors).all(|((p, s), d)| (p / s / d - 1.0).abs() < 1e-3);
    if explained && config.rope_scaling.is_none() {
        return Ok(scaling);
    }
    Err(file.invalid("rope_freqs.weight is not supported: it is not the scaling of Llama 3.1 to 3.3"))
}

/// The weights of a file, dequantized on demand.
pub(super) struct Weights {
    file: Gguf,
    config: ModelConfig,
    stored_bytes: u64,
}

impl Weights {
    /// Checks that the file holds every weight of `config` in its shape and a format that is read.
    pub(super) fn new(file: Gguf, config: ModelConfig) -> Result<Self> {
        // Before the list of weights is made, which a damaged layer count could make huge.
        let (layers, tensors) = (config.num_hidden_layers, file.tensor_count());
        if layers > tensors {
            return Err(file.invalid(format!("has {tensors} tensors, too few for llama.block_count = {layers}")));
        }
        for layer in 0..layers {
            for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
                let name = format!("blk.{layer}.{part}.bias");
                if file.tensor(&name).is_some() {
                    return Err(file.invalid(format!("tensor {name}: biases are not supported")));
                }
            }
        }
        let mut weights = Weights { file, config, stored_bytes: 0 };
        for spec in weights::specs(&weights.config) {
            let (_, tensor) = weights.find(&spec)?;
            weights.stored_bytes += tensor.bytes.len() as u64;
        }
        Ok(weights)
    }

    fn find(&self, spec: &WeightSpec) -> Result<(String, &TensorInfo)> {
        let name = tensor_name(&spec.name);
        let name = name.ok_or_else(|| self.file.invalid(format!("no tensor is known for {}", spec.name)))?;
        let tensor = self.file.tensor(&name).ok_or_else(|| self.file.invalid(format!("has no tensor {name}")))?;
        if tensor.shape != spec.shape {
            let (found, expected) = (&tensor.shape, &spec.shape);
            return Err(self.file.invalid(format!("tensor {name} has shape {found:?}, expected {expected:?}")));
        }
        format(&self.file, &name, tensor)?;
        Ok((name, tensor))
    }
}

impl WeightSource for Weights {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        let (name, tensor) = self.find(spec)?;
        let values = values(&self.file, &name, tensor)?;
        if let Some(fault) = finite::fault(&spec.shape, &values) {
            return Err(Error::invalid(self.file.path_of(tensor), format!("{} ({name}) {fault}", spec.name)));
        }
        Ok(match in_half_rotation(spec) {
            true => rows_of_half_rotation(&values, spec.shape[1], self.config.head_dim),
            false => values,
        })
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        let (name, tensor) = self.find(spec)?;
        let rows = self.file.rows(tensor).filter(|_| tensor.format_id != BlockFormat::F32.id());
        let Some(rows) = rows else { return self.read(spec).map(StoredWeight::Full) };
        if let Some(fault) = rows.fault() {
            return Err(Error::invalid(self.file.path_of(tensor), format!("{} ({name}) {fault}", spec.name)));
        }
        Ok(StoredWeight::Rows(Arc::new(match in_half_rotation(spec) {
            true => rows.of_half_rotation(self.config.head_dim),
            false => rows,
        })))
    }

    fn quantized(&self) -> bool {
        let quantized = |spec: &WeightSpec| {
            let format = self.find(spec).ok().and_then(|(_, tensor)| BlockFormat::from_id(tensor.format_id));
            format.is_some_and(|format| format.block_len() > 1)
        };
        weights::specs(&self.config).iter().any(quantized)
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    fn release(&self) {
        self.file.release();
    }
}

/// True for the matrices whose rows llama.cpp keeps in the order of its rotary embedding.
fn in_half_rotation(spec: &WeightSpec) -> bool {
    ["self_attn.q_proj.weight", "self_attn.k_proj.weight"].iter().any(|name| spec.name.ends_with(name))
}

fn format(file: &Gguf, name: &str, tensor: &TensorInfo) -> Result<BlockFormat> {
    // Converters write it beside weights of NVFP4 and BitNet.
    let scale = name.strip_suffix(".weight").map(|stem| format!("{stem}.scale"));
    if let Some(scale) = scale.filter(|scale| file.tensor(scale).is_some()) {
        return Err(file.invalid(format!("tensor {name} has a scale of its own, {scale}, which is not supported")));
    }
    BlockFormat::from_id(tensor.format_id).ok_or_else(|| {
        let supported = BlockFormat::ALL.map(BlockFormat::name).join(", ");
        file.invalid(format!(
            "tensor {name} is of ggml type {}; supported are {supported}",
            type_name(tensor.format_id)
        ))
    })
}

/// Name of a type that is not read, for messages.
fn type_name(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return id.to_string(),
    };
    format!("{id} ({name})")
}

fn values(file: &Gguf, name: &str, tensor: &TensorInfo) -> Result<Vec<f32>> {
    Ok(format(file, name, tensor)?.dequantize(file.bytes(tensor)))
}

/// The name that llama.cpp has for a weight.
pub(super) fn tensor_name(name: &str) -> Option<String> {
    match name {
        EMBEDDING => return Some("token_embd.weight".into()),
        FINAL_NORM => return Some("output_norm.weight".into()),
        HEAD => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let part = match part.strip_suffix(".weight")? {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.weight"))
}

/// llama.cpp turns neighbouring rows of a head together (`2i`, `2i + 1`), Hugging Face rows `i` and `i + head_dim / 2`:
/// the inverse of `permute` in `convert_hf_to_gguf.py`.
fn rows_of_half_rotation(values: &[f32], columns: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * columns) {
        for half in 0..2 {
            for pair in head.chunks_exact(2 * columns) {
                out.extend_from_slice(&pair[half * columns..][..columns]);
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
