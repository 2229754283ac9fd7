//! The exported model: `weights.npz`, `manifest.json`, `tokenizer.json` and its companions in one folder.
//!
//! The format is a superset of "manifest v2", which earlier tools for these models read and write. [`Layout::Packed`]
//! adds keys for packed codes, laid out as kernels read them ([`bitllama_core::panel`]); [`Layout::V2`] writes what
//! those tools know and nothing that they would trip over. [`Artifact::open`] reads both, and what those tools wrote
//! themselves.
//!
//! | file | subject |
//! |---|---|
//! | `forms.rs` | the NPZ keys of each scheme in each layout |
//! | `manifest.rs` | `manifest.json`, written |
//! | `config.rs` | the architecture, read back out of a manifest of any age |
//! | `write.rs` | a folder written whole or not at all |
//! | `read.rs` | a folder opened, every weight checked against the architecture |
//! | `scales.rs` | scales and zero points of a weight, read in whatever form |
//! | `source.rs` | an artifact as the source of a model's weights |
//! | `files.rs` | the arrays of an artifact: NPZ members and loose files |
//! | `dequantize.rs` | low-bit weights of a manifest without regard to an architecture |
//! | `codes.rs` | codes of the older tools, to panels and back; what can be wrong inside panels |

mod codes;
mod config;
mod dequantize;
mod files;
mod forms;
mod manifest;
mod read;
mod scales;
mod source;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use bitllama_core::size::StoredSize;
use bitllama_core::{ActivationPlan, ModelConfig, PackedMatrix, ScaleFormat, Scheme, StoredRows};
use tokenizers::Tokenizer;

use crate::npz::Npz;
use crate::{Companions, Result};

pub use config::{has_weight, read_config};
pub use dequantize::LowBit;
pub use source::open_model;
pub use write::{write, write_trained, write_with};

/// The NPZ of an artifact.
pub const WEIGHTS_FILE: &str = "weights.npz";
/// The description of an artifact, for people and programs.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The tokenizer of an artifact, as the `tokenizers` library writes it.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// One weight as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredWeight {
    /// Low-bit codes with their scales.
    Packed(PackedMatrix),
    /// f32, row-major.
    Full(Vec<f32>),
    /// 16 bits or blocks of ggml, made f32 when they are read. Artifacts have blocks only.
    Rows(Arc<dyn StoredRows>),
}

impl StoredWeight {
    /// The numbers in f32, row-major.
    pub fn into_values(self) -> Vec<f32> {
        match self {
            Self::Packed(matrix) => matrix.dequantize().data,
            Self::Full(values) => values,
            Self::Rows(rows) => rows.to_f32(),
        }
    }
}

/// Which keys `weights.npz` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Every matrix packed, in the panels that a memory map hands to the kernels as they stand.
    #[default]
    Packed,
    /// The keys and loose files of the older tools (format version 2).
    V2,
}

/// The description of one weight in an artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightInfo {
    /// Name, such as `layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `[out_features, in_features]`, or `[hidden_size]` for a norm.
    pub shape: Vec<usize>,
    /// Number format; `None` is f32, or a type of ggml.
    pub scheme: Option<Scheme>,
    /// Type of a matrix in blocks of ggml, by ggml's name.
    pub ggml_type: Option<&'static str>,
    /// Columns that share a scale; `None` is one scale a row.
    pub group_size: Option<usize>,
    /// How scales are stored, where there are any.
    pub scales: Option<ScaleFormat>,
    /// Bytes of packed codes, scales and zero points, or of the f32 values: what the weight takes once loaded. In
    /// files of [`Layout::V2`] a code takes a byte of its own.
    pub bytes: usize,
}

impl WeightInfo {
    /// A weight in full precision, of no bytes yet.
    fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec(), scheme: None, ggml_type: None, group_size: None, scales: None, bytes: 0 }
    }
}

/// An artifact opened for reading.
pub struct Artifact {
    /// Its folder.
    pub path: PathBuf,
    /// Architecture.
    pub config: ModelConfig,
    /// How the student read activations in training, and the runtime should.
    pub activations: ActivationPlan,
    /// Tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Files that belong to the tokenizer.
    pub companions: Companions,
    /// `manifest.json` as it stands; null for a lone NPZ file.
    pub manifest: serde_json::Value,
    /// What had to be assumed because the tool that wrote the artifact left it out, one line each.
    pub notes: Vec<String>,
    weights: Vec<read::Located>,
    files: files::Files,
}

impl Artifact {
    /// All weights, in the order of computation.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = &WeightInfo> {
        self.weights.iter().map(|weight| &weight.info)
    }

    /// Parameters and bytes once loaded, everything counted; a tied head counts once.
    pub fn size(&self) -> StoredSize {
        StoredSize {
            parameters: self.weights().map(|weight| weight.shape.iter().product::<usize>()).sum(),
            bytes: self.weights().map(|weight| weight.bytes).sum(),
        }
    }

    /// Tells the user its notes ([`notes`](crate::notes)), as is due whenever an artifact is computed with.
    pub fn tell_notes(&self) {
        self.notes.iter().for_each(|note| crate::notes::tell(&self.path, note));
    }

    /// Reads everything: holds every array of the NPZ against its checksum, and looks into the packed codes for fields
    /// that mean nothing and for rows or columns beyond a shape that are not zero. [`Artifact::weight`] does neither.
    ///
    /// # Errors
    /// [`Error`](crate::Error) with the first array that is damaged.
    pub fn verify(&self) -> Result<()> {
        self.files.npz.as_ref().map_or(Ok(()), Npz::verify)?;
        self.weights.iter().try_for_each(|weight| self.files.verify(weight))
    }
}
