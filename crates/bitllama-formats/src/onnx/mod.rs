//! Folders that ONNX Runtime and ONNX Runtime GenAI open: the decoder as an ONNX graph, its weights, the tokenizer.
//!
//! | file | subject |
//! |---|---|
//! | `proto.rs` | messages of `model.onnx` |
//! | `graph.rs` | nodes, constants, inputs and outputs |
//! | `decoder.rs` | the decoder |
//! | `attention.rs` | attention, rotary embedding, masks |
//! | `codes.rs` | codes, scales and zero points in the layouts of operators |
//! | `weights.rs` | weights on their way into `model.onnx.data` |
//! | `genai.rs` | `genai_config.json` |
//!
//! A packed matrix keeps its codes and scales: as `MatMulNBits` and `GatherBlockQuantized` of ONNX Runtime read them, or
//! `DequantizeLinear` of ONNX. Activations, keys and values are f32. Weights go to the file as they come, one in memory at a time; the
//! graph is written behind them, when the form of each is known.

mod attention;
mod codes;
mod decoder;
mod genai;
mod graph;
mod proto;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashMap;
use std::path::Path;

use bitllama_core::ModelConfig;
use bitllama_core::weights::{WeightSpec, specs};
use prost::Message;
use serde_json::Value as Json;

use crate::exports::{self, Written};
use crate::output::Kind;
use crate::{Error, Result, StoredWeight, TokenizerFiles, atomic, hf, notes};
use proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};
use weights::{Choices, Data, Held};

/// The graph.
pub const GRAPH: &str = "model.onnx";
/// Data of its matrices.
pub const DATA: &str = "model.onnx.data";
/// The config of ONNX Runtime GenAI.
pub const GENAI_CONFIG: &str = "genai_config.json";

/// Domain of the operators that ONNX Runtime has beside ONNX's.
const CONTRIB: &str = "com.microsoft";
/// Version of ONNX's operators: the first with `Attention`, `RMSNormalization` and `RotaryEmbedding`.
const OPSET: i64 = 23;
/// Version of the messages that goes with it.
const IR_VERSION: i64 = 11;

/// Choices of a folder.
#[derive(Debug, Clone)]
pub struct Options {
    /// Uses operators of ONNX itself only, none of ONNX Runtime's.
    pub opset_only: bool,
    /// Type of matrices that are not packed; products are in f32 all the same.
    pub dtype: hf::Dtype,
    /// Refuses a matrix that is not kept to the bit.
    pub exact: bool,
    /// Origin of the model, under `bitllama.provenance` of the graph's metadata.
    pub provenance: Json,
}

/// Writes a model into the folder `path`, whole or not at all, and gives its weights as they were written. `weights` yields every weight
/// of `config`, in the order of [`specs`].
///
/// # Errors
/// Those of `weights`; [`Error::Io`] if the disk refuses; [`Error::Invalid`] for a weight that is missing, not finite, of another shape
/// or too large for its type, and one that is not kept to the bit where `options` ask for that; a folder with files that this program
/// did not write.
pub fn write<'a>(
    path: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    options: &Options,
) -> Result<Vec<Written>> {
    let files = tokenizer.into();
    if config.short_context() < config.max_position_embeddings {
        let remark = format!(
            "longer sequences have another rotary embedding, which the graph leaves out: its context is {} positions",
            config.short_context()
        );
        notes::tell(path, &remark);
    }
    let mut written = Vec::new();
    atomic::write_folder(path, Kind::Model, |folder| {
        let (held, entries) = write_data(path, folder, config, weights, options)?;
        written = entries;
        let model = model(config, &held, options);
        atomic::write_bytes(&folder.join(GRAPH), &model.encode_to_vec())?;
        let genai = genai::config(config, files.tokenizer, options);
        atomic::write_bytes(&folder.join(GENAI_CONFIG), format!("{genai:#}\n").as_bytes())?;
        hf::write_config(&folder.join(hf::CONFIG), config, hf::Dtype::F32)?;
        files.write_into(folder, config)
    })?;
    Ok(written)
}

/// Writes the data of all matrices.
fn write_data(
    path: &Path,
    folder: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    options: &Options,
) -> Result<(HashMap<String, Held>, Vec<Written>)> {
    let specs = specs(config);
    let choices = Choices { opset_only: options.opset_only, dtype: options.dtype };
    let (mut held, mut written) = (HashMap::new(), Vec::with_capacity(specs.len()));
    atomic::write_file(&folder.join(DATA), |file| {
        let mut data = Data::new(file);
        for (expected, weight) in specs.iter().zip(weights) {
            let (spec, weight) = exports::checked(path, expected, weight?)?;
            let put = weights::put(&mut data, &spec, weight, choices).map_err(Error::io(path))?;
            let (as_held, entry) = put.map_err(|reason| Error::invalid(path, reason))?;
            if options.exact {
                exports::refuse_loss(path, &entry)?;
            }
            held.insert(spec.name, as_held);
            written.push(entry);
        }
        match specs.get(written.len()) {
            Some(missing) => Err(Error::invalid(path, format!("weight {} was not given", missing.name))),
            None => Ok(()),
        }
    })?;
    Ok((held, written))
}

fn model(config: &ModelConfig, held: &HashMap<String, Held>, options: &Options) -> ModelProto {
    let (graph, has_contrib) = decoder::graph(config, held, options.opset_only);
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let mut opset_import = vec![opset("", OPSET)];
    if has_contrib {
        opset_import.push(opset(CONTRIB, 1));
    }
    let mut metadata_props = Vec::new();
    if !options.provenance.is_null() {
        let (key, value) = ("bitllama.provenance".into(), options.provenance.to_string());
        metadata_props.push(StringStringEntryProto { key, value });
    }
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "bitllama-train".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import,
        metadata_props,
    }
}
