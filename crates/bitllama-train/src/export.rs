//! A model to files: an artifact, with every weight of the bit plan rounded by its scales and packed and the rest as it is, or a
//! Hugging Face directory.

use std::path::Path;

use anyhow::Result;
use bitllama_core::weights::specs;
use bitllama_formats::artifact::{self, Layout};
use bitllama_formats::output::Kind;
use bitllama_formats::{Error, StoredWeight, TokenizerFiles, atomic, hf};
use bitllama_nn::Llama;
use bitllama_nn::activations::plan_of;
use bitllama_nn::weights::Weights;

use crate::models::ResolvedPlan;

/// Writes `llama` into the folder `path`, whole or not at all.
///
/// # Errors
/// A weight that is not finite; a folder that cannot be written.
pub fn export(
    path: &Path,
    llama: &Llama,
    plan: &ResolvedPlan,
    tokenizer: TokenizerFiles,
    layout: Layout,
    provenance: serde_json::Value,
) -> Result<()> {
    let stored = Weights::of(llama);
    let weights = plan.iter().map(|(spec, _)| {
        let packed = stored.pack(spec).map_err(|e| Error::invalid(path, format!("{}: {e}", spec.name)))?;
        Ok((spec.clone(), packed.map_or_else(|| StoredWeight::Full(stored.read(spec)), StoredWeight::Packed)))
    });
    let activations = plan_of(llama);
    Ok(artifact::write_trained(path, &llama.config, weights, &activations, tokenizer, layout, provenance)?)
}

/// Writes the stored weights of `llama` as a Hugging Face directory, whole or not at all.
///
/// # Errors
/// A folder that cannot be written, or holds other things; a weight that `dtype` cannot hold.
pub fn save_hf(path: &Path, llama: &Llama, tokenizer: TokenizerFiles, dtype: hf::Dtype) -> Result<()> {
    Ok(atomic::write_folder(path, Kind::Model, |folder| write_hf_into(folder, llama, tokenizer, dtype))?)
}

/// As [`save_hf`], into a folder that exists.
///
/// # Errors
/// As [`save_hf`].
pub fn write_hf_into(
    folder: &Path,
    llama: &Llama,
    tokenizer: TokenizerFiles,
    dtype: hf::Dtype,
) -> std::result::Result<(), Error> {
    let stored = Weights::of(llama);
    let weights = specs(&llama.config).into_iter().map(|spec| {
        let values = stored.read(&spec);
        (spec, values)
    });
    hf::write_into(folder, &llama.config, weights, tokenizer, dtype)
}
