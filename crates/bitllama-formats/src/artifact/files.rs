//! The arrays that an artifact is made of: members of its NPZ, and the loose files that a manifest names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use bitllama_core::excerpt;
use serde_json::Value;

use super::forms::{BARE, FORMS, FULL};
use super::manifest::FORMAT_VERSION;
use super::{MANIFEST_FILE, WEIGHTS_FILE};
use crate::npz::{self, Array, Dtype, Header, Npz};
use crate::{Error, Result, json, version};

/// The NPZ and the loose files that a manifest names.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    /// The manifest, or the NPZ that stands alone.
    pub(super) path: PathBuf,
    pub(super) manifest: Value,
    pub(super) npz: Option<Npz>,
}

/// Where one array is.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Member(String),
    Npy(PathBuf),
    /// Bytes without a header, of this shape.
    Raw(PathBuf, [usize; 2]),
    /// One number a line.
    Text(PathBuf),
}

impl Files {
    /// Opens a folder with a `manifest.json`, a manifest of any name, or an NPZ that stands alone.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let is = |extension| path.extension().is_some_and(|found| found == extension);
        match path.is_file() {
            true if is("npz") => {
                let npz = Some(Npz::open(path)?);
                Ok(Self { folder: folder_of(path), path: path.to_path_buf(), manifest: Value::Null, npz })
            }
            true if is("json") => Self::of_manifest(path, beside),
            _ => Self::of_manifest(&path.join(MANIFEST_FILE), inside),
        }
    }

    /// `npz` finds the NPZ that a manifest names.
    fn of_manifest(path: &Path, npz: fn(&Path, &str) -> Result<PathBuf, String>) -> Result<Self> {
        let folder = folder_of(path);
        let manifest = json::read(path)?;
        if !manifest.is_object() {
            return Err(Error::invalid(path, "not a JSON object"));
        }
        version::check(path, &manifest, FORMAT_VERSION)?;
        let named = match &manifest["model"]["source_npz"] {
            Value::String(name) => npz(&folder, name).map_err(|reason| Error::invalid(path, reason))?,
            _ => folder.join(WEIGHTS_FILE),
        };
        // Without an NPZ the loose files are enough; where they are not there either, the weights say so.
        let npz = named.is_file().then(|| Npz::open(&named)).transpose()?;
        Ok(Self { folder, path: path.to_path_buf(), manifest, npz })
    }

    /// True for an NPZ without a manifest.
    pub(super) fn is_lone(&self) -> bool {
        self.manifest.is_null()
    }

    /// An upper bound of the number of weights.
    pub(super) fn array_count(&self) -> usize {
        let named = self.manifest["weights"].as_object().or(self.manifest.as_object()).map_or(0, |map| map.len());
        named + self.npz.as_ref().map_or(0, |npz| npz.keys().len())
    }

    /// Whether there is a weight under the name `name`, in whatever form.
    pub(super) fn has(&self, name: &str) -> bool {
        let in_npz = |suffix: &str| self.npz.as_ref().is_some_and(|npz| npz.contains(&format!("{name}{suffix}")));
        self.entry(name).is_some() || suffixes().any(in_npz)
    }

    /// The names of all weights that the manifest or the NPZ has, in whatever form.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        let named = self.manifest["weights"].as_object();
        let in_manifest = named.into_iter().flat_map(|named| named.keys().map(String::as_str));
        // Under its bare name only what is called like a parameter is a weight.
        let of_key = |key| match suffixes().filter(|s| *s != BARE).find_map(|s| str::strip_suffix(key, s)) {
            Some(name) => Some(name),
            None => Some(key).filter(|key| key.ends_with(".weight") || key.ends_with(".bias")),
        };
        in_manifest.chain(self.npz.iter().flat_map(Npz::keys).filter_map(of_key)).collect()
    }

    /// `out_features` of the matrix `name`, as the manifest states it or as the NPZ holds it.
    pub(super) fn rows_of(&self, name: &str) -> Option<usize> {
        if let Some(rows) = self.entry(name).and_then(|entry| entry["shape"][0].as_u64()) {
            return usize::try_from(rows).ok();
        }
        let npz = self.npz.as_ref()?;
        let key = suffixes().map(|suffix| format!("{name}{suffix}")).find(|key| npz.contains(key))?;
        npz.header(&key).ok()?.shape.first().copied()
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Value> {
        let named = self.manifest.get("weights").and_then(|weights| weights.get(name));
        named.or_else(|| self.manifest.get(name)).filter(|entry| entry.is_object())
    }

    pub(super) fn array(&self, part: &Part) -> Result<Array> {
        let damaged = |reason: String| self.damaged(part, reason);
        match (part, &self.npz) {
            (Part::Member(key), Some(npz)) => npz.array(key),
            (Part::Member(key), None) => Err(Error::invalid(&self.folder, format!("{key}: no such array"))),
            (Part::Npy(path), _) => npz::parse(&npz::map_file(path)?).map_err(damaged),
            (Part::Raw(path, shape), _) => {
                let data = npz::map_file(path)?;
                match data.len() == shape[0] * shape[1] {
                    true => Ok(Array { dtype: Dtype::U8, shape: shape.to_vec(), data }),
                    false => Err(damaged(format!("{} bytes found, {shape:?} expected", data.len()))),
                }
            }
            (Part::Text(path), _) => {
                let text = fs::read_to_string(path).map_err(Error::io(path))?;
                let scales: Result<Vec<f32>, _> = text.split_whitespace().map(str::parse).collect();
                let scales = scales.map_err(|e| damaged(e.to_string()))?;
                let data = bytemuck::cast_slice(&scales).to_vec().into();
                Ok(Array { dtype: Dtype::F32, shape: vec![scales.len()], data })
            }
        }
    }

    pub(super) fn header(&self, part: &Part) -> Result<Header> {
        match (part, &self.npz) {
            (Part::Member(key), Some(npz)) => npz.header(key),
            _ => self.array(part).map(|Array { dtype, shape, data }| Header {
                dtype,
                shape,
                data_start: 0,
                data_len: data.len(),
            }),
        }
    }

    pub(super) fn expect(&self, part: &Part, header: &Header, dtypes: &[Dtype], shape: &[usize]) -> Result<()> {
        if dtypes.contains(&header.dtype) && header.shape == shape {
            return Ok(());
        }
        let found = format!("{:?} of {}", header.shape, header.dtype.descr());
        Err(self.damaged(part, format!("{found} found, {shape:?} of {} expected", dtypes[0].descr())))
    }

    /// The file that a manifest entry names in `field`, if it is there.
    ///
    /// # Errors
    /// A path that leads out of the folder.
    pub(super) fn loose(&self, entry: &Value, field: &str) -> Result<Option<PathBuf>> {
        match entry[field].as_str().map(|name| inside(&self.folder, name)) {
            None => Ok(None),
            Some(Ok(path)) => Ok(Some(path).filter(|path| path.is_file())),
            Some(Err(reason)) => Err(Error::invalid(&self.path, reason)),
        }
    }

    pub(super) fn damaged(&self, part: &Part, reason: impl std::fmt::Display) -> Error {
        match (part, &self.npz) {
            (Part::Member(key), Some(npz)) => Error::invalid(npz.path(), format!("{key}: {reason}")),
            (Part::Member(key), None) => Error::invalid(&self.folder, format!("{key}: {reason}")),
            (Part::Npy(path) | Part::Raw(path, _) | Part::Text(path), _) => Error::invalid(path, reason),
        }
    }
}

/// Suffixes of a weight's name in an NPZ, in the order in which a reader looks for them.
pub(super) fn suffixes() -> impl Iterator<Item = &'static str> {
    FORMS.iter().map(|form| form.suffix).chain([FULL, BARE])
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

/// The file of that name beside a manifest, wherever the path that the older tools wrote into it led: they name the NPZ as they
/// were given it, from the folder that they were started in.
fn beside(folder: &Path, name: &str) -> Result<PathBuf, String> {
    inside(folder, name).or_else(|reason| {
        let file = name.rsplit(['/', '\\']).next().unwrap_or_default();
        inside(folder, file).map_err(|_| reason)
    })
}

/// The file `name` of a manifest, which must lie below `folder`.
fn inside(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    let below = path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    match below && !name.is_empty() && !name.contains(['\\', ':']) {
        true => Ok(folder.join(path)),
        false => Err(format!("the path `{}` leads out of the folder", excerpt(name))),
    }
}
