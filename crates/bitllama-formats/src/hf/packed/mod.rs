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
//! | `file.rs` | one safetensors file, tensor by tensor |
//!
//! A matrix takes the fewest bits that hold its codes; one that the format cannot hold stays in full precision and is named in
//! `config.json`. So a directory is the model to the bit, but for scales that a format has no type for.

mod bitnet;
mod codes;
mod compressed_tensors;
mod file;
mod floats;
mod gptq;
mod mlx;
#[cfg(test)]
pub(super) mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use bitllama_core::names::{Place, hf_place};
use bitllama_core::weights::{self, HEAD, Kind, WeightSpec};
use bitllama_core::{ActivationPlan, ModelConfig, PackedMatrix, ScaleFormat};
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::Value;

use super::config::unwritable;
use super::mapped::MappedFile;
use super::write::{encode, stored};
use super::{CONFIG, Dtype, WEIGHTS, config_json, write_json};
use crate::exports::{self, Loss, Written};
use crate::output::Kind as FolderKind;
use crate::{Error, Result, StoredWeight, TokenizerFiles, atomic};
use codes::Codes;
use file::{Tensor, Writer};
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

/// What the encoding of all tensors has in common.
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
        if format == PackedFormat::Bitnet {
            bitnet::tell_rounding(path, &model.modules, activations);
        }
        written = model.written;
        tokenizer.write_into(folder, config)
    })?;
    Ok(written)
}

/// A directory while its weights are written.
struct Contents<'a> {
    /// The folder, for errors.
    path: &'a Path,
    config: &'a ModelConfig,
    format: PackedFormat,
    options: Options,
    modules: Vec<Module>,
    /// Types that keep every number so far.
    kept: Kept,
    /// Tensors that have the type of the config, with their places in `written`.
    of_one_type: HashMap<String, usize>,
    written: Vec<Written>,
}

/// The weights before the type of all is known.
const FIRST_PASS: &str = "weights.part";

impl<'a> Contents<'a> {
    fn new(path: &'a Path, config: &'a ModelConfig, format: PackedFormat, options: Options) -> Self {
        let (modules, written, of_one_type) = (Vec::new(), Vec::new(), HashMap::new());
        Self { path, config, format, options, modules, kept: Kept::ALL, of_one_type, written }
    }

    /// The type of all that is not packed.
    fn dtype(&self) -> Dtype {
        self.options.dtype.unwrap_or(self.kept.smallest())
    }

