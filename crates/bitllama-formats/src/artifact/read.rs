//! Opens an artifact folder, of either layout or of the older tools, and hands out its weights.
//!
//! Everything is located and its shapes are checked against the architecture when the folder is opened, so that a
//! damaged artifact is refused at once and not in the middle of a text.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bitllama_core::weights::{self, FINAL_NORM, WeightSpec};
use bitllama_core::{Activation, ActivationPlan, ModelConfig, excerpt};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::files::{Files, Part};
use super::forms::{BARE, Cells, FORMS, FULL, Form, GGML, ONE_BIT, ROW_MAJOR, TERNARY, artifact_name};
use super::manifest::{ACTIVATION, GGML_TYPE, KV_CACHE, NOT_ROUNDED};
use super::scales::Scales;
use super::{Artifact, StoredWeight, TOKENIZER_FILE, WeightInfo, codes, config};
use crate::companions::END_NAMES;
use crate::gguf::BlockFormat;
use crate::model::beyond;
use crate::npz::{Dtype, Npz};
use crate::stored::TypedRows;
use crate::{Companions, Error, Result, finite, hf};

/// Where a weight is and what it is.
pub(super) struct Located {
    pub(super) info: WeightInfo,
    place: Place,
}

enum Place {
    Packed {
        form: Form,
        codes: Part,
        scales: Box<Scales>,
        zero_points: Option<Vec<i32>>,
    },
    /// Blocks of ggml.
    Blocks(Part, BlockFormat),
    Full(Part),
    /// Left out by the older tools.
    Ones,
    /// Not there: [`Artifact::open_incomplete`] only.
    Absent,
}

/// The form and the codes of a low-bit weight, or the values of one in full precision.
type Found = (Option<Form>, Part);

impl Artifact {
    /// Opens an artifact folder of either layout, one of the older tools, a lone NPZ file that holds its architecture in
    /// `_config_*` arrays, or a manifest of any name.
    ///
    /// # Errors
    /// [`Error`] if a file is missing or damaged, a path in the manifest leaves the folder, or a weight of the
    /// architecture is missing, of another shape or element type.
    pub fn open(path: &Path) -> Result<Self> {
        let files = Files::open(path)?;
        files.refuse_row_major()?;
        let mut notes = Vec::new();
        let config =
            config::read(&files.manifest, &files, &mut notes).map_err(|reason| Error::invalid(&files.path, reason))?;
        files.check_names(&config, &mut notes)?;
        let weights: Vec<Located> =
            weights::specs(&config).iter().map(|spec| files.locate(spec, &mut notes)).collect::<Result<_>>()?;
        Self::assemble(path, files, config, weights, notes)
    }

    /// Opens what [`Artifact::open`] opens as a model of this `config`, whatever the manifest says of the architecture. Weights
    /// may be missing ([`Artifact::absent`]), the final norm among them.
    ///
    /// # Errors
    /// As [`Artifact::open`]; a weight that the architecture has no place for.
    pub fn open_incomplete(path: &Path, config: ModelConfig) -> Result<Self> {
        let files = Files::open(path)?;
        files.refuse_row_major()?;
        let specs = weights::specs(&config);
        let known: HashSet<String> = specs.iter().map(|spec| artifact_name(&spec.name)).collect();
        if let Some(stranger) = files.names().into_iter().find(|name| !known.contains(*name)) {
            let reason = format!("{} has no place in a {} of this config", excerpt(stranger), config.arch.family);
            return Err(Error::invalid(&files.path, reason));
        }
        let locate = |spec: &WeightSpec| {
            let there =
                files.has(&artifact_name(&spec.name)).then(|| files.locate(spec, &mut Vec::new())).transpose()?;
            let absent = || Located { info: WeightInfo::new(spec.name.clone(), &spec.shape), place: Place::Absent };
            Ok(there.filter(|located| !matches!(located.place, Place::Ones)).unwrap_or_else(absent))
        };
        let weights: Vec<Located> = specs.iter().map(locate).collect::<Result<_>>()?;
        Self::assemble(path, files, config, weights, Vec::new())
    }

