//! Hugging Face directories whose matrices stay packed, for the programs that read such: codes and scales as they are, in the
//! layout of each.
//!
//! | file | format | readers |
//! |---|---|---|
//! | `compressed_tensors.rs` | compressed-tensors, `pack-quantized` | `transformers`, vLLM |
//! | `gptq.rs` | GPTQ, with zeros less 1 (`gptq`) or as they are (`gptq_v2`) | `transformers` with GPTQModel, vLLM |
//! | `mlx.rs` | MLX's affine quantization | mlx-lm |
//! | `bitnet.rs` | ternary matrices with one scale | `transformers` |
//! | `codes.rs` | codes as whole numbers, the width that holds them, words of fields |
//! | `floats.rs` | the type of numbers that are not packed, and of scales |
//! | `contents.rs` | the weights of a model, packed or not, into the file |
//! | `file.rs` | one safetensors file, tensor by tensor |
//!
//! A matrix takes the fewest bits that hold its codes; one that the format cannot hold stays in full precision and is named in
//! `config.json`. So a directory is the model to the bit, but for scales that a format has no type for.

mod bitnet;
mod codes;
mod compressed_tensors;
mod contents;
mod file;
mod floats;
mod gptq;
mod mlx;
#[cfg(test)]
pub(super) mod tests;

use std::borrow::Cow;
use std::path::Path;

use bitllama_core::weights::{HEAD, Kind, WeightSpec};
use bitllama_core::{ActivationPlan, ModelConfig, PackedMatrix, ScaleFormat};
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::Value;

use super::config::unwritable;
use super::{CONFIG, Dtype, WEIGHTS, config_json, write_json};
use crate::exports::{Loss, Written};
use crate::output::Kind as FolderKind;
use crate::{Error, Result, StoredWeight, TokenizerFiles, atomic, notes};
use codes::Codes;
use contents::{Contents, FIRST_PASS};
use floats::{Floats, Kept};

/// A format of packed matrices in a Hugging Face directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// compressed-tensors' `pack-quantized`.
    CompressedTensors,
    /// GPTQ; zeros are stored less 1.
    Gptq,
    /// GPTQ's second version; zeros are stored as they are.
    GptqV2,
    /// MLX's affine quantization.
    Mlx,
    /// Ternary matrices, as `transformers` has those of BitNet.
    Bitnet,
}

/// Choices of a directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Type of weights in full precision, and of scales where it is a smaller one than theirs. By default each tensor takes the
    /// smallest that keeps its numbers.
    pub dtype: Option<Dtype>,
    /// Refuses a weight that the directory cannot hold to the bit.
    pub exact: bool,
}

/// How a matrix is packed, as configs say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    bits: usize,
    /// `None` for one scale a row.
    group_size: Option<usize>,
    /// Without zero points.
    symmetric: bool,
}

/// A linear layer or an embedding in a file.
#[derive(Debug)]
struct Module {
    /// Path, such as `model.layers.0.mlp.up_proj`.
    name: String,
    kind: Kind,
    /// `None` for full precision.
    form: Option<Form>,
}

/// A packed tensor.
struct Encoded {
    form: Form,
    /// Type in the list of tensors.
    name: Cow<'static, str>,
    /// Ends of the names below the module's, types, shapes, bytes.
    parts: Vec<(&'static str, StoredDtype, Vec<usize>, Vec<u8>)>,
    /// Types that keep the scales.
    kept: Kept,
    /// Relative error of the weights.
    error: f64,
    /// Reason of the error.
    loss: Option<String>,
}

impl PackedFormat {
    /// All of them, with their names on command lines.
    pub const NAMED: [(&str, PackedFormat); 5] = [
        ("compressed-tensors", PackedFormat::CompressedTensors),
        ("gptq", PackedFormat::Gptq),
        ("gptq:v2", PackedFormat::GptqV2),
        ("mlx", PackedFormat::Mlx),
        ("bitnet", PackedFormat::Bitnet),
    ];

    /// Whether a weight of a kind can be packed.
    fn packs(self, kind: Kind) -> bool {
        match self {
            PackedFormat::Mlx => !kind.is_vector(),
            _ => kind == Kind::Linear,
        }
    }

    /// The matrices of a tensor in this format.
    fn encode(self, matrices: &[PackedMatrix], choices: &Choices) -> Result<Encoded, String> {
        match self {
            PackedFormat::CompressedTensors => compressed_tensors::encode(matrices, choices.scales),
            PackedFormat::Gptq => gptq::encode(matrices, choices.scales, choices.group_size, 1),
            PackedFormat::GptqV2 => gptq::encode(matrices, choices.scales, choices.group_size, 0),
            PackedFormat::Mlx => mlx::encode(matrices, choices.scales),
            PackedFormat::Bitnet => bitnet::encode(matrices, choices.scales),
        }
    }

