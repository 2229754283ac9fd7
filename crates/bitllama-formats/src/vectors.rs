//! Vectors of f32 by name in a safetensors file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitllama_core::excerpt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result, atomic};

/// Longest header of a safetensors file that is read. What is made of a header takes up to eight times its bytes, and those of
/// published files have less than a tenth of this.
pub(crate) const MAX_HEADER: usize = 10_000_000;

/// Writes `vectors` to `path`, whole or not at all.
///
/// # Errors
/// If the disk does not take it.
pub fn write<'a>(path: &Path, vectors: impl IntoIterator<Item = (String, &'a [f32])>) -> Result<()> {
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let vectors: BTreeMap<String, Vec<u8>> =
        vectors.into_iter().map(|(name, numbers)| (name, bytes(numbers))).collect();
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
/// [`Error`] if the file is missing, is no safetensors file, or holds numbers of another type.
pub fn read(path: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if header > MAX_HEADER as u64 {
        return Err(Error::invalid(
            path,
            format!("the header takes {header} bytes, more than any file's of this kind"),
        ));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::invalid(path, e))?;
    let mut all = BTreeMap::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(Error::invalid(path, format!("{} is {:?}, not F32", excerpt(name), view.dtype())));
        }
        let data = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        all.insert(name.to_string(), data);
    }
    Ok(all)
}
