//! A model to files: the one seam through which `distill`, `quantize` and `export` write, whatever the format.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use bitllama_core::weights::{WeightSpec, specs};
use bitllama_core::{ActivationPlan, ModelConfig};
use bitllama_formats::exports::Written;
use bitllama_formats::gguf::{self, BlockFormat, Gguf};
use bitllama_formats::output::{self, Claim, Kind};
use bitllama_formats::{Error, StoredWeight, TokenizerFiles, artifact, atomic, hf, onnx};
use bitllama_nn::Llama;
use bitllama_nn::activations::plan_of;
use bitllama_nn::weights::Weights;
use serde_json::Value;

use crate::models::ResolvedPlan;

/// A format to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An artifact with every low-bit matrix packed.
    Artifact,
    /// An artifact with the keys and loose files of the older tools.
    V2,
    /// A Hugging Face directory of the rounded weights.
    Hf,
    /// A GGUF file, with a type that is preferred for packed matrices.
    Gguf(Option<BlockFormat>),
    /// A folder for ONNX Runtime and ONNX Runtime GenAI.
    Onnx {
        /// Whether its graph has operators of ONNX itself only.
        opset_only: bool,
    },
}

/// Formats by name; types of GGUF files come after a colon.
const NAMED: [(&str, Format); 5] = [
    ("artifact", Format::Artifact),
    ("v2", Format::V2),
    ("hf", Format::Hf),
    ("gguf", Format::Gguf(None)),
    ("onnx", Format::Onnx { opset_only: false }),
];

/// Names of formats, for help and error messages.
pub fn names() -> String {
    let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
    format!("{} or gguf:TYPE", names.join(", "))
}

impl Format {
    /// Whether only programs that keep activations as this one does read it: other programs round them in their own way.
    pub fn is_ours(self) -> bool {
        matches!(self, Format::Artifact | Format::V2)
    }

    /// Whether weights in full precision can have one of several types.
    pub fn takes_dtype(self) -> bool {
        !self.is_ours()
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // `packed` was the name before there were others.
        let named = NAMED.iter().find(|(known, _)| *known == name || (name, *known) == ("packed", "artifact"));
        let kind = name.strip_prefix("gguf:").and_then(BlockFormat::named).filter(|kind| kind.is_written());
        named.map(|(_, format)| *format).or(kind.map(|kind| Format::Gguf(Some(kind)))).ok_or_else(|| {
            let types = BlockFormat::written().map(|format| format.name().to_ascii_lowercase());
            let types = types.collect::<Vec<_>>().join(", ");
            format!("expected one of {}, where TYPE is one of {types}", names())
        })
    }
}

/// Choices of an export.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Type of weights in full precision: in Hugging Face directories and ONNX f32 by default, in GGUF files the smallest that keeps
    /// every number.
    pub dtype: Option<hf::Dtype>,
    /// Refuses weights that the format cannot hold to the bit.
    pub exact: bool,
}

/// A model to export, but for its weights.
pub struct Source<'a> {
    /// Architecture.
    pub config: &'a ModelConfig,
    /// Rounding of activations that a student was trained with.
    pub activations: &'a ActivationPlan,
    /// Tokenizer and its companions.
    pub tokenizer: TokenizerFiles<'a>,
    /// Origin, as JSON.
    pub provenance: Value,
}

/// Sizes of what was written.
#[derive(Debug, Default)]
pub struct Summary {
    /// Bytes of all weights.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: usize,
    /// Tensors of a file of another program's format; none for artifacts and Hugging Face directories.
    pub tensors: Vec<Written>,
}

impl Summary {
    /// Bits per weight.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters as f64
    }
}

/// Claims the output of an export: a folder, or the file of a GGUF.
///
/// # Errors
/// Anything there that this program did not write; another process that writes it.
pub fn claim(format: Format, path: &Path) -> Result<Claim> {
    match format {
        Format::Artifact | Format::V2 => Ok(output::claim_folder(path, Kind::Artifact)?),
        Format::Hf | Format::Onnx { .. } => Ok(output::claim_folder(path, Kind::Model)?),
        Format::Gguf(_) => {
            let claim = output::claim_file(path)?;
            ensure!(!path.is_dir(), "{}: a folder stands here, where a GGUF file is to be written", path.display());
            let ours = || Gguf::open(path).is_ok_and(|file| file.get(gguf::OURS).is_some());
            if path.exists() && !ours() {
                bail!(
                    "{}: a file stands here that this program did not write; remove it or name another output",
                    path.display()
                );
            }
            Ok(claim)
        }
    }
}