    /// The key of a config that says how modules are packed, and its value.
    fn config(self, modules: &[Module]) -> (&'static str, Value) {
        match self {
            PackedFormat::CompressedTensors => ("quantization_config", compressed_tensors::config(modules)),
            PackedFormat::Gptq => ("quantization_config", gptq::config(modules, "gptq")),
            PackedFormat::GptqV2 => ("quantization_config", gptq::config(modules, "gptq_v2")),
            PackedFormat::Mlx => ("quantization", mlx::config(modules)),
            PackedFormat::Bitnet => ("quantization_config", bitnet::config(modules)),
        }
    }
}

/// The choices that the encoding of all tensors shares.
struct Choices {
    /// Type of scales, where they cannot choose.
    scales: Option<Dtype>,
    /// The largest group that divides the columns of every matrix that has groups.
    group_size: usize,
}

/// Writes a model into the folder `path`, whole or not at all, and gives its tensors. `weights` yields every weight of `config`, in
/// the order of [`bitllama_core::weights::specs`]; `activations` is how a student rounds its inputs.
///
/// # Errors
/// Those of `weights` and [`atomic::write_folder`]; [`Error::Invalid`] for a config that no family can say, a weight that is
/// missing, not finite or of another shape, a number too large for its type, and a weight that is not kept to the bit where `options`
/// ask for that.
pub fn write<'a>(
    path: &Path,
    config: &ModelConfig,
    activations: &ActivationPlan,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    (format, options): (PackedFormat, Options),
) -> Result<Vec<Written>> {
    if let Some(reason) = unwritable(config) {
        return Err(Error::invalid(path, reason));
    }
    let mut written = Vec::new();
    let tokenizer = tokenizer.into();
    atomic::write_folder(path, FolderKind::Model, |folder| {
        let mut model = Contents::new(path, config, format, options);
        let first = folder.join(FIRST_PASS);
        atomic::write_file(&first, |file| model.weights(file, weights))?;
        model.refuse_unpacked()?;
        model.settle(&first, &folder.join(WEIGHTS))?;
        let mut json = config_json(config, model.dtype());
        let (key, value) = format.config(&model.modules);
        json[key] = value;
        write_json(&folder.join(CONFIG), &json)?;
        match format {
            PackedFormat::Bitnet => bitnet::tell_rounding(path, &model.modules, activations),
            PackedFormat::Gptq
                if model.modules.iter().any(|module| module.form.is_some_and(|form| !form.symmetric)) =>
            {
                let remark = "GPTQModel reads zero points in the first version of GPTQ only where it wrote them itself; use gptq:v2";
                notes::tell(path, remark);
            }
            _ => {}
        }
        written = model.written;
        tokenizer.write_into(folder, config)
    })?;
    Ok(written)
}

/// The name of a tensor in a file.
fn name_of(tensor: &str) -> String {
    if tensor == HEAD { tensor.into() } else { format!("model.{tensor}") }
}

/// The module that a weight is of.
fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Scales as they stand in a file.
struct Scales {
    floats: Floats,
    /// Relative error of the weights.
    error: f64,
    /// Reason of the error.
    loss: Option<String>,
}

/// The scales of `codes` in a type, `forced` or the smallest that keeps them, in the order that `order` makes of `[rows, groups]`.
///
/// # Errors
/// A scale that is too large, in one line.
fn scales(
    codes: &Codes,
    matrices: &[PackedMatrix],
    forced: Option<Dtype>,
    order: impl Fn(Vec<f32>) -> Vec<f32>,
) -> Result<Scales, String> {
    // The rounding that training has: no scale but 0 becomes 0, none infinite.
    let round = |scale: &f32| match forced {
        Some(Dtype::F16) if *scale != 0.0 => ScaleFormat::F16.round(*scale),
        _ => *scale,
    };
    let given: Vec<f32> = codes.scales.iter().map(round).collect();
    let too_large = || "has a scale that is too large for its type".to_string();
    let rounded = Floats::new(&given, forced).ok_or_else(too_large)?;
    let error = error_of(matrices, |row, out| codes.weights_into(row, rounded.values(&given), out));
    let loss = (error > 0.0).then(|| match rounded.dtype {
        Dtype::F16 => "scales are rounded to f16; use scale_dtype = \"f16\"".into(),
        other => format!("scales are rounded to {}", other.torch_name()),
    });
    let floats = Floats::new(&order(given), Some(rounded.dtype)).ok_or_else(too_large)?;
    Ok(Scales { floats, error, loss })
}

/// The relative error of weights that `found` gives row by row.
fn error_of(matrices: &[PackedMatrix], mut found: impl FnMut(usize, &mut [f32])) -> f64 {
    let mut loss = Loss::default();
    let mut first = 0;
    for matrix in matrices {
        let (mut expected, mut row) = (vec![0.0; matrix.columns()], vec![0.0; matrix.columns()]);
        for index in 0..matrix.rows() {
            matrix.dequantize_row_into(index, &mut expected);
            found(first + index, &mut row);
            loss.add(&expected, &row);
        }
        first += matrix.rows();
    }
    loss.relative()
}

/// The name of a form in the list of tensors.
fn form_name(form: Form) -> Cow<'static, str> {
    let sign = if form.symmetric { "" } else { "u" };
    match form.group_size {
        Some(size) => format!("{sign}int{} g{size}", form.bits).into(),
        None => format!("{sign}int{} rows", form.bits).into(),
    }
}

/// The form that most modules have.
fn most_common(modules: &[Module]) -> Option<Form> {
    let forms: Vec<Form> = modules.iter().filter_map(|module| module.form).collect();
    // Of several the first.
    forms.iter().rev().copied().max_by_key(|form| forms.iter().filter(|other| *other == form).count())
}
