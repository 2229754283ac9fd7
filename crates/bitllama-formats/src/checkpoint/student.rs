//! The student that a checkpoint stands for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bitllama_core::rounding::StoredScales;
use bitllama_core::size::StoredSize;
use bitllama_core::weights::WeightSpec;
use bitllama_core::{Quantizer, RoundedMatrix};

use super::{CheckpointState, STATE, plan, read_scales};
use crate::model::Role;
use crate::{Error, Model, Result, StoredWeight, WeightSource};

/// The student of a checkpoint in `folder`, whose latent weights are those of `latent`.
///
/// # Errors
/// [`Error`] if its plan does not fit the model, or trained scales are missing or damaged.
pub(crate) fn student(latent: Model, folder: &Path, state: &CheckpointState) -> Result<Model> {
    let plan = plan(folder, state, &latent.config)?;
    let activations = state.activations.plan_for(&plan).map_err(|e| Error::invalid(folder.join(STATE), e))?;
    let weights = Rounded {
        path: folder.to_path_buf(),
        scales: read_scales(folder, &plan)?,
        stored_bytes: StoredSize::of(&plan).bytes as u64,
        quantizers: plan.into_iter().filter_map(|(spec, quantizer)| Some((spec.name, quantizer?))).collect(),
        latent: latent.weights,
    };
    let role = if weights.quantizers.is_empty() { Role::Whole } else { Role::Student };
    Ok(Model { weights: Box::new(weights), activations, role, ..latent })
}

/// Latent weights, rounded when they are read, by the functions and scales of fake quantization.
struct Rounded {
    path: PathBuf,
    latent: Box<dyn WeightSource>,
    /// Quantizers by the names of weights; other weights are in full precision.
    quantizers: HashMap<String, Quantizer>,
    scales: StoredScales,
    stored_bytes: u64,
}

impl WeightSource for Rounded {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        self.stored(spec).map(StoredWeight::into_values)
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        let data = self.latent.read(spec)?;
        let (Some(quantizer), &[rows, columns]) = (self.quantizers.get(&spec.name), &spec.shape[..]) else {
            return Ok(StoredWeight::Full(data));
        };
        let trained = self.scales.get(&spec.name).cloned();
        let rounded = RoundedMatrix::quantize(quantizer, [rows, columns], data, trained);
        rounded
            .map(StoredWeight::from)
            .map_err(|e| Error::invalid(&self.path, format!("the latent weights {}: {e}", spec.name)))
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    fn release(&self) {
        self.latent.release();
    }
}
