//! Trained scales beside the latent weights of a checkpoint: a safetensors file of f32 vectors `NAME.scales` and, where
//! the weight `NAME` has them, `NAME.zero_points`.

use std::collections::BTreeMap;
use std::path::Path;

use bitllama_core::rounding::{Scales, StoredScales};
use bitllama_core::{DenseMatrix, excerpt};

use crate::{Error, Result, vectors};

const SCALES: &str = ".scales";
const ZERO_POINTS: &str = ".zero_points";

/// Writes `scales` to `path`, whole or not at all.
///
/// # Errors
/// As [`vectors::write`].
pub fn write(path: &Path, scales: &StoredScales) -> Result<()> {
    vectors::write(path, named(scales))
}

/// The vectors of `scales` by the names that they have in files.
pub fn named(scales: &StoredScales) -> impl Iterator<Item = (String, &[f32])> {
    scales.iter().flat_map(|(name, Scales { scales, zero_points })| {
        let points = zero_points.as_ref().map(|points| (format!("{name}{ZERO_POINTS}"), &points.data[..]));
        [(format!("{name}{SCALES}"), &scales.data[..])].into_iter().chain(points)
    })
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`Error`] if the file is missing, is no safetensors file, or holds anything else, or a value that is infinite or NaN.
pub fn read(path: &Path) -> Result<StoredScales> {
    let mut vectors = vectors::read(path)?;
    let scales = taken(&mut vectors);
    match vectors.keys().next() {
        Some(key) => Err(Error::invalid(path, format!("`{}` is neither scales nor zero points of any", excerpt(key)))),
        None => Ok(scales),
    }
}

/// Takes the scales out of the vectors of a file.
pub fn taken(vectors: &mut BTreeMap<String, Vec<f32>>) -> StoredScales {
    let numbers = |data: Vec<f32>| DenseMatrix { data, columns: 1 };
    let names: Vec<String> = vectors.keys().filter_map(|key| Some(key.strip_suffix(SCALES)?.to_string())).collect();
    let of = |name: String| {
        let scales = numbers(vectors.remove(&format!("{name}{SCALES}"))?);
        let zero_points = vectors.remove(&format!("{name}{ZERO_POINTS}")).map(numbers);
        Some((name, Scales { scales, zero_points }))
    };
    names.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn scales_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scales.safetensors");
        let vector = |data: &[f32]| DenseMatrix { data: data.to_vec(), columns: 1 };
        let mut scales = StoredScales::new();
        write(&path, &scales).unwrap();
        assert_eq!(read(&path).unwrap(), scales);
        scales.insert("a.weight".into(), Scales { scales: vector(&[0.5, 1.5]), zero_points: None });
        let zero_points = Some(vector(&[3.0]));
        scales.insert("b.weight".into(), Scales { scales: vector(&[2.0]), zero_points });
        write(&path, &scales).unwrap();
        assert_eq!(read(&path).unwrap(), scales);
        fs::write(&path, b"garbage").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("scales.safetensors"));
    }
}