    /// The framework that readers look for.
    fn framework(&self) -> &'static str {
        if self.format == PackedFormat::Mlx { "mlx" } else { "pt" }
    }

    /// Gives the file `first` its name `path`, with numbers that are not packed in one type: not all readers cast those that are
    /// narrower. MLX widens as it computes.
    fn settle(&mut self, first: &Path, path: &Path) -> Result<()> {
        let dtype = self.dtype();
        let file = MappedFile::open(first.to_path_buf())?;
        let is_narrow = |name: &str| {
            self.of_one_type.contains_key(name) && file.raw(name).is_some_and(|raw| raw.dtype != stored(dtype))
        };
        if self.format == PackedFormat::Mlx || !self.of_one_type.keys().any(|name| is_narrow(name)) {
            drop(file);
            return std::fs::rename(first, path).map_err(Error::io(path));
        }
        let names = file.names();
        let mut grown = Vec::new();
        atomic::write_file(path, |out| {
            let mut writer = Writer::new(path, out, names.iter().map(String::as_str))?;
            for name in &names {
                let Some(raw) = file.raw(name) else { continue };
                let (shape, name) = (raw.shape.to_vec(), name.to_string());
                let numbers = is_narrow(&name).then(|| raw.numbers());
                let bytes = match &numbers {
                    Some(numbers) => encode(numbers, dtype),
                    None => Some(raw.bytes.to_vec()),
                };
                let bytes = bytes.ok_or_else(|| Error::invalid(path, format!("{name} is too large for its type")))?;
                if numbers.is_some() {
                    grown.push((name.clone(), bytes.len() - raw.bytes.len()));
                }
                let dtype = if numbers.is_some() { stored(dtype) } else { raw.dtype };
                writer.put(Tensor { name, dtype, shape, bytes })?;
            }
            writer.finish(self.framework())
        })?;
        drop(file);
        for (name, bytes) in grown {
            let place = self.of_one_type.get(&name).and_then(|place| self.written.get_mut(*place));
            let Some(written) = place else { continue };
            written.bytes += bytes;
            if written.tensor == name {
                written.dtype = format!("{:?}", stored(dtype)).into();
            }
        }
        std::fs::remove_file(first).map_err(Error::io(first))
    }

    fn weights(
        &mut self,
        file: &mut std::io::BufWriter<std::fs::File>,
        weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    ) -> Result<()> {
        let specs = weights::specs(self.config);
        let choices = Choices {
            scales: self.options.dtype.filter(|dtype| *dtype != Dtype::F32),
            group_size: gptq::common_group_size(&specs),
        };
        // Names of the parts of a tensor are longer than its own, and there are up to four.
        let names: Vec<String> = specs.iter().map(|spec| name_of(&hf_place(self.config, spec).tensor)).collect();
        let parts = names.iter().flat_map(|name| [name.as_str(), name, name, name]);
        let path = self.path;
        let mut writer = Writer::new(path, file, parts)?;
        let mut waiting: HashMap<String, Vec<(WeightSpec, StoredWeight)>> = HashMap::new();
        let mut found = 0;
        for (expected, weight) in specs.iter().zip(weights) {
            let (spec, weight) = exports::checked(path, expected, weight?)?;
            found += 1;
            let place = hf_place(self.config, &spec);
            let parts = waiting.entry(place.tensor.clone()).or_default();
            parts.push((spec, weight));
            if parts.iter().map(|(spec, _)| spec.shape[0]).sum::<usize>() < place.shape[0] {
                continue;
            }
            let parts = waiting.remove(&place.tensor).unwrap_or_default();
            self.tensor(&mut writer, &place, parts, &choices)?;
        }
        if let Some(missing) = specs.get(found) {
            return Err(Error::invalid(path, format!("weight {} was not given", missing.name)));
        }
        if self.config.tie_word_embeddings {
            self.modules.push(Module { name: module_of(HEAD).into(), kind: Kind::Head, form: None });
        }
        writer.finish(self.framework())
    }

    /// Refuses a model of which nothing was packed: readers expect something.
    fn refuse_unpacked(&self) -> Result<()> {
        if self.modules.iter().any(|module| module.form.is_some()) {
            return Ok(());
        }
        let mut of_blocks = self.written.iter().filter(|written| written.tensor.contains(".layers."));
        let of_block = of_blocks.find_map(|written| written.remark.as_deref());
        let why = of_block.map(|remark| format!(" ({remark})")).unwrap_or_default();
        let reason =
            format!("no matrix of the model can be packed in the format{why}; use --to hf, or `quantize` it first");
        Err(Error::invalid(self.path, reason))
    }

    /// Writes a tensor of one or more weights.
    fn tensor(
        &mut self,
        writer: &mut Writer<'_>,
        place: &Place,
        parts: Vec<(WeightSpec, StoredWeight)>,
        choices: &Choices,
    ) -> Result<()> {
        let name = name_of(&place.tensor);
        let kind = parts[0].0.kind;
        let matrices = parts.iter().map(|(_, weight)| match weight {
            StoredWeight::Packed(matrix) => Some(matrix.clone()),
            _ => None,
        });
        let matrices: Option<Vec<PackedMatrix>> = matrices.collect();
        let mut remark = None;
        let mut form = None;
        let found = match matrices.map(|matrices| self.packed(&matrices, kind, choices)) {
            Some(Ok((encoded, wider))) => {
                form = Some(encoded.form);
                self.kept = self.kept.and(encoded.kept);
                let bytes = encoded.parts.iter().map(|(.., bytes)| bytes.len()).sum();
                for (part, dtype, shape, bytes) in encoded.parts {
                    if self.format == PackedFormat::Bitnet && part == bitnet::SCALE {
                        self.of_one_type.insert(format!("{}.{part}", module_of(&name)), self.written.len());
                    }
                    writer.put(Tensor { name: format!("{}.{part}", module_of(&name)), dtype, shape, bytes })?;
                }
                let remark = encoded.loss.or(wider);
                Written { tensor: name.clone(), dtype: encoded.name, bytes, error: encoded.error, remark }
            }
            packed => {
                remark = remark.or(packed.and_then(Result::err));
                self.full(writer, place, &parts, remark)?
            }
        };
        if !kind.is_vector() {
            self.modules.push(Module { name: module_of(&name).into(), kind, form });
        }
        if self.options.exact {
            exports::refuse_loss(self.path, &found)?;
        }
        self.written.push(found);
        Ok(())
    }

    /// A packed tensor, with a remark where it takes more bits than its codes have.
    fn packed(
        &self,
        matrices: &[PackedMatrix],
        kind: Kind,
        choices: &Choices,
    ) -> Result<(Encoded, Option<String>), String> {
        if !self.format.packs(kind) {
            return Err("the format packs matrices of blocks only".into());
        }
        let encoded = self.format.encode(matrices, choices)?;
        let widest = matrices.iter().max_by_key(|matrix| matrix.scheme().code_bits());
        let wider = widest.filter(|matrix| (matrix.scheme().code_bits() as usize) < encoded.form.bits);
        let remark = wider.map(|matrix| {
            let zeros = if matrix.zero_points().is_some() { " with zero points" } else { "" };
            format!("codes of {}{zeros} take {} bits", matrix.scheme(), encoded.form.bits)
        });
        Ok((encoded, remark))
    }

    /// Writes a tensor in full precision.
    fn full(
        &mut self,
        writer: &mut Writer<'_>,
        place: &Place,
        parts: &[(WeightSpec, StoredWeight)],
        remark: Option<String>,
    ) -> Result<Written> {
        let name = name_of(&place.tensor);
        let family = self.config.arch.family.family();
        let offset = if parts[0].0.kind == Kind::Norm { family.norm_offset } else { 0.0 };
        let expected: Vec<f32> = parts.iter().flat_map(|(_, weight)| exports::values(weight)).collect();
        let given: Vec<f32> = expected.iter().map(|value| value - offset).collect();
        let floats = Floats::new(&given, self.options.dtype)
            .ok_or_else(|| Error::invalid(self.path, format!("{name} has a number too large for its type")))?;
        let error = floats.error(&given, &expected, offset);
        self.kept = self.kept.and(floats.kept);
        self.of_one_type.insert(name.clone(), self.written.len());
        let (dtype, bytes) = (floats.dtype, floats.bytes.len());
        let written =
            Written { tensor: name.clone(), dtype: format!("{:?}", stored(dtype)).into(), bytes, error, remark };
        writer.put(Tensor { name, dtype: stored(dtype), shape: place.shape.clone(), bytes: floats.bytes })?;
        Ok(written)
    }
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