    fn assemble(
        path: &Path,
        files: Files,
        config: ModelConfig,
        weights: Vec<Located>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let activations = files.activations(&config).map_err(|reason| Error::invalid(&files.path, reason))?;
        let tokenizer_path = files.folder.join(TOKENIZER_FILE);
        // The tokenizer beside a lone NPZ may be another model's.
        let with_tokenizer = tokenizer_path.is_file() && !files.is_lone();
        let companions = if files.is_lone() { Companions::default() } else { Companions::read(&files.folder)? };
        let manifest = files.manifest.clone();
        let path = path.to_path_buf();
        let mut artifact =
            Self { path, config, activations, tokenizer: None, companions, manifest, notes, weights, files };
        if with_tokenizer {
            let companions = artifact.companions.clone();
            artifact.give_tokenizer(&tokenizer_path, companions)?;
        }
        Ok(artifact)
    }

    /// Reads `tokenizer.json` from `path` and takes it, with its companions, for the model's own.
    ///
    /// # Errors
    /// [`Error`] if it is damaged, or has more tokens than the model.
    pub fn give_tokenizer(&mut self, path: &Path, companions: Companions) -> Result<()> {
        let tokenizer = hf::read_tokenizer(path)?;
        if let Some(reason) = beyond(&tokenizer, self.config.vocab_size) {
            return Err(Error::invalid(path, reason));
        }
        companions.complete(&mut self.config, &tokenizer)?;
        if self.config.end_tokens().next().is_none() && self.manifest.get("model_config").is_none() {
            ends_by_name(&mut self.config, &tokenizer, &mut self.notes);
        }
        (self.tokenizer, self.companions) = (Some(tokenizer), companions);
        Ok(())
    }

    /// The weights that an artifact opened by [`Artifact::open_incomplete`] lacks.
    pub fn absent(&self) -> impl Iterator<Item = &str> {
        let absent = self.weights.iter().filter(|weight| matches!(weight.place, Place::Absent));
        absent.map(|weight| weight.info.name.as_str())
    }

    /// One weight. The bytes of panels stay in the memory map, unread: [`Artifact::verify`] looks into them.
    ///
    /// # Errors
    /// [`Error`] if the architecture has no such weight of that shape, its bytes are damaged, or a value or a scale is
    /// infinite or NaN.
    pub fn weight(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        let there = |weight: &&Located| weight.info.name == spec.name && !matches!(weight.place, Place::Absent);
        let located = self.weights.iter().find(there);
        match located.filter(|located| located.info.shape == spec.shape) {
            Some(located) => self.files.load(located),
            None => {
                let found = match located {
                    Some(other) => format!("has the shape {:?}", other.info.shape),
                    None => "is not there".into(),
                };
                Err(Error::invalid(&self.path, format!("{} {found}, {:?} is expected", spec.name, spec.shape)))
            }
        }
    }
}

/// Manifests of the older tools do not tell what ends a text, but the names of special tokens do.
fn ends_by_name(config: &mut ModelConfig, tokenizer: &Tokenizer, notes: &mut Vec<String>) {
    let added = tokenizer.get_added_tokens_decoder();
    for name in END_NAMES {
        let id = tokenizer.token_to_id(name).filter(|id| added.get(id).is_some_and(|token| token.special));
        if let Some(id) = id.filter(|id| (*id as usize) < config.vocab_size) {
            config.add_end(id);
            notes.push(format!("the manifest does not tell what ends a text; {name} is taken to"));
        }
    }
}

