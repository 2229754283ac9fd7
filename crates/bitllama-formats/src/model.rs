//! A model in full precision, whatever file it comes from.

use std::path::{Path, PathBuf};

use bitllama_core::ModelConfig;
use bitllama_core::weights::WeightSpec;
use tokenizers::Tokenizer;

use crate::companions::{Companions, TokenizerFiles};
use crate::{Error, Result, gguf, hf};

/// Weights that are read on demand, one at a time, so that a file larger than memory can be gone through.
pub trait WeightSource: Send + Sync {
    /// One weight in f32, row-major, of `spec.shape`.
    ///
    /// # Errors
    /// [`Error`] if the file lacks the weight, holds it in another shape, ends before it does, or has a value in it that is
    /// infinite or NaN.
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>>;

    /// Bytes that all weights take in the file.
    fn stored_bytes(&self) -> u64;

    /// Gives back the memory of what has been read so far, in so far as it is the file's; it can be read again.
    fn release(&self);
}

/// A full-precision model: architecture, tokenizer, weights.
pub struct Model {
    /// The folder or file it was read from.
    pub path: PathBuf,
    /// Architecture.
    pub config: ModelConfig,
    /// Tokenizer, no larger than the vocabulary of `config`.
    pub tokenizer: Tokenizer,
    /// Files that belong to the tokenizer.
    pub companions: Companions,
    /// Weights by name.
    pub weights: Box<dyn WeightSource>,
}

impl Model {
    /// The tokenizer with its companions.
    pub fn tokenizer_files(&self) -> TokenizerFiles<'_> {
        TokenizerFiles { tokenizer: &self.tokenizer, companions: Some(&self.companions) }
    }
}

/// Opens a Hugging Face directory or a GGUF file.
///
/// # Errors
/// [`Error`] if nothing is there, or it is neither, or its parts do not fit together.
pub fn open(path: &Path) -> Result<Model> {
    let model = if path.is_dir() {
        hf::open(path)?
    } else if path.is_file() {
        gguf::open(path)?
    } else {
        return Err(Error::invalid(path, "no such model directory or GGUF file"));
    };
    match beyond(&model.tokenizer, model.config.vocab_size) {
        Some(reason) => Err(Error::invalid(path, format!("the tokenizer has {reason}"))),
        None => Ok(model),
    }
}

/// The reason why a tokenizer is too large for a vocabulary, if it is: it has more tokens, or an id beyond the last.
pub fn beyond(tokenizer: &Tokenizer, vocab_size: usize) -> Option<String> {
    let vocabulary = tokenizer.get_vocab(true);
    if vocabulary.len() > vocab_size {
        return Some(format!("{} tokens, but the model's vocab_size is {vocab_size}", vocabulary.len()));
    }
    // Ids may have gaps.
    let (token, id) = vocabulary.into_iter().max_by_key(|(_, id)| *id).filter(|(_, id)| *id as usize >= vocab_size)?;
    let token: String = token.chars().take(60).collect();
    Some(format!("the token {token:?} of id {id}, but the model's vocab_size is {vocab_size}"))
}
