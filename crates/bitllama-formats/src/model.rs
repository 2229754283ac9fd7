//! A model, whatever file it comes from.

use std::path::{Path, PathBuf};

use bitllama_core::weights::WeightSpec;
use bitllama_core::{ActivationPlan, ModelConfig};
use tokenizers::Tokenizer;

use crate::artifact::MANIFEST_FILE;
use crate::checkpoint::{self, CheckpointState, STATE};
use crate::companions::{Companions, TokenizerFiles};
use crate::{Error, Result, StoredWeight, artifact, checksums, gguf, hf};

/// Weights that are read on demand, one at a time, so that a file larger than memory can be gone through.
pub trait WeightSource: Send + Sync {
    /// One weight in f32, row-major, of `spec.shape`.
    ///
    /// # Errors
    /// [`Error`] if the file lacks the weight, holds it in another shape, ends before it does, or has a value in it that is
    /// infinite or NaN.
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>>;

    /// One weight as it is stored: packed where it is a student's, and a matrix of 16 bits or of blocks left in its file. Its
    /// numbers are those of [`WeightSource::read`].
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        self.read(spec).map(StoredWeight::Full)
    }

    /// True for a file whose matrices were quantized, to blocks with scales, and are no student of ours.
    fn quantized(&self) -> bool {
        false
    }

    /// Bytes that all weights take as they are stored; of a checkpoint's student, those that it takes packed.
    fn stored_bytes(&self) -> u64;

    /// Gives back the memory of what has been read so far, in so far as it is the file's; it can be read again.
    fn release(&self);
}

/// The kind of weights that a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Those that were trained or published.
    Whole,
    /// Those of a student, of a checkpoint or an artifact, rounded.
    Student,
    /// The latent ones of a checkpoint, which its student rounds.
    Latent,
}

/// A model: architecture, tokenizer, weights.
pub struct Model {
    /// The folder or file it was read from; of a run, that of its best student.
    pub path: PathBuf,
    /// Architecture.
    pub config: ModelConfig,
    /// Tokenizer, no larger than the vocabulary of `config`.
    pub tokenizer: Tokenizer,
    /// Files that belong to the tokenizer.
    pub companions: Companions,
    /// Rounding of activations that a student was trained with; other models round nothing.
    pub activations: ActivationPlan,
    /// The kind of the weights.
    pub role: Role,
    /// Weights by name.
    pub weights: Box<dyn WeightSource>,
}

impl Model {
    /// The tokenizer with its companions.
    pub fn tokenizer_files(&self) -> TokenizerFiles<'_> {
        TokenizerFiles { tokenizer: &self.tokenizer, companions: Some(&self.companions) }
    }

    /// A model in full precision.
    pub(crate) fn plain(
        path: &Path,
        config: ModelConfig,
        tokenizer: Tokenizer,
        companions: Companions,
        weights: impl WeightSource + 'static,
    ) -> Self {
        let (path, activations) = (path.to_path_buf(), ActivationPlan::default());
        Self { path, config, tokenizer, companions, activations, role: Role::Whole, weights: Box::new(weights) }
    }
}

/// Opens a Hugging Face directory, a GGUF file, a checkpoint, an artifact, or the folder of a run, which is its best student
/// ([`checkpoint::student_of`]). A checkpoint's weights are those of its student: rounded as its bit plan says.
///
/// # Errors
/// [`Error`] if nothing is there, or it is none of these, or its parts do not fit together.
pub fn open(path: &Path) -> Result<Model> {
    let path = &checkpoint::student_of(path)?;
    if path.join(MANIFEST_FILE).is_file() && !path.join(hf::CONFIG).is_file() {
        return artifact::open_model(path);
    }
    match CheckpointState::read(path)? {
        Some(state) => checkpoint::student(open_checkpoint(path)?, path, &state),
        None => open_files(path),
    }
}

/// Opens the latent weights of a checkpoint, or of the best one of a run: what training moves, before any rounding.
///
/// # Errors
/// As [`open`]; [`Error::Invalid`] for what is no checkpoint.
pub fn open_latent(path: &Path) -> Result<Model> {
    let path = &checkpoint::student_of(path)?;
    if CheckpointState::read(path)?.is_none() {
        let reason = format!("not a checkpoint (no {STATE}), so that it has no latent weights");
        return Err(Error::invalid(path, reason));
    }
    Ok(Model { role: Role::Latent, ..open_checkpoint(path)? })
}

/// The files of a checkpoint, held against their checksums; the moments of optimizers, which no model has, are left out.
fn open_checkpoint(folder: &Path) -> Result<Model> {
    checksums::verify_those(folder, |name| !name.ends_with(".bpk"))?;
    open_files(folder)
}

/// A Hugging Face directory or a GGUF file, with its weights as they stand there.
fn open_files(path: &Path) -> Result<Model> {
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