impl Files {
    /// What entries say of the inputs of their matrices, and the manifest of keys and values. The one word for all inputs,
    /// which manifests of the older tools have too, is for people.
    fn activations(&self, config: &ModelConfig) -> Result<ActivationPlan, String> {
        let kind = |value: &Value, key: &str| match value {
            Value::Null => Ok(None),
            Value::String(name) if name == NOT_ROUNDED => Ok(None),
            Value::String(name) => name.parse().map(Some).map_err(|e| format!("{key}: {e}")),
            other => Err(format!("{key} is {}, not a name", excerpt(&other.to_string()))),
        };
        let mut plan = ActivationPlan::default();
        for spec in weights::specs(config).into_iter().filter(|spec| !spec.kind.is_vector()) {
            let name = artifact_name(&spec.name);
            let Some(entry) = self.entry(&name) else { continue };
            let found = kind(&entry[ACTIVATION], &format!("{name}: {ACTIVATION}"))?;
            plan.inputs.extend(found.map(|activation| (spec.name, activation)));
        }
        plan.kv_cache = kind(&self.manifest["quantization"][KV_CACHE], KV_CACHE)?;
        match plan.kv_cache {
            Some(Activation::Sign) => Err(format!("{KV_CACHE}: keys and values have no signs only")),
            _ => Ok(plan),
        }
    }

    /// What was written in the days when packed codes were row-major cannot be told from damage later on.
    pub(super) fn refuse_row_major(&self) -> Result<()> {
        let Some(npz) = &self.npz else { return Ok(()) };
        match npz.keys().find(|key| ROW_MAJOR.iter().any(|suffix| key.ends_with(suffix))) {
            None => Ok(()),
            Some(key) => {
                let reason = "written by an earlier version in row-major packing; export the run again";
                Err(Error::invalid(npz.path(), format!("{key}: {reason}")))
            }
        }
    }

    /// Weights that the architecture has no place for: biases change the results, so they are an error; others are
    /// noted.
    fn check_names(&self, config: &ModelConfig, notes: &mut Vec<String>) -> Result<()> {
        let known: HashSet<String> = weights::specs(config).iter().map(|spec| artifact_name(&spec.name)).collect();
        for name in self.names().into_iter().filter(|name| !known.contains(*name)) {
            if name.ends_with(".bias") {
                let reason = format!("{}: layers with a bias are not supported", excerpt(name));
                return Err(Error::invalid(&self.path, reason));
            }
            notes.push(format!("{} has no place in this architecture and is ignored", excerpt(name)));
        }
        Ok(())
    }

