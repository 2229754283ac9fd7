//! The weights of a directory on their way into its file: packed or in full precision, tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use bitllama_core::names::{Place, hf_place};
use bitllama_core::weights::{self, HEAD, Kind, WeightSpec};
use bitllama_core::{ModelConfig, PackedMatrix};

use super::super::Dtype;
use super::super::mapped::MappedFile;
use super::super::write::{encode, stored};
use super::file::{Tensor, Writer};
use super::floats::{Floats, Kept};
use super::{Choices, Encoded, Module, Options, PackedFormat, bitnet, gptq, module_of, name_of};
use crate::exports::{self, Written};
use crate::{Error, Result, StoredWeight, atomic};

/// A directory while its weights are written.
pub(super) struct Contents<'a> {
    /// The folder, for errors.
    path: &'a Path,
    config: &'a ModelConfig,
    format: PackedFormat,
    options: Options,
    pub modules: Vec<Module>,
    /// Types that keep every number so far.
    kept: Kept,
    /// Tensors that have the type of the config, with their places in `written`.
    of_one_type: HashMap<String, usize>,
    pub written: Vec<Written>,
}

/// The weights before the type of all is known.
pub(super) const FIRST_PASS: &str = "weights.part";

impl<'a> Contents<'a> {
    pub fn new(path: &'a Path, config: &'a ModelConfig, format: PackedFormat, options: Options) -> Self {
        let (modules, written, of_one_type) = (Vec::new(), Vec::new(), HashMap::new());
        Self { path, config, format, options, modules, kept: Kept::ALL, of_one_type, written }
    }

    /// The type of all that is not packed.
    pub fn dtype(&self) -> Dtype {
        self.options.dtype.unwrap_or(self.kept.smallest())
    }

    /// The framework that readers look for.
    fn framework(&self) -> &'static str {
        if self.format == PackedFormat::Mlx { "mlx" } else { "pt" }
    }

    /// Gives the file `first` its name `path`, with numbers that are not packed in one type: not all readers cast those that are
    /// narrower. MLX widens as it computes.
    pub fn settle(&mut self, first: &Path, path: &Path) -> Result<()> {
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

    pub fn weights(
        &mut self,
        file: &mut BufWriter<File>,
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
    pub fn refuse_unpacked(&self) -> Result<()> {
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
