//! Whatever can be run, opened by its path.

use std::path::Path;

use bitllama_core::weights::WeightSpec;
use bitllama_core::{PackedMatrix, Quantizer, Scheme};
use bitllama_formats::artifact::MANIFEST_FILE;
use bitllama_formats::hf::CONFIG;
use bitllama_formats::{Artifact, Companions, Model, StoredWeight, checkpoint, model};
use tokenizers::Tokenizer;

use crate::model::Decoder;
use crate::{Error, Result};

/// A model that runs, and what belongs to its texts.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Files beside the tokenizer, a chat template among them where the model has one.
    pub companions: Companions,
}

/// Opens an artifact, a checkpoint, which is the student that its bit plan makes of its weights, a Hugging Face directory or
/// GGUF file in f32, or the folder of a run, which is its best student; with its tokenizer. A directory with a
/// `manifest.json` is an artifact; one with a `config.json` only is not.
///
/// # Errors
/// [`Error::Format`] if nothing is there, or it cannot be read, or an artifact has no tokenizer.
pub fn open(path: &Path) -> Result<Opened> {
    let path = &checkpoint::student_of(path)?;
    let is_artifact = path.join(MANIFEST_FILE).is_file();
    if path.is_dir() && !is_artifact && !path.join(CONFIG).is_file() {
        let reason =
            "neither an artifact (no manifest.json) nor a Hugging Face directory (no config.json) nor a run's folder";
        return Err(invalid(path, reason));
    }
    if !is_artifact {
        return of_model(model::open(path)?);
    }
    let mut artifact = Artifact::open(path)?;
    let tokenizer = artifact.tokenizer.take();
    let tokenizer = tokenizer.ok_or_else(|| invalid(path, "the artifact has no tokenizer.json"))?;
    let decoder = Decoder::from_artifact(&artifact)?;
    Ok(Opened { decoder, tokenizer, companions: artifact.companions })
}

/// Opens the latent weights of a checkpoint, or of the best one of a run, in f32: what training moves, before any rounding.
///
/// # Errors
/// [`Error::Format`] if it is no checkpoint, or cannot be read.
pub fn open_latent(path: &Path) -> Result<Opened> {
    of_model(model::open_latent(path)?)
}

fn of_model(model: Model) -> Result<Opened> {
    let decoder = Decoder::from_model(&model)?;
    Ok(Opened { decoder, tokenizer: model.tokenizer, companions: model.companions })
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::Format(bitllama_formats::Error::invalid(path, reason))
}

/// Opens what [`open`] opens, or the `latent` weights of a checkpoint, and rounds each weight to the scheme that `scheme` names
/// for it, to nearest by the plainest [`Quantizer`] of the scheme that fits its shape; `None` leaves it in f32.
///
/// # Errors
/// [`Error::Format`] if nothing is there, it cannot be read, or it is an artifact, which has its schemes already.
pub fn open_quantized(path: &Path, latent: bool, scheme: impl Fn(&WeightSpec) -> Option<Scheme>) -> Result<Opened> {
    let path = &checkpoint::student_of(path)?;
    if path.join(MANIFEST_FILE).is_file() {
        return Err(invalid(path, "an artifact has its schemes already; only full-precision models can be quantized"));
    }
    let model = if latent { model::open_latent(path)? } else { model::open(path)? };
    let decoder = Decoder::new(model.config.clone(), |spec| {
        let data = model.weights.read(spec)?;
        Ok(match (scheme(spec), &spec.shape[..]) {
            (Some(scheme), &[rows, columns]) => StoredWeight::Packed(PackedMatrix::quantize(
                &Quantizer::from(scheme).fitting([rows, columns]),
                [rows, columns],
                data,
            )?),
            _ => StoredWeight::Full(data),
        })
    })?;
    Ok(Opened { decoder, tokenizer: model.tokenizer, companions: model.companions })
}
