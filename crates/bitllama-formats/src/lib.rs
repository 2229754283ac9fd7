//! Model files in and out. No Burn, and no arithmetic beyond dequantizing a block.
//!
//! | module | subject |
//! |---|---|
//! | [`model`] | opens a Hugging Face directory or a GGUF file as one [`Model`] |
//! | [`hf`] | Hugging Face directories: `config.json`, safetensors (sharded or not), `tokenizer.json` |
//! | [`gguf`] | GGUF: metadata, block formats, tokenizer |
//! | [`hub`] | models by hub id (feature `hub`) |
//! | [`npz`] | NumPy archives: stored, aligned, memory-mapped |
//! | [`artifact`] | the exported model: `weights.npz`, `manifest.json`, tokenizer |
//! | [`scales`] | trained scales beside a checkpoint |
//! | [`vectors`] | vectors of f32 by name |
//! | [`json`] | small JSON files |
//! | [`version`] | versions of JSON files |
//! | [`atomic`] | files and folders that exist whole or not at all |
//!
//! Every size read from a file is checked before it is used or allocated, and every error names the file.

pub mod artifact;
pub mod atomic;
mod error;
pub mod gguf;
pub mod hf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod json;
mod map;
pub mod model;
pub mod npz;
pub mod scales;
pub mod vectors;
pub mod version;

pub use artifact::{Artifact, StoredWeight};
pub use error::{Error, Result};
pub use model::{Model, WeightSource};
