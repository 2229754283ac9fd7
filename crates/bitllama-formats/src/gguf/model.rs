//! Weights of a GGUF under Hugging Face's names and in its row order.

use std::collections::HashSet;
use std::sync::Arc;

use bitllama_core::names::{Place, gguf_place};
use bitllama_core::weights::{self, WeightSpec};
use bitllama_core::{ModelConfig, PackedMatrix, excerpt};

use super::{BlockFormat, Gguf, TensorInfo, TensorType, i2_s};
use crate::stored::place_in_rotation;
use crate::{Error, Result, StoredWeight, WeightSource, finite};

/// Tensors that hold no weights: divisors of rotary frequencies, which the config holds.
const NO_WEIGHTS: [&str; 3] = [ROPE_FREQS, ROPE_SHORT, ROPE_LONG];
/// Divisors of rotary frequencies.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// LongRoPE's divisors for short sequences.
pub(super) const ROPE_SHORT: &str = "rope_factors_short.weight";
/// LongRoPE's divisors for long sequences.
pub(super) const ROPE_LONG: &str = "rope_factors_long.weight";

/// The weights of a file, dequantized on demand.
pub(super) struct Weights {
    file: Gguf,
    config: ModelConfig,
    /// Whether rows of `q_proj` and `k_proj` that are rotated together lie side by side.
    paired_rows: bool,
    stored_bytes: u64,
}

impl Weights {
    /// Checks that the file holds every weight of `config` in its shape and a format that is read, and no weight beside them.
    pub(super) fn new(file: Gguf, config: ModelConfig, paired_rows: bool) -> Result<Self> {
        // Before the list of weights is made, which a damaged layer count could make huge.
        let (layers, tensors) = (config.num_hidden_layers, file.tensor_count());
        if layers > tensors {
            let architecture = excerpt(file.text("general.architecture")?.unwrap_or_default());
            let reason = format!("has {tensors} tensors, too few for {architecture}.block_count = {layers}");
            return Err(file.invalid(reason));
        }
        let mut weights = Weights { file, config, paired_rows, stored_bytes: 0 };
        let mut known = HashSet::from(NO_WEIGHTS.map(str::to_string));
        for spec in weights::specs(&weights.config) {
            let (place, tensor) = weights.find(&spec)?;
            weights.stored_bytes += (tensor.bytes.len() / place.shape[0] * spec.shape[0]) as u64;
            known.insert(place.tensor);
        }
        match weights.file.tensor_names().filter(|name| !known.contains(*name)).min() {
            Some(name) => {
                let family = weights.config.arch.family;
                let reason =
                    format!("tensor {} is none of a {family} model's, and changes what it computes", excerpt(name));
                Err(weights.file.invalid(reason))
            }
            None => Ok(weights),
        }
    }

    /// Whether a weight's rows stand in the order of llama.cpp's rotary embedding: those of queries and keys, and their biases.
    fn in_half_rotation(&self, spec: &WeightSpec) -> bool {
        self.paired_rows && ["self_attn.q_proj.", "self_attn.k_proj."].iter().any(|part| spec.name.contains(part))
    }

    /// The tensor that holds a weight, maybe among others.
    fn find(&self, spec: &WeightSpec) -> Result<(Place, &TensorInfo)> {
        let place = gguf_place(&self.config, spec);
        let place = place.ok_or_else(|| self.file.invalid(format!("no tensor is known for {}", spec.name)))?;
        let name = &place.tensor;
        let tensor = self.file.tensor(name).ok_or_else(|| self.file.invalid(format!("has no tensor {name}")))?;
        if tensor.shape != place.shape {
            let (found, expected) = (&tensor.shape, &place.shape);
            return Err(self.file.invalid(format!("tensor {name} has shape {found:?}, expected {expected:?}")));
        }
        kind(&self.file, name, tensor)?;
        Ok((place, tensor))
    }

