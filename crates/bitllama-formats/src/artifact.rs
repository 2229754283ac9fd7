//! The exported model: `weights.npz`, `manifest.json` and tokenizer files in one folder.

use std::path::{Path, PathBuf};

use bitllama_core::size::StoredSize;
use bitllama_core::weights::WeightSpec;
use bitllama_core::{ModelConfig, PackedMatrix};
use tokenizers::Tokenizer;

use crate::Result;

/// One weight as an artifact holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredWeight {
    /// Low-bit codes with their scales.
    Packed(PackedMatrix),
    /// f32, row-major.
    Full(Vec<f32>),
}

/// Which keys `weights.npz` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Every matrix truly packed.
    #[default]
    Packed,
    /// The keys and loose files of the older tools (format version 2).
    V2,
}

/// An artifact opened for reading.
pub struct Artifact {
    /// Its folder.
    pub path: PathBuf,
    /// Architecture.
    pub config: ModelConfig,
    /// Tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// `manifest.json` as it stands.
    pub manifest: serde_json::Value,
}

impl Artifact {
    /// Opens an artifact of either layout.
    pub fn open(_path: &Path) -> Result<Self> {
        todo!()
    }

    /// One weight; packed bytes stay in the memory map.
    pub fn weight(&self, _spec: &WeightSpec) -> Result<StoredWeight> {
        todo!()
    }

    /// Parameters and bytes, everything counted.
    pub fn size(&self) -> StoredSize {
        todo!()
    }
}

/// Writes an artifact folder, whole or not at all. `weights` yields every weight of `config`, in any order;
/// `provenance` goes into the manifest under `provenance`.
pub fn write(
    _folder: &Path,
    _config: &ModelConfig,
    _weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    _tokenizer: &Tokenizer,
    _layout: Layout,
    _provenance: serde_json::Value,
) -> Result<()> {
    todo!()
}
