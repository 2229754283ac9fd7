//! A model to files: the one seam through which `distill`, `quantize` and `export` write, whatever the format.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use bitllama_core::weights::{WeightSpec, specs};
use bitllama_core::{ActivationPlan, ModelConfig, Rule, Target};
use bitllama_formats::exports::Written;
use bitllama_formats::gguf::{self, BlockFormat, Gguf, TensorType};
use bitllama_formats::hf::PackedFormat;
use bitllama_formats::output::{self, Claim, Growing, Kind};
use bitllama_formats::{Error, StoredWeight, TokenizerFiles, apl, artifact, atomic, hf, onnx};
use bitllama_nn::Llama;
use bitllama_nn::activations::plan_of;
use bitllama_nn::weights::Weights;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::models::ResolvedPlan;

/// A format to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Format {
    /// An artifact with every low-bit matrix packed.
    Artifact,
    /// An artifact with the keys and loose files of the older tools.
    V2,
    /// The same with variables and a decoder for APL.
    Apl,
    /// A Hugging Face directory of the rounded weights.
    Hf,
    /// A GGUF file, with a type that is preferred for packed matrices.
    Gguf(Option<TensorType>),
    /// A Hugging Face directory of packed weights.
    Packed(PackedFormat),
    /// A folder for ONNX Runtime and ONNX Runtime GenAI.
    Onnx {
        /// Whether its graph has operators of ONNX itself only.
        opset_only: bool,
    },
}

/// Formats by name; types of GGUF files come after a colon.
const NAMED: [(&str, Format); 6] = [
    ("artifact", Format::Artifact),
    ("v2", Format::V2),
    ("apl", Format::Apl),
    ("hf", Format::Hf),
    ("gguf", Format::Gguf(None)),
    ("onnx", Format::Onnx { opset_only: false }),
];

/// All formats by name.
fn named() -> impl Iterator<Item = (&'static str, Format)> {
    NAMED.into_iter().chain(PackedFormat::NAMED.map(|(name, format)| (name, Format::Packed(format))))
}

/// Names of formats, for help and error messages.
pub fn names() -> String {
    let names: Vec<&str> = named().map(|(name, _)| name).collect();
    format!("{} or gguf:TYPE", names.join(", "))
}

impl Format {
    /// Whether it is an artifact, which says how activations are rounded: other programs round them in their own way.
    pub fn is_ours(self) -> bool {
        matches!(self, Format::Artifact | Format::V2 | Format::Apl)
    }

    /// The grid that a model is rounded to for this format where nobody says otherwise: that of its type, or the mix that most GGUF
    /// files have. `None` for formats that hold any.
    pub fn own_grid(self) -> Option<Rule> {
        let name = match self {
            Format::Artifact | Format::V2 | Format::Apl | Format::Hf | Format::Onnx { .. } => return None,
            Format::Packed(PackedFormat::Bitnet) => "bitnet:i2_s".to_string(),
            Format::Packed(_) => format!("{}:int4", self.to_string().trim_end_matches(":v2")),
            Format::Gguf(None) => "gguf:q4_k_m".to_string(),
            Format::Gguf(Some(TensorType::I2S)) => "bitnet:i2_s".to_string(),
            Format::Gguf(Some(kind)) => format!("gguf:{}", kind.name().to_ascii_lowercase()),
        };
        Target::named(&name).map(Rule::from)
    }

    /// The ending of a file's name in this format; none for folders.
    pub fn extension(self) -> &'static str {
        if matches!(self, Format::Gguf(_)) { ".gguf" } else { "" }
    }

    /// Whether it rounds inputs, keys and values as a student does that was trained with `activations`, or says itself how.
    pub fn rounds_as(self, activations: &ActivationPlan) -> bool {
        let is_bitnet = self == Format::Packed(PackedFormat::Bitnet);
        self.is_ours() || activations.is_empty() || is_bitnet && activations.kv_cache.is_none()
    }

    /// Whether weights in full precision can have one of several types.
    pub fn takes_dtype(self) -> bool {
        !matches!(self, Format::Artifact | Format::V2 | Format::Apl)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (named().find(|(_, format)| format == self), self) {
            (Some((name, _)), _) => f.write_str(name),
            (None, Format::Onnx { .. }) => f.write_str("onnx"),
            (None, Format::Gguf(Some(kind))) => write!(f, "gguf:{}", kind.name().to_ascii_lowercase()),
            (None, _) => unreachable!("all other formats have names"),
        }
    }
}

impl From<Format> for String {
    fn from(format: Format) -> Self {
        format.to_string()
    }
}

impl TryFrom<String> for Format {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // `packed` was the name before there were others.
        let named = named().find(|(known, _)| *known == name || (name, *known) == ("packed", "artifact"));
        let kind = name.strip_prefix("gguf:").and_then(TensorType::named);
        named.map(|(_, format)| format).or(kind.map(|kind| Format::Gguf(Some(kind)))).ok_or_else(|| {
            let types = TensorType::written().map(|kind| kind.name().to_ascii_lowercase());
            let types = types.collect::<Vec<_>>().join(", ");
            format!("expected one of {}, where TYPE is one of {types}", names())
        })
    }
}

/// Choices of an export.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Type of weights in full precision: in Hugging Face directories and ONNX f32 by default, in GGUF files and directories of packed
    /// weights the smallest that keeps every number.
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
    /// Tensors of a file of another program's format; none for artifacts and Hugging Face directories in full precision.
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
        Format::Artifact | Format::V2 | Format::Apl => Ok(output::claim_folder(path, Kind::Artifact)?),
        Format::Hf | Format::Packed(_) | Format::Onnx { .. } => Ok(output::claim_folder(path, Kind::Model)?),
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
        Format::Apl => apl::write(path, config, counted, activations, tokenizer, provenance)?,
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
            summary.tensors = gguf::write(path, config, counted, tokenizer, &options)?;
            summary.bytes = summary.tensors.iter().map(|tensor| tensor.bytes as u64).sum();
        }
        Format::Packed(format) => {
            let options = hf::PackedOptions { dtype: options.dtype, exact: options.exact };
            summary.tensors = hf::write_packed(path, config, activations, counted, tokenizer, (format, options))?;
            summary.bytes = summary.tensors.iter().map(|tensor| tensor.bytes as u64).sum();
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

/// Writes the student of a run once more, beside its artifact in the run's folder, and gives the path.
///
/// # Errors
/// As [`student`]; a file or folder of that name that is not the run's.
pub fn beside(
    format: Format,
    run: &Path,
    llama: &Llama,
    plan: &ResolvedPlan,
    tokenizer: TokenizerFiles,
    provenance: Value,
) -> Result<(PathBuf, Summary)> {
    let name = match format {
        Format::Gguf(None) => "student.gguf".to_string(),
        Format::Gguf(Some(kind)) => format!("student-{}.gguf", kind.name().to_ascii_lowercase()),
        _ => format!("student-{format}").replace(':', "-"),
    };
    let (path, growing) = (run.join(&name), Growing::new(run, Kind::Run));
    match format {
        Format::Gguf(_) => growing.log(&name)?,
        _ => growing.subfolder(&name)?,
    }
    let _claim = claim(format, &path)?;
    let summary = student(format, &path, llama, plan, tokenizer, provenance)?;
    Ok((path, summary))
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
        Ok((spec.clone(), packed.map_or_else(|| StoredWeight::Full(stored.read(spec)), StoredWeight::from)))
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