    /// The weight of a tensor of [`TensorType::I2S`].
    fn ternary(&self, spec: &WeightSpec, place: &Place, tensor: &TensorInfo) -> Result<PackedMatrix> {
        let (name, &[rows, columns]) = (&place.tensor, &spec.shape[..]) else {
            return Err(self.file.invalid(format!("tensor {} is of I2_S, which is for matrices", place.tensor)));
        };
        let head_dim = self.in_half_rotation(spec).then_some(self.config.head_dim);
        let rows = (0..rows).map(|row| place.first_row + place_in_rotation(row, head_dim));
        let unpacked = i2_s::unpack(self.file.bytes(tensor), columns, rows);
        unpacked.map_err(|e| Error::invalid(self.file.path_of(tensor), format!("{} ({name}): {e}", spec.name)))
    }
}

impl WeightSource for Weights {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        let (place, tensor) = self.find(spec)?;
        let name = &place.tensor;
        let TensorType::Blocks(format) = kind(&self.file, name, tensor)? else {
            return Ok(self.ternary(spec, &place, tensor)?.dequantize().data);
        };
        let rows = self.file.bytes(tensor);
        // A row is whole blocks, so that bytes of rows are rows of bytes.
        let row = rows.len() / place.shape[0];
        let rows = &rows[place.first_row * row..][..spec.shape[0] * row];
        let values = format.dequantize(rows);
        if let Some(fault) = finite::fault(&spec.shape, &values) {
            return Err(Error::invalid(self.file.path_of(tensor), format!("{} ({name}) {fault}", spec.name)));
        }
        Ok(match self.in_half_rotation(spec) {
            true => rows_of_half_rotation(&values, spec.len() / spec.shape[0], self.config.head_dim),
            false => values,
        })
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        let (place, tensor) = self.find(spec)?;
        if tensor.format_id == TensorType::I2S.id() {
            return self.ternary(spec, &place, tensor).map(StoredWeight::Packed);
        }
        let rows = self.file.rows(tensor, place.first_row, &spec.shape);
        let rows = rows.filter(|_| tensor.format_id != BlockFormat::F32.id());
        let Some(rows) = rows else { return self.read(spec).map(StoredWeight::Full) };
        if let Some(fault) = rows.fault() {
            let name = place.tensor;
            return Err(Error::invalid(self.file.path_of(tensor), format!("{} ({name}) {fault}", spec.name)));
        }
        Ok(StoredWeight::Rows(Arc::new(match self.in_half_rotation(spec) {
            true => rows.of_half_rotation(self.config.head_dim),
            false => rows,
        })))
    }

    fn quantized(&self) -> bool {
        let quantized = |spec: &WeightSpec| {
            let kind = self.find(spec).ok().and_then(|(_, tensor)| TensorType::from_id(tensor.format_id));
            kind.is_some_and(|kind| kind.block_len() > 1)
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

fn kind(file: &Gguf, name: &str, tensor: &TensorInfo) -> Result<TensorType> {
    // Converters write it beside weights of NVFP4 and BitNet.
    let scale = name.strip_suffix(".weight").map(|stem| format!("{stem}.scale"));
    if let Some(scale) = scale.filter(|scale| file.tensor(scale).is_some()) {
        return Err(file.invalid(format!("tensor {name} has a scale of its own, {scale}, which is not supported")));
    }
    TensorType::from_id(tensor.format_id).ok_or_else(|| {
        let supported = TensorType::all().map(TensorType::name).collect::<Vec<_>>().join(", ");
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
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return id.to_string(),
    };
    format!("{id} ({name})")
}

pub(super) fn values(file: &Gguf, name: &str, tensor: &TensorInfo) -> Result<Vec<f32>> {
    match kind(file, name, tensor)? {
        TensorType::Blocks(format) => Ok(format.dequantize(file.bytes(tensor))),
        TensorType::I2S => Err(file.invalid(format!("tensor {name} is of I2_S, which is for matrices"))),
    }
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
