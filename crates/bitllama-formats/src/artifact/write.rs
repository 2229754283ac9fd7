//! Writes an artifact folder, whole or not at all, one weight at a time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bitllama_core::scales::{DoubleScales, PackedScales};
use bitllama_core::weights::{self, Kind, WeightSpec};
use bitllama_core::{ActivationPlan, Architecture, ModelConfig, PackedMatrix, ScaleFormat, StoredRows};
use serde_json::{Map, Value};

use super::forms::{BARE, Cells, FULL, Form, GGML, MEAN, STEPS, artifact_name};
use super::{Layout, MANIFEST_FILE, StoredWeight, TOKENIZER_FILE, WEIGHTS_FILE, WeightInfo, codes, manifest};
use crate::gguf::BlockFormat;
use crate::npz::{self, Dtype, NpzWriter};
use crate::output;
use crate::{Error, Result, TokenizerFiles, atomic, finite};

/// Writes an artifact folder, whole or not at all. `weights` yields every weight of `config`, in any order;
/// `provenance` goes into the manifest under `provenance`. An artifact that this program wrote there is replaced.
///
/// # Errors
/// Those of `weights`; [`Error::Io`] if the disk refuses; [`Error::Invalid`] if a weight is missing, there twice, of
/// another shape or not finite, or if `folder` holds anything else.
pub fn write<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    layout: Layout,
    provenance: Value,
) -> Result<()> {
    write_trained(folder, config, weights, &ActivationPlan::default(), tokenizer, layout, provenance)
}

/// As [`write`], of a student that was trained with the rounded `activations`: the manifest says so, and the runtime
/// rounds them the same.
///
/// # Errors
/// As [`write`].
pub fn write_trained<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    activations: &ActivationPlan,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    layout: Layout,
    provenance: Value,
) -> Result<()> {
    let nothing = |_: &Path, _: &Value| Ok(());
    write_with(folder, config, weights, activations, tokenizer, layout, provenance, nothing)
}

/// As [`write_trained`]; `more` may put further files beside the others, and gets the folder under its temporary name and the
/// manifest.
///
/// # Errors
/// As [`write`]; those of `more`.
#[expect(clippy::too_many_arguments, reason = "those of write_trained and a closure")]
pub fn write_with<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    activations: &ActivationPlan,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    layout: Layout,
    provenance: Value,
    more: impl FnOnce(&Path, &Value) -> Result<()>,
) -> Result<()> {
    let files = tokenizer.into();
    config.validate().map_err(|e| Error::invalid(folder, e))?;
    if config.sub_norm && layout == Layout::V2 {
        let reason = "the v2 layout has no place for sub-norms: the older tools would leave them out in silence";
        return Err(Error::invalid(folder, reason));
    }
    if !config.arch.computes_as(&Architecture::LLAMA) && layout == Layout::V2 {
        // Biases are the only choice that a Llama has.
        let with = if config.arch.family == Architecture::LLAMA.family { " with biases" } else { "" };
        let family = config.arch.family;
        let reason = format!(
            "the v2 layout has no place for a {family} model{with}: the older tools would compute it as a plain Llama"
        );
        return Err(Error::invalid(folder, reason));
    }
    atomic::write_folder(folder, output::Kind::Artifact, |temporary| {
        let npz_path = temporary.join(WEIGHTS_FILE);
        let mut entries = HashMap::new();
        atomic::write_file(&npz_path, |file| {
            let mut npz = NpzWriter::new(file, &npz_path);
            write_config(&mut npz, config)?;
            let expected: HashMap<String, WeightSpec> =
                weights::specs(config).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
            for weight in weights {
                let (spec, weight) = weight?;
                check(&spec, &weight, expected.get(&spec.name)).map_err(|reason| Error::invalid(folder, reason))?;
                if entries.contains_key(&spec.name) {
                    return Err(Error::invalid(folder, format!("{} is given twice", spec.name)));
                }
                let writer = Writer { npz: &mut npz, folder: temporary, config, layout };
                let written = writer.weight(&spec, &weight)?;
                entries.insert(spec.name, written);
            }
            npz.finish().map(drop)
        })?;
        let (mut infos, mut named) = (Vec::new(), Map::new());
        for spec in weights::specs(config) {
            let missing = || Error::invalid(folder, format!("{} is missing", spec.name));
            let (info, mut entry) = entries.remove(&spec.name).ok_or_else(missing)?;
            if let Some(activation) = activations.inputs.get(&spec.name) {
                entry[manifest::ACTIVATION] = Value::from(activation.name());
            }
            infos.push(info);
            named.insert(artifact_name(&spec.name), entry);
        }
        let manifest = manifest::manifest(config, layout, named, &infos, activations, provenance);
        let path = temporary.join(MANIFEST_FILE);
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::invalid(&path, e))?;
        write_file(&path, |file| writeln!(file, "{text}"))?;
        let path = temporary.join(TOKENIZER_FILE);
        let text = files.tokenizer.to_string(false).map_err(|e| Error::invalid(&path, e))?;
        write_file(&path, |file| file.write_all(text.as_bytes()))?;
        files.write_companions(temporary, config)?;
        more(temporary, &manifest)
    })
}

