//! A trained student to an artifact: every weight of the bit plan rounded and packed, the rest as it is.

use std::path::Path;

use anyhow::Result;
use bitllama_formats::artifact::{self, Layout};
use bitllama_formats::{Error, StoredWeight};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use tokenizers::Tokenizer;

use crate::models::ResolvedPlan;

/// Writes `llama` into the folder `path`, whole or not at all.
///
/// # Errors
/// A weight that is not finite; a folder that cannot be written.
pub fn export(
    path: &Path,
    llama: &Llama,
    plan: &ResolvedPlan,
    tokenizer: &Tokenizer,
    layout: Layout,
    provenance: serde_json::Value,
) -> Result<()> {
    let stored = Weights::of(llama);
    let weights = plan.iter().map(|(spec, scheme)| {
        let weight = match scheme {
            Some(scheme) => StoredWeight::Packed(
                stored.pack(spec, *scheme).map_err(|e| Error::invalid(path, format!("{}: {e}", spec.name)))?,
            ),
            None => StoredWeight::Full(stored.read(spec)),
        };
        Ok((spec.clone(), weight))
    });
    Ok(artifact::write(path, &llama.config, weights, tokenizer, layout, provenance)?)
}
