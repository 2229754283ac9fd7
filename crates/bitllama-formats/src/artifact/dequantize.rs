//! Low-bit weights of a manifest, one by one and whatever model they are of: for whoever wants their numbers and no model.

use std::path::Path;

use bitllama_core::excerpt;
use bitllama_core::weights::{Kind, WeightSpec};
use serde_json::Value;

use super::files::{Files, suffixes};
use super::forms::FULL;
use super::read::Located;
use super::{StoredWeight, WeightInfo};
use crate::{Error, Result, finite};

/// The low-bit weights that a manifest names, of this program or of the older tools.
pub struct LowBit {
    weights: Vec<Located>,
    files: Files,
}

impl LowBit {
    /// Opens a manifest and finds the codes of all weights that have some.
    ///
    /// # Errors
    /// [`Error`] if the manifest is damaged or names a path out of its folder, or if a weight's codes or scales are missing or of
    /// another shape.
    pub fn open(manifest: &Path) -> Result<Self> {
        let files = Files::open(manifest)?;
        files.refuse_row_major()?;
        let invalid = |reason: String| Error::invalid(&files.path, reason);
        if files.is_lone() {
            return Err(invalid("an archive without a manifest; name the manifest".into()));
        }
        let entries = files.manifest["weights"].as_object().or(files.manifest.as_object());
        let mut weights = Vec::new();
        for (name, entry) in entries.into_iter().flatten().filter(|(_, entry)| is_low_bit(entry)) {
            let dimensions = entry["shape"].as_array().map(|shape| shape.iter().map(Value::as_u64));
            let shape: Option<Vec<usize>> = dimensions
                .and_then(|sizes| sizes.map(|size| size.and_then(|size| usize::try_from(size).ok())).collect());
            let shape = shape.filter(|shape| shape.len() == 2);
            let shape =
                shape.ok_or_else(|| invalid(format!("{}: no shape [out, in] beside its codes", excerpt(name))))?;
            let spec = WeightSpec { name: name.clone(), shape, kind: Kind::Linear };
            weights.push(files.locate(&spec, &mut Vec::new())?);
        }
        weights.retain(|weight| weight.info.scheme.is_some());
        Ok(Self { weights, files })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Value {
        &self.files.manifest
    }

    /// The weights under the manifest's names for them.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = &WeightInfo> {
        self.weights.iter().map(|weight| &weight.info)
    }

    /// The numbers of the weight at `index` of [`LowBit::weights`], row-major.
    ///
    /// # Errors
    /// [`Error`] if its bytes are damaged, or a number is not finite.
    pub fn values(&self, index: usize) -> Result<Vec<f32>> {
        let located = &self.weights[index];
        let values = self.files.load(located).map(StoredWeight::into_values)?;
        match finite::fault(&located.info.shape, &values) {
            Some(fault) => Err(Error::invalid(&self.files.path, format!("{} {fault}", located.info.name))),
            None => Ok(values),
        }
    }
}

/// True for an entry that names codes, and not only numbers in full precision.
fn is_low_bit(entry: &Value) -> bool {
    let key = entry["npz_key"].as_str();
    let codes = |key: &str| suffixes().any(|suffix| !suffix.is_empty() && suffix != FULL && key.ends_with(suffix));
    key.is_some_and(codes) || ["packed", "q", "ternary"].iter().any(|field| entry[*field].is_string())
}