    pub(super) fn locate(&self, spec: &WeightSpec, notes: &mut Vec<String>) -> Result<Located> {
        let name = artifact_name(&spec.name);
        let stated = self.entry(&name).and_then(|entry| entry["shape"].as_array());
        if let Some(stated) = stated
            && !stated.iter().map(Value::as_u64).eq(spec.shape.iter().map(|d| Some(*d as u64)))
        {
            let stated = Value::from(stated.clone()).to_string();
            let reason = format!("{name} has the shape {}, {:?} is expected", excerpt(&stated), spec.shape);
            return Err(Error::invalid(&self.path, reason));
        }
        // Codes come first wherever they are: in full precision there may be a dequantized copy of them.
        if let Some(blocks) = self.blocks(&name, spec)? {
            return Ok(blocks);
        }
        let found = match self.stated(&name)? {
            Some(stated) => Some(stated),
            None => match self.loose_codes(&name, spec)? {
                Some(loose) => Some(loose),
                None => self.in_any_form(&name)?.or(self.loose_values(&name)?),
            },
        };
        let width = self.entry(&name).and_then(|entry| entry["bit_width"].as_u64());
        let place = match (found, &spec.shape[..]) {
            (Some((Some(ONE_BIT), codes)), _) if width.is_some_and(|bits| bits != 1) => {
                let reason = format!("only signs are there, but the manifest says bit_width {}", width.unwrap_or(0));
                return Err(self.damaged(&codes, reason));
            }
            (Some((None, codes)), _) => {
                self.expect(&codes, &self.header(&codes)?, &[Dtype::F32, Dtype::F16, Dtype::F64], &spec.shape)?;
                Place::Full(codes)
            }
            (Some((Some(form), codes)), &[rows, columns]) => {
                let (dtype, shape) = form.array([rows, columns]);
                self.expect(&codes, &self.header(&codes)?, &[dtype], &shape)?;
                self.check_members(&name, [rows, columns])?;
                let scales = self.scales(&name, &form, &codes, [rows, columns])?;
                let zero_points = self.zero_points(&name, &form, &codes, rows * scales.groups)?;
                Place::Packed { form, codes, scales: Box::new(scales), zero_points }
            }
            (Some((Some(form), codes)), _) => {
                let reason = format!("a weight of shape {:?} cannot be {}", spec.shape, form.scheme);
                return Err(self.damaged(&codes, reason));
            }
            (None, _) if spec.name == FINAL_NORM => {
                notes.push(format!("{name} is not there (the older tools forgot the final norm); all ones are used"));
                Place::Ones
            }
            (None, _) => {
                let npz = self.npz.as_ref().map_or(self.folder.as_path(), Npz::path);
                let reason = format!("{name} is not there, nor in a file that the manifest names");
                return Err(Error::invalid(npz, reason));
            }
        };
        let full =
            WeightInfo { bytes: spec.len() * size_of::<f32>(), ..WeightInfo::new(spec.name.clone(), &spec.shape) };
        let info = match (&place, &spec.shape[..]) {
            (Place::Packed { form, scales, zero_points, .. }, &[rows, columns]) => {
                let Scales { groups, format, .. } = &**scales;
                let points = zero_points.as_ref().map_or(0, |points| size_of_val(points.as_slice()));
                let codes = form.scheme.packed_bytes([rows, columns]).unwrap_or(usize::MAX);
                WeightInfo {
                    scheme: Some(form.scheme),
                    group_size: (*groups > 1).then(|| columns / groups),
                    scales: Some(*format),
                    bytes: codes.saturating_add(format.bytes(rows * groups) + points),
                    ..full
                }
            }
            _ => full,
        };
        Ok(Located { info, place })
    }

    /// A matrix in blocks of ggml, if the manifest says that it is one.
    fn blocks(&self, name: &str, spec: &WeightSpec) -> Result<Option<Located>> {
        let stated = self.entry(name).and_then(|entry| entry[GGML_TYPE].as_str());
        let (Some(stated), &[rows, columns]) = (stated, &spec.shape[..]) else { return Ok(None) };
        let part = Part::Member(format!("{name}{GGML}"));
        let format = BlockFormat::named(stated).filter(|format| columns.is_multiple_of(format.block_len()));
        let format = format.ok_or_else(|| {
            self.damaged(&part, format!("blocks of {} do not hold rows of {columns} columns", excerpt(stated)))
        })?;
        let bytes = columns / format.block_len() * format.block_bytes();
        self.expect(&part, &self.header(&part)?, &[Dtype::U8], &[rows, bytes])?;
        let plain = WeightInfo::new(spec.name.clone(), &spec.shape);
        let info = WeightInfo { ggml_type: Some(format.name()), bytes: rows * bytes, ..plain };
        Ok(Some(Located { info, place: Place::Blocks(part, format) }))
    }

