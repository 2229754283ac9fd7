//! Vectors of f32 by name in a safetensors file, with a checksum in its metadata.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use bitllama_core::excerpt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::{Error, Result, atomic, checksums, finite};

/// The checksum's key in the metadata.
const SHA256: &str = "sha256";

/// Longest header of a safetensors file that is read. What is made of a header takes up to eight times its bytes, and those of
/// published files have less than a tenth of this.
pub(crate) const MAX_HEADER: usize = 10_000_000;

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
    let sum = sum(vectors.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])));
    let about = HashMap::from([(SHA256.to_string(), sum)]);
    atomic::write_bytes(path, &safetensors::serialize(views, Some(about)).map_err(|e| Error::invalid(path, e))?)
}

/// SHA-256 of names and bytes of vectors, which come by name.
fn sum<'a>(vectors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in vectors {
        for part in [name.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    checksums::hex(&hash.finalize())
}

/// Reads what [`write`] wrote. Files of version 0.1.0 have no checksum.
///
/// # Errors
/// [`Error`] if the file is missing or damaged, is no safetensors file, or holds numbers of another type or a value that is
/// infinite or NaN.
pub fn read(path: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let invalid = |reason: String| Error::invalid(path, reason);
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if header > MAX_HEADER as u64 {
        return Err(invalid(format!("the header takes {header} bytes, more than any file's of this kind")));
    }
    let (_, about) = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
    let views: BTreeMap<&str, TensorView> = tensors.iter().collect();
    let stored = about.metadata().as_ref().and_then(|about| about.get(SHA256));
    if stored.is_some_and(|stored| *stored != sum(views.iter().map(|(name, view)| (*name, view.data())))) {
        return Err(invalid("damaged: its SHA-256 is not that of its header".into()));
    }
    let mut all = BTreeMap::new();
    for (name, view) in views {
        if view.dtype() != Dtype::F32 {
            return Err(invalid(format!("{} is {:?}, not F32", excerpt(name), view.dtype())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.safetensors");
        write(&path, [("a".to_string(), &[1.0, 2.0][..]), ("b".to_string(), &[-3.0][..])]).unwrap();
        let expected = BTreeMap::from([("a".to_string(), vec![1.0, 2.0]), ("b".to_string(), vec![-3.0])]);
        assert_eq!(read(&path).unwrap(), expected);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("v.safetensors: damaged: its SHA-256 is not that of its header"), "{message}");

        // As version 0.1.0 wrote it.
        let view = TensorView::new(Dtype::F32, vec![1], &[0, 0, 128, 63]).unwrap();
        fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap()["a"], [1.0]);
    }
}
