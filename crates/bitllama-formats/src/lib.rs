//! Model files in and out. No Burn, and no arithmetic beyond dequantizing a block.
//!
//! | module | subject |
//! |---|---|
//! | [`model`] | opens a Hugging Face directory, a GGUF file, a checkpoint, an artifact or the folder of a run as one [`Model`] |
//! | [`hf`] | Hugging Face directories: `config.json`, safetensors (sharded or not), `tokenizer.json` |
//! | [`gguf`] | GGUF: metadata, block formats, tokenizer |
//! | [`exports`] | parts that writers of other programs' formats share |
//! | [`hub`] | models by hub id (feature `hub`) |
//! | [`npz`] | NumPy archives: stored, aligned, memory-mapped |
//! | [`apl`] | exports for APL: the older tools' folder with variables and a decoder |
//! | [`onnx`] | folders that ONNX Runtime and ONNX Runtime GenAI open, written only |
//! | [`artifact`] | the exported model: `weights.npz`, `manifest.json`, tokenizer |
//! | [`checkpoint`] | the state of a run, its best checkpoint, and the student that a checkpoint is |
//! | [`scales`] | trained scales beside a checkpoint |
//! | [`text`] | text files and folders to documents |
//! | [`vectors`] | vectors of f32 by name |
//! | [`tokenizer`] | `tokenizer.json`, read with distrust |
//! | [`companions`] | the files beside it, such as a chat template |
//! | [`json`] | small JSON files |
//! | [`version`] | versions of JSON files |
//! | [`notes`] | remarks of readers to the user |
//! | [`identity`] | what tells models apart: a hash of their content |
//! | [`checksums`] | SHA-256 of files, and whether a folder is as it was written |
//! | [`atomic`] | files and folders that exist whole or not at all |
//! | [`output`] | what this program may replace or remove, and who is writing it |
//!
//! Every size read from a file is checked before it is used or allocated, and every error names the file.

pub mod apl;
pub mod artifact;
pub mod atomic;
pub mod checkpoint;
pub mod checksums;
pub mod companions;
mod error;
pub mod exports;
mod finite;
pub mod gguf;
pub mod hf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod identity;
pub mod json;
mod map;
pub mod model;
pub mod notes;
pub mod npz;
pub mod onnx;
pub mod output;
pub mod scales;
mod stored;
pub mod text;
pub mod tokenizer;
pub mod vectors;
pub mod version;

pub use artifact::{Artifact, StoredWeight};
pub use companions::{Companions, TokenizerFiles};
pub use error::{Error, Result};
pub use model::{Model, WeightSource};