    /// What the manifest says that the NPZ holds for a weight, which may stand there in several forms: the codes of a
    /// low-bit weight with their form, or the values of one in full precision with none.
    fn stated(&self, name: &str) -> Result<Option<Found>> {
        let (Some(npz), Some(entry)) = (&self.npz, self.entry(name)) else { return Ok(None) };
        let form = match (&entry["npz_key"], &entry["packed"], &entry["q"]) {
            (Value::String(key), ..) => {
                let suffix = key.strip_prefix(name).filter(|_| npz.contains(key));
                let known = suffix.filter(|s| *s == FULL || FORMS.iter().any(|form| form.suffix == *s));
                match (known, suffix) {
                    (Some(suffix), _) => FORMS.into_iter().find(|form| form.suffix == suffix),
                    (None, Some(_)) => return Err(Error::invalid(npz.path(), format!("{key}: the form is not known"))),
                    (None, None) => return Err(Error::invalid(npz.path(), format!("{key}: no such array"))),
                }
            }
            // Integers are what is meant where signs stand beside them.
            (_, Value::String(_), q) | (_, _, q @ Value::String(_)) => {
                let signs = || q.is_null() && npz.contains(&format!("{name}{}", ONE_BIT.suffix));
                match self.integers(name)?.or_else(|| signs().then_some(ONE_BIT)) {
                    Some(form) => Some(form),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let key = format!("{name}{}", form.map_or(FULL, |form| form.suffix));
        Ok(Some((form.map(|form| stated_scheme(form, entry)), Part::Member(key))))
    }

    /// Whatever the NPZ holds for a weight.
    fn in_any_form(&self, name: &str) -> Result<Option<Found>> {
        let Some(npz) = &self.npz else { return Ok(None) };
        let forms = FORMS.into_iter().map(|form| (Some(form), form.suffix)).chain([(None, FULL), (None, BARE)]);
        let mut members = forms.map(|(form, suffix)| (form, format!("{name}{suffix}")));
        match members.find(|(_, key)| npz.contains(key)) {
            Some((Some(form), _)) if form.cells == Cells::Fields => {
                Ok(self.integers(name)?.map(|form| (Some(form), Part::Member(format!("{name}{}", form.suffix)))))
            }
            found => Ok(found.map(|(form, key)| (form, Part::Member(key)))),
        }
    }

    /// The integers that the NPZ holds for a weight. Of several widths the manifest says which one is meant.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not.
    fn integers(&self, name: &str) -> Result<Option<Form>> {
        let Some(npz) = &self.npz else { return Ok(None) };
        let there = |form: &Form| npz.contains(&format!("{name}{}", form.suffix));
        let forms: Vec<Form> = integer_forms().filter(there).collect();
        let of_weight = self.entry(name).and_then(|entry| entry["bit_width"].as_u64());
        let of_all = self.manifest["quantization"]["bit_width"].as_u64();
        let of_width = |bits: u64| forms.iter().find(|form| u64::from(form.bit_width()) == bits);
        match (&forms[..], [of_weight, of_all].into_iter().flatten().find_map(of_width)) {
            ([], _) => Ok(None),
            ([only], _) => Ok(Some(*only)),
            (_, Some(meant)) => Ok(Some(*meant)),
            ([one, other, ..], None) => {
                let (one, other) = (one.suffix, other.suffix);
                let reason = format!("{name}{one} and {name}{other} are there, and no bit_width says which is meant");
                Err(Error::invalid(npz.path(), reason))
            }
        }
    }

    /// The file of low-bit codes that the manifest names for a weight, if it is there.
    fn loose_codes(&self, name: &str, spec: &WeightSpec) -> Result<Option<Found>> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        if let Some(path) = self.loose(entry, "ternary")? {
            return Ok(Some((Some(TERNARY), Part::Npy(path))));
        }
        if let Some(path) = self.loose(entry, "q")? {
            // Where signs stand beside, the width may be theirs; the name of the file is not.
            let of_entry = |form: &Form| entry["bit_width"].as_u64() == Some(form.bit_width().into());
            let of_file = |form: &Form| path.to_string_lossy().ends_with(&format!("{}.npy", form.suffix));
            let form = integer_forms().find(of_entry).or_else(|| integer_forms().find(of_file)).ok_or_else(|| {
                let bits = entry["bit_width"].to_string();
                Error::invalid(&path, format!("bit_width {} is not supported", excerpt(&bits)))
            })?;
            return Ok(Some((Some(stated_scheme(form, entry)), Part::Npy(path))));
        }
        if let Some(file) = entry["q"].as_str() {
            let reason = format!("{name}: the file {} that the manifest names as q is not there", excerpt(file));
            let lost = || Error::invalid(&self.path, reason);
            return self.loose_values(name)?.ok_or_else(lost).map(Some);
        }
        let Some(path) = self.loose(entry, "packed")? else { return Ok(None) };
        let [rows, columns] = spec.shape[..] else {
            return Err(Error::invalid(path, format!("a weight of shape {:?} cannot be binary", spec.shape)));
        };
        Ok(Some((Some(ONE_BIT), Part::Raw(path, [rows, columns.div_ceil(8)]))))
    }

    /// The file of values in full precision that the manifest names for a weight, if it is there.
    fn loose_values(&self, name: &str) -> Result<Option<Found>> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        Ok(self.loose(entry, "fp32")?.map(|path| (None, Part::Npy(path))))
    }

    /// `NAME_shape` and `NAME_pc_axis`, where they are there, must say what is expected.
    fn check_members(&self, name: &str, shape: [usize; 2]) -> Result<()> {
        for (suffix, expected) in [("_shape", &shape[..]), ("_pc_axis", &[0])] {
            let part = Part::Member(format!("{name}{suffix}"));
            if let (Some(npz), Part::Member(key)) = (&self.npz, &part)
                && npz.contains(key)
            {
                let found = npz.array(key)?.to_i64().unwrap_or_default();
                if !found.iter().copied().eq(expected.iter().map(|d| *d as i64)) {
                    return Err(self.damaged(&part, format!("{found:?} found, {expected:?} expected")));
                }
            }
        }
        Ok(())
    }

    /// Loads a weight and looks into it.
    pub(super) fn verify(&self, located: &Located) -> Result<()> {
        match (self.load(located)?, &located.place) {
            (StoredWeight::Packed(matrix), Place::Packed { codes, .. }) => {
                codes::check_panels(&matrix).map_err(|reason| self.damaged(codes, reason))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn load(&self, located: &Located) -> Result<StoredWeight> {
        let shape = &located.info.shape;
        match (&located.place, &shape[..]) {
            (Place::Packed { form, codes, scales, zero_points }, &[rows, columns]) => {
                let scales = self.packed_scales(scales, rows)?;
                let data = self.array(codes)?.data;
                codes::pack((form.scheme, form.cells), [rows, columns], data, scales, zero_points.clone())
                    .map(StoredWeight::Packed)
                    .map_err(|e| self.damaged(codes, e))
            }
            (Place::Blocks(part, format), &[rows, columns]) => {
                let matrix = TypedRows::new(self.array(part)?.data, *format, [rows, columns]);
                let matrix = matrix.ok_or_else(|| self.damaged(part, "other bytes than the shape takes"))?;
                match matrix.fault() {
                    Some(fault) => Err(self.damaged(part, fault)),
                    None => Ok(StoredWeight::Rows(Arc::new(matrix))),
                }
            }
            (Place::Full(part), _) => match self.array(part)?.to_f32() {
                Some(values) => match finite::fault(shape, &values) {
                    Some(fault) => Err(self.damaged(part, fault)),
                    None => Ok(StoredWeight::Full(values)),
                },
                None => Err(self.damaged(part, "floating-point values are expected")),
            },
            _ => Ok(StoredWeight::Full(vec![1.0; shape.iter().product()])),
        }
    }
}

/// The forms of integers in the older tools, one for each width.
fn integer_forms() -> impl Iterator<Item = Form> {
    FORMS.iter().copied().filter(|form| form.cells == Cells::Fields && !form.is_widened())
}

/// The form with the scheme of fewer bits that a manifest of ours names.
fn stated_scheme(form: Form, entry: &Value) -> Form {
    let same = |other: &&Form| (other.suffix, other.cells) == (form.suffix, form.cells);
    FORMS.iter().filter(same).find(|other| entry["scheme"] == other.scheme.name()).copied().unwrap_or(form)
}
