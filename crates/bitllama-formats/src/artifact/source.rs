//! An artifact as a source of weights: for whoever learns from a student, or starts from one.

use std::path::Path;

use bitllama_core::weights::WeightSpec;

use super::{Artifact, StoredWeight, TOKENIZER_FILE};
use crate::model::Role;
use crate::{Error, Model, Result, WeightSource, finite};

/// Opens an artifact as a [`Model`], whose weights are the numbers that its codes and scales stand for.
///
/// # Errors
/// Those of [`Artifact::open`], and [`Error::Invalid`] for one without a tokenizer.
pub fn open_model(path: &Path) -> Result<Model> {
    let mut artifact = Artifact::open(path)?;
    artifact.tell_notes();
    let tokenizer = artifact.tokenizer.take();
    let tokenizer = tokenizer.ok_or_else(|| Error::invalid(path, format!("the artifact has no {TOKENIZER_FILE}")))?;
    Ok(Model {
        path: path.to_path_buf(),
        config: artifact.config.clone(),
        tokenizer,
        companions: artifact.companions.clone(),
        activations: artifact.activations.clone(),
        role: Role::Student,
        weights: Box::new(artifact),
    })
}

impl WeightSource for Artifact {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        let values = match self.weight(spec)? {
            StoredWeight::Packed(packed) => packed.dequantize().data,
            StoredWeight::Full(values) => return Ok(values),
            StoredWeight::Rows(rows) => rows.to_f32(),
        };
        // A scale may be finite, and a code times it not.
        match finite::fault(&spec.shape, &values) {
            Some(fault) => Err(Error::invalid(&self.path, format!("{} {fault}", spec.name))),
            None => Ok(values),
        }
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        self.weight(spec)
    }

    fn stored_bytes(&self) -> u64 {
        self.size().bytes as u64
    }

    fn release(&self) {}
}
