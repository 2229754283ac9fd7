//! One safetensors file, written weight by weight.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use bitllama_core::ModelConfig;
use bitllama_core::names::hf_place;
use bitllama_core::weights::{self, HEAD, Kind, WeightSpec};
use half::{bf16, f16};
use safetensors::tensor::{Dtype as StoredDtype, Metadata, TensorInfo};

use super::Dtype;
use crate::{Error, Result, atomic, finite};

/// Writes all weights of `config`. The header follows from the config alone, so each weight goes to its place as it comes.
pub(super) fn weights(
    path: &Path,
    config: &ModelConfig,
    weights: impl IntoIterator<Item = (WeightSpec, Vec<f32>)>,
    dtype: Dtype,
) -> Result<()> {
    let invalid = |reason: String| Error::invalid(path, reason);
    let offset = config.arch.family.family().norm_offset;
    let mut missing = HashMap::new();
    let mut tensors = Vec::new();
    // Where the tensors begin that have been listed: some hold several weights.
    let mut starts = HashMap::new();
    let mut end = 0;
    for spec in weights::specs(config) {
        let place = hf_place(config, &spec);
        let start = *starts.entry(place.tensor.clone()).or_insert_with(|| {
            let start = end;
            end += place.shape.iter().product::<usize>() * dtype.size();
            let name = if place.tensor == HEAD { HEAD.into() } else { format!("model.{}", place.tensor) };
            let info = TensorInfo { dtype: stored(dtype), shape: place.shape.clone(), data_offsets: (start, end) };
            tensors.push((name, info));
            start
        });
        missing.insert(spec.name, (spec.shape, start + place.offset() * dtype.size()));
    }
    // `transformers` refuses a file that does not say for which framework it was written.
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header = Metadata::new(Some(about), tensors).map_err(|e| invalid(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| invalid(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let data = 8 + header.len();

    atomic::write_file(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
        file.write_all(&header).map_err(Error::io(path))?;
        let mut position = data;
        for (spec, mut values) in weights {
            let name = &spec.name;
            let place = missing.remove(name).filter(|(shape, _)| *shape == spec.shape);
            let (shape, start) = place.ok_or_else(|| {
                invalid(format!("weight {name} of shape {:?} comes twice or is none of the config's", spec.shape))
            })?;
            if values.len() != spec.len() {
                return Err(invalid(format!("weight {name} has {} values, expected {shape:?}", values.len())));
            }
            if position != data + start {
                file.seek(SeekFrom::Start((data + start) as u64)).map_err(Error::io(path))?;
            }
            if let Some(fault) = finite::fault(&spec.shape, &values) {
                return Err(invalid(format!("weight {name} {fault}")));
            }
            if spec.kind == Kind::Norm && offset != 0.0 {
                values.iter_mut().for_each(|value| *value -= offset);
            }
            let bytes = encode(&values, dtype);
            let bytes = bytes
                .ok_or_else(|| invalid(format!("weight {name} has a value too large for {}", dtype.torch_name())))?;
            file.write_all(&bytes).map_err(Error::io(path))?;
            position = data + start + bytes.len();
        }
        match missing.keys().min() {
            Some(name) => Err(invalid(format!("weight {name} was not given"))),
            None => Ok(()),
        }
    })
}

/// A type as safetensors names it.
pub(super) fn stored(dtype: Dtype) -> StoredDtype {
    match dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::Bf16 => StoredDtype::BF16,
    }
}

/// Little-endian bytes; none if a value would become infinite.
pub(super) fn encode(values: &[f32], dtype: Dtype) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    for value in values {
        match dtype {
            Dtype::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
            Dtype::F16 => {
                let stored = f16::from_f32(*value);
                stored.is_finite().then(|| bytes.extend_from_slice(&stored.to_le_bytes()))?;
            }
            Dtype::Bf16 => {
                let stored = bf16::from_f32(*value);
                stored.is_finite().then(|| bytes.extend_from_slice(&stored.to_le_bytes()))?;
            }
        }
    }
    Some(bytes)
}