fn check(spec: &WeightSpec, weight: &StoredWeight, expected: Option<&WeightSpec>) -> Result<(), String> {
    let Some(expected) = expected else {
        return Err(format!("{} is no weight of this architecture", spec.name));
    };
    let found = match weight {
        StoredWeight::Packed(matrix) => vec![matrix.rows(), matrix.columns()],
        StoredWeight::Full(values) if values.len() == expected.len() => expected.shape.clone(),
        StoredWeight::Full(values) => vec![values.len()],
        StoredWeight::Rows(rows) => vec![rows.rows(), rows.columns()],
    };
    if spec.shape != expected.shape || found != expected.shape {
        return Err(format!("{} has the shape {found:?}, {:?} is expected", spec.name, expected.shape));
    }
    let fault = match weight {
        StoredWeight::Packed(matrix) => finite::fault(&[matrix.rows(), matrix.groups()], matrix.scales()),
        StoredWeight::Full(values) => finite::fault(&spec.shape, values),
        StoredWeight::Rows(rows) => finite::fault(&spec.shape, &rows.to_f32()),
    };
    match (fault, weight) {
        (None, _) => Ok(()),
        (Some(fault), StoredWeight::Packed(_)) => Err(format!("{}: the matrix of scales {fault}", spec.name)),
        (Some(fault), _) => Err(format!("{} {fault}", spec.name)),
    }
}

fn write_config<W: Write + io::Seek>(npz: &mut NpzWriter<W>, config: &ModelConfig) -> Result<()> {
    let counts = [
        ("_config_hidden_size", config.hidden_size),
        ("_config_intermediate_size", config.intermediate_size),
        ("_config_num_layers", config.num_hidden_layers),
        ("_config_num_heads", config.num_attention_heads),
        ("_config_vocab_size", config.vocab_size),
    ];
    for (key, count) in counts {
        npz.array(key, Dtype::I64, &[1], &(count as i64).to_le_bytes())?;
    }
    npz.array("_config_rope_theta", Dtype::F64, &[1], &config.rope_theta.to_le_bytes())
}

struct Writer<'a, W: Write + io::Seek> {
    npz: &'a mut NpzWriter<W>,
    folder: &'a Path,
    config: &'a ModelConfig,
    layout: Layout,
}

