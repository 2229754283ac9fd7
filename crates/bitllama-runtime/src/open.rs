//! Whatever can be run, opened by its path.

use std::path::Path;

use bitllama_core::weights::WeightSpec;
use bitllama_core::{PackedMatrix, Quantizer, Scheme};
use bitllama_formats::{Artifact, StoredWeight, model};
use tokenizers::Tokenizer;

use crate::model::Decoder;
use crate::{Error, Result};

/// Opens an artifact, or a Hugging Face directory or GGUF file in f32, with its tokenizer. A directory with a
/// `manifest.json` is an artifact; one with a `config.json` only is not.
///
/// # Errors
/// [`Error::Format`] if nothing is there, or it cannot be read, or an artifact has no tokenizer.
pub fn open(path: &Path) -> Result<(Decoder, Tokenizer)> {
    let is_artifact = path.join("manifest.json").is_file();
    if path.is_dir() && !is_artifact && !path.join("config.json").is_file() {
        let reason = "neither an artifact (no manifest.json) nor a Hugging Face directory (no config.json)";
        return Err(Error::Format(bitllama_formats::Error::invalid(path, reason)));
    }
    if !is_artifact {
        let model = model::open(path)?;
        return Ok((Decoder::from_model(&model)?, model.tokenizer));
    }
    let mut artifact = Artifact::open(path)?;
    let Some(tokenizer) = artifact.tokenizer.take() else {
        return Err(Error::Format(bitllama_formats::Error::invalid(path, "the artifact has no tokenizer.json")));
    };
    Ok((Decoder::from_artifact(&artifact)?, tokenizer))
}

/// Opens a Hugging Face directory or GGUF file, and rounds each weight to the scheme that `scheme` names for it, to
/// nearest by the plainest [`Quantizer`] of the scheme that fits its shape; `None` leaves it in f32.
///
/// # Errors
/// [`Error::Format`] if nothing is there, it cannot be read, or it is an artifact, which has its schemes already.
pub fn open_quantized(path: &Path, scheme: impl Fn(&WeightSpec) -> Option<Scheme>) -> Result<(Decoder, Tokenizer)> {
    if path.join("manifest.json").is_file() {
        let reason = "an artifact has its schemes already; only full-precision models can be quantized";
        return Err(Error::Format(bitllama_formats::Error::invalid(path, reason)));
    }
    let model = model::open(path)?;
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
    Ok((decoder, model.tokenizer))
}
