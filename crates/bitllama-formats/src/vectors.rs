//! Vectors of f32 by name in a safetensors file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitllama_core::excerpt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result, atomic, finite};

/// Writes `vectors` to `path`, whole or not at all.
///
/// # Errors
/// If the disk does not take it, or a value is infinite or NaN.
pub fn write<'a>(path: &Path, vectors: impl IntoIterator<Item = (String, &'a [f32])>) -> Result<()> {
    let bytes = |(name, numbers): (String, &[f32])| {
        refuse_fault(path, &name, numbers)?;
        Ok((name, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()))
    };
    let vectors: BTreeMap<String, Vec<u8>> = vectors.into_iter().map(bytes).collect::<Result<_>>()?;
    let views = vectors.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(|e| Error::invalid(path, e))?;
        Ok((name.as_str(), view))
    });
    let views: Vec<(&str, TensorView)> = views.collect::<Result<_>>()?;
    atomic::write_bytes(path, &safetensors::serialize(views, None).map_err(|e| Error::invalid(path, e))?)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`Error`] if the file is missing, is no safetensors file, or holds numbers of another type or a value that is infinite or
/// NaN.
pub fn read(path: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::invalid(path, e))?;
    let mut all = BTreeMap::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(Error::invalid(path, format!("{} is {:?}, not F32", excerpt(name), view.dtype())));
        }
        let data: Vec<f32> = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        refuse_fault(path, name, &data)?;
        all.insert(name.to_string(), data);
    }
    Ok(all)
}

fn refuse_fault(path: &Path, name: &str, numbers: &[f32]) -> Result<()> {
    match finite::fault(&[numbers.len()], numbers) {
        Some(fault) => Err(Error::invalid(path, format!("{} {fault}", excerpt(name)))),
        None => Ok(()),
    }
}
