//! GGUF, the file format of llama.cpp: metadata, tokenizer and quantized tensors in one file, or in several parts of one
//! model.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. On reading, blocks are dequantized to f32 or
//! multiplied as they are, and rows that llama.cpp keeps in another order are put back into Hugging Face's; `write/` is the way back.

mod blocks;
mod config;
mod i2_s;
mod model;
mod reader;
mod special;
mod split;
mod tensor_type;
#[cfg(test)]
mod testing;
mod tokenizer;
mod write;

use std::path::Path;

pub use blocks::BlockFormat;
pub(crate) use blocks::codes::{are_finite, panels};
pub(crate) use blocks::encode::put_matrix;
pub use reader::{Array, Gguf, TensorInfo, Value};
pub use split::part_names;
pub use tensor_type::TensorType;
pub use write::{OURS, Options, write};

use crate::{Model, Result};

/// Opens a file of an architecture that [`bitllama_core::families`] knows, with its other parts if it is one of several. Weights stay in the file and are dequantized one at a time.
///
/// # Errors
/// [`Error`](crate::Error) if the file is damaged or cut, its architecture, tokenizer, or the type of a weight is not
/// supported, or a weight is missing or has another shape than the metadata say.
pub fn open(path: &Path) -> Result<Model> {
    let file = Gguf::open(path)?;
    let (config, family) = config::config(&file)?;
    let tokenizer = tokenizer::tokenizer(&file)?;
    let companions = special::companions(&file, &config, &tokenizer)?;
    let weights = model::Weights::new(file, config.clone(), family.paired_rows)?;
    Ok(Model::plain(path, config, tokenizer, companions, weights))
}
