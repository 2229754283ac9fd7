//! Hugging Face directories: `config.json`, `model.safetensors` (or its shards), `tokenizer.json`.
//!
//! It is the form in which models are published, and the one in which checkpoints are written, so that `transformers`
//! and everything built on it can open them.

pub(crate) mod advice;
mod bitnet;
mod config;
mod fields;
mod mapped;
mod packed;
mod read;
mod rope;
mod unpack;
mod write;

use std::path::Path;

use bitllama_core::ModelConfig;
use bitllama_core::weights::WeightSpec;
use serde::{Deserialize, Serialize};

pub use crate::tokenizer::read as read_tokenizer;
pub use config::{config_json, parse_config, read_config, write_config};
pub use packed::{Options as PackedOptions, PackedFormat, write as write_packed};
#[cfg(feature = "hub")]
pub(crate) use read::is_file_name;
pub(crate) use read::shards;

use crate::companions::{Companions, TokenizerFiles};
use crate::model::Role;
use crate::output::Kind;
use crate::{Error, Model, Result, atomic, json};

/// The architecture.
pub const CONFIG: &str = "config.json";
/// The weights, where they are in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which shard holds which weight, where they are in several.
pub const INDEX: &str = "model.safetensors.index.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// How weights are stored in a safetensors file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes, finite up to 65504.
    F16,
    /// The upper half of an F32, 2 bytes.
    Bf16,
}

impl Dtype {
    /// The name that `config.json` has for it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Opens a directory; one whose matrices are packed (BitNet, GPTQ, compressed-tensors) opens as a student. Weights are memory-mapped, and their names, types and shapes checked here.
///
/// # Errors
/// [`Error`] if a file is missing or damaged, the architecture is not one that [`read_config`] knows, or a weight is
/// missing or has another shape than the config says. Where weights or tokenizer are there in a form that is not read, it says
/// how to convert them.
pub fn open(folder: &Path) -> Result<Model> {
    let path = folder.join(CONFIG);
    let json = json::read(&path)?;
    let mut config = parse_config(&path, &json)?;
    let says_if_tied = json.get("tie_word_embeddings").is_some_and(|tied| !tied.is_null());
    let stated = unpack::Quantization::stated(&json).map_err(|reason| Error::invalid(&path, reason))?;
    let weights = read::Weights::open(folder, &mut config, says_if_tied, stated.clone())?;
    let tokenizer = read_tokenizer(&folder.join(TOKENIZER))?;
    let companions = Companions::read(folder)?;
    companions.complete(&mut config, &tokenizer)?;
    let activations = stated.map(|stated| stated.activations(&config));
    let model = Model::plain(folder, config, tokenizer, companions, weights);
    Ok(match activations {
        Some(activations) => Model { activations, role: Role::Student, ..model },
        None => model,
    })
}

/// Writes a directory that [`open`] and `transformers` read; one that this program wrote there is replaced, and on any error
/// stays as it was.
///
/// # Errors
/// Those of [`write_into`] and [`atomic::write_folder`].
pub fn save<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl IntoIterator<Item = (WeightSpec, Vec<f32>)>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    dtype: Dtype,
) -> Result<()> {
    atomic::write_folder(folder, Kind::Model, |temporary| write_into(temporary, config, weights, tokenizer, dtype))
}

/// Writes the files of a model into a folder that exists. Weights may come in any order and are held one at a time.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] if a weight of `config` is missing, comes twice, has a wrong number of values, or
/// has a value that is infinite, NaN, or beyond what `dtype` can hold.
pub fn write_into<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl IntoIterator<Item = (WeightSpec, Vec<f32>)>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    dtype: Dtype,
) -> Result<()> {
    write::weights(&folder.join(WEIGHTS), config, weights, dtype)?;
    write_config(&folder.join(CONFIG), config, dtype)?;
    tokenizer.into().write_into(folder, config)
}

/// Writes a JSON file, indented, with a line end.
fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    atomic::write_bytes(path, format!("{value:#}\n").as_bytes())
}

/// Messages of other crates may have several lines; ours have one.
pub(crate) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