/// Writes a model, whole or not at all. `weights` yields every weight in the order of [`specs`].
///
/// # Errors
/// Those of `weights`; an output that cannot be written; a model that the format cannot hold.
pub fn write(
    format: Format,
    path: &Path,
    source: Source<'_>,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight), Error>>,
    options: Options,
) -> Result<Summary> {
    let Source { config, activations, tokenizer, provenance } = source;
    let mut summary = Summary::default();
    let counted = weights.inspect(|weight| {
        if let Ok((spec, weight)) = weight {
            summary.parameters += spec.len();
            summary.bytes += match weight {
                StoredWeight::Packed(matrix) => matrix.stored_bytes() as u64,
                StoredWeight::Full(values) => size_of_val(values.as_slice()) as u64,
                StoredWeight::Rows(rows) => rows.bytes() as u64,
            };
        }
    });
    match format {
        Format::Artifact | Format::V2 => {
            let layout = if format == Format::V2 { artifact::Layout::V2 } else { artifact::Layout::Packed };
            artifact::write_trained(path, config, counted, activations, tokenizer, layout, provenance)?;
        }
        Format::Hf => {
            let dtype = options.dtype.unwrap_or(hf::Dtype::F32);
            atomic::write_folder(path, Kind::Model, |folder| {
                let mut fault = None;
                let values = counted.map_while(|weight| match weight {
                    Ok((spec, weight)) => Some((spec, weight.into_values())),
                    Err(error) => {
                        fault = Some(error);
                        None
                    }
                });
                let written = hf::write_into(folder, config, values, tokenizer, dtype);
                fault.map_or(written, Err)
            })?;
            summary.bytes = (summary.parameters * dtype.size()) as u64;
        }
        Format::Gguf(preferred) => {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let full = options.dtype.map(|dtype| match dtype {
                hf::Dtype::F32 => BlockFormat::F32,
                hf::Dtype::F16 => BlockFormat::F16,
                hf::Dtype::Bf16 => BlockFormat::Bf16,
            });
            let options = gguf::Options { preferred, full, exact: options.exact, name, provenance };
            let tensors = gguf::write(path, config, counted, tokenizer, &options)?;
            summary.bytes = tensors.iter().map(|tensor| tensor.bytes as u64).sum();
            summary.tensors = tensors;
        }
        Format::Onnx { opset_only } => {
            let dtype = options.dtype.unwrap_or(hf::Dtype::F32);
            let options = onnx::Options { opset_only, dtype, exact: options.exact, provenance };
            let tensors = onnx::write(path, config, counted, tokenizer, &options)?;
            summary.bytes = tensors.iter().map(|tensor| tensor.bytes as u64).sum();
            summary.tensors = tensors;
        }
    }
    Ok(summary)
}

/// Writes the student `llama` of a run into the artifact `path`, with every weight of its bit plan rounded on the device.
///
/// # Errors
/// A weight that is not finite; a folder that cannot be written.
pub fn student(
    format: Format,
    path: &Path,
    llama: &Llama,
    plan: &ResolvedPlan,
    tokenizer: TokenizerFiles,
    provenance: Value,
) -> Result<Summary> {
    let stored = Weights::of(llama);
    let weights = plan.iter().map(|(spec, _)| {
        let packed = stored.pack(spec).map_err(|e| Error::invalid(path, format!("{}: {e}", spec.name)))?;
        Ok((spec.clone(), packed.map_or_else(|| StoredWeight::Full(stored.read(spec)), StoredWeight::Packed)))
    });
    let source = Source { config: &llama.config, activations: &plan_of(llama), tokenizer, provenance };
    write(format, path, source, weights, Options::default())
}

/// Writes the stored weights of `llama` as a Hugging Face directory, whole or not at all.
///
/// # Errors
/// A folder that cannot be written, or holds other things; a weight that `dtype` cannot hold.
pub fn save_hf(path: &Path, llama: &Llama, tokenizer: TokenizerFiles, dtype: hf::Dtype) -> Result<()> {
    Ok(atomic::write_folder(path, Kind::Model, |folder| write_hf_into(folder, llama, tokenizer, dtype))?)
}

/// As [`save_hf`], into a folder that exists.
///
/// # Errors
/// As [`save_hf`].
pub fn write_hf_into(
    folder: &Path,
    llama: &Llama,
    tokenizer: TokenizerFiles,
    dtype: hf::Dtype,
) -> std::result::Result<(), Error> {
    let stored = Weights::of(llama);
    let weights = specs(&llama.config).into_iter().map(|spec| {
        let values = stored.read(&spec);
        (spec, values)
    });
    hf::write_into(folder, &llama.config, weights, tokenizer, dtype)
}