impl<W: Write + io::Seek> Writer<'_, W> {
    /// Writes a weight and gives back what it is, and its entry of the manifest.
    fn weight(mut self, spec: &WeightSpec, weight: &StoredWeight) -> Result<(WeightInfo, Value)> {
        let name = artifact_name(&spec.name);
        let full = WeightInfo::new(spec.name.clone(), &spec.shape);
        match weight {
            StoredWeight::Rows(rows) => match self.ggml_type(&**rows) {
                Some(ggml_type) => {
                    let shape = [rows.rows(), rows.columns()];
                    let row = |index| rows.stored_row(index).map_or(&[][..], |(_, bytes)| bytes);
                    let fill = |out: &mut dyn Write| (0..shape[0]).try_for_each(|index| out.write_all(row(index)));
                    self.both(&name, GGML, Dtype::U8, &[shape[0], row(0).len()], &fill)?;
                    let info = WeightInfo { ggml_type: Some(ggml_type), bytes: rows.bytes(), ..full };
                    Ok((info, manifest::ggml_entry(&name, ggml_type, shape)))
                }
                None => self.weight(spec, &StoredWeight::Full(rows.to_f32())),
            },
            StoredWeight::Full(values) => {
                let bytes = bytemuck::cast_slice(values);
                self.both(&name, FULL, Dtype::F32, &spec.shape, &|out| out.write_all(bytes))?;
                if self.layout == Layout::V2 && spec.kind == Kind::Norm {
                    // `test_inference.py` looks for norms under their own names.
                    self.npz.array(&format!("{name}{BARE}"), Dtype::F32, &spec.shape, bytes)?;
                }
                let info = WeightInfo { bytes: bytes.len(), ..full };
                Ok((info, manifest::full_entry(&name, self.layout, &spec.shape)))
            }
            StoredWeight::Packed(matrix) => {
                let form = Form::of(self.layout, matrix.scheme()).ok_or_else(|| {
                    let reason = format!("{name}: the older tools have no form for {}", matrix.scheme());
                    Error::invalid(self.folder.join(WEIGHTS_FILE), reason)
                })?;
                self.matrix(&name, &form, matrix)?;
                if let Some(copy) = form.copy() {
                    self.codes(&name, &copy, matrix)?;
                }
                let entry = manifest::packed_entry(&name, self.config, self.layout, &form, matrix);
                let format = manifest::written_format(self.layout, matrix);
                let scales = matrix.scales().len();
                let info = WeightInfo {
                    scheme: Some(matrix.scheme()),
                    group_size: (matrix.groups() > 1).then(|| matrix.group_size()),
                    scales: Some(format),
                    bytes: matrix.stored_bytes() + format.bytes(scales) - matrix.packed_scales().format().bytes(scales),
                    ..full
                };
                Ok((info, entry))
            }
        }
    }

    /// The type of a matrix in blocks of ggml. The older tools have no place for one.
    fn ggml_type(&self, rows: &dyn StoredRows) -> Option<&'static str> {
        let (name, _) = rows.stored_row(0)?;
        let blocks = BlockFormat::named(name).is_some_and(|format| format.block_len() > 1);
        (blocks && self.layout == Layout::Packed).then_some(name)
    }

    fn matrix(&mut self, name: &str, form: &Form, matrix: &PackedMatrix) -> Result<()> {
        let (scheme, rows, columns) = (matrix.scheme(), matrix.rows(), matrix.columns());
        let refused = |what: &str| {
            let reason = format!("{name}: {scheme} with {what} cannot be written for the older tools");
            Err(Error::invalid(self.folder.join(WEIGHTS_FILE), reason))
        };
        if self.layout == Layout::V2 && matrix.groups() > 1 {
            return refused("several scales a row");
        }
        if matches!(form.cells, Cells::Bits | Cells::Codes) && matrix.zero_points().is_some() {
            return refused("zero points");
        }
        self.codes(name, form, matrix)?;
        self.npz.ints(&format!("{name}_shape"), &[2], &[rows as i32, columns as i32])?;
        if form.cells == Cells::Bits {
            self.npz.ints(&format!("{name}_pc_axis"), &[], &[0])?;
        }
        Ok(())
    }

    /// The codes of a matrix in one form, with their scales and zero points.
    fn codes(&mut self, name: &str, form: &Form, matrix: &PackedMatrix) -> Result<()> {
        let (scheme, rows, columns) = (matrix.scheme(), matrix.rows(), matrix.columns());
        let (dtype, shape) = form.array([rows, columns]);
        self.both(name, form.suffix, dtype, &shape, &|out| write_cells(out, form, matrix))?;
        let constants = match matrix.groups() {
            1 => vec![rows],
            groups => vec![rows, groups],
        };
        let bytes = |key: &str, dtype, shape: &[usize], data: &[u8], writer: &mut Self| {
            writer.both(name, key, dtype, shape, &|out| out.write_all(data))
        };
        match (manifest::written_format(self.layout, matrix), matrix.packed_scales()) {
            (ScaleFormat::F16, PackedScales::F16(scales)) => {
                bytes(form.scales, Dtype::F16, &constants, bytemuck::cast_slice(scales), self)?;
            }
            (ScaleFormat::Double, PackedScales::Double(DoubleScales { codes, steps, mean })) => {
                bytes(form.scales, Dtype::I8, &constants, bytemuck::cast_slice(codes), self)?;
                let key = |suffix: &str| format!("{}{suffix}", form.scales);
                bytes(&key(STEPS), Dtype::F32, &[steps.len()], bytemuck::cast_slice(steps), self)?;
                bytes(&key(MEAN), Dtype::F32, &[1], &mean.to_le_bytes(), self)?;
            }
            _ => bytes(form.scales, Dtype::F32, &constants, bytemuck::cast_slice(matrix.scales()), self)?,
        }
        let has_points = form.cells == Cells::Fields || matrix.zero_points().is_some();
        if let Some(suffix) = form.zero_point.filter(|_| has_points) {
            let symmetric = || vec![-scheme.line().0; rows];
            let points = matrix.zero_points().map_or_else(symmetric, <[i32]>::to_vec);
            let points: &[u8] = bytemuck::cast_slice(&points);
            self.both(name, suffix, Dtype::I32, &constants, &|out| out.write_all(points))?;
        }
        if self.layout == Layout::V2 {
            write_file(&self.folder.join(format!("{name}{}.txt", form.scales)), |file| {
                matrix.scales().iter().try_for_each(|scale| writeln!(file, "{scale}"))
            })?;
        }
        Ok(())
    }

    /// Writes an array into the NPZ and, for the older tools, into a file of its own.
    fn both(
        &mut self,
        name: &str,
        suffix: &str,
        dtype: Dtype,
        shape: &[usize],
        fill: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let key = format!("{name}{suffix}");
        self.npz.array_with(&key, dtype, shape, fill)?;
        if self.layout == Layout::Packed {
            return Ok(());
        }
        // One bit a code goes without a header: `matmul_1bit` reads the file as it stands.
        let (header, extension) = match suffix {
            "_1bit" => (Vec::new(), "bin"),
            _ => (npz::header(dtype, shape), "npy"),
        };
        write_file(&self.folder.join(format!("{key}.{extension}")), |file| {
            file.write_all(&header)?;
            fill(file)
        })
    }
}

fn write_cells(out: &mut dyn Write, form: &Form, matrix: &PackedMatrix) -> io::Result<()> {
    if form.cells == Cells::Panels {
        return out.write_all(matrix.bytes());
    }
    let (mut fields, mut cells) = (vec![0; matrix.columns()], Vec::new());
    for row in 0..matrix.rows() {
        cells.clear();
        codes::unpack_row(matrix, form.cells, row, &mut fields, &mut cells);
        out.write_all(&cells)?;
    }
    Ok(())
}

/// Writes a file of the temporary folder, which is flushed to disk as a whole.
fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>) -> Result<()> {
    let mut file = BufWriter::new(fs::File::create(path).map_err(Error::io(path))?);
    fill(&mut file).and_then(|()| file.flush()).map_err(Error::io(path))
}
