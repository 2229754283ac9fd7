//! Trained scales beside the latent weights of a checkpoint: a safetensors file of f32 vectors `NAME.scales` and, where
//! the weight `NAME` has them, `NAME.zero_points` or `NAME.minimums`.

use std::collections::BTreeMap;
use std::path::Path;

use bitllama_core::rounding::{Offsets, Scales, StoredScales};
use bitllama_core::{DenseMatrix, excerpt};

use crate::{Error, Result, vectors};

const SCALES: &str = ".scales";
const ZERO_POINTS: &str = ".zero_points";
const MINIMUMS: &str = ".minimums";

/// Writes `scales` to `path`, whole or not at all.
///
/// # Errors
/// As [`vectors::write`].
pub fn write(path: &Path, scales: &StoredScales) -> Result<()> {
    vectors::write(path, named(scales))
}

/// The vectors of `scales` by the names that they have in files.
pub fn named(scales: &StoredScales) -> impl Iterator<Item = (String, &[f32])> {
    scales.iter().flat_map(|(name, Scales { scales, offsets })| {
        let offsets = offsets.as_ref().map(|offsets| {
            let key = match offsets {
                Offsets::ZeroPoints(_) => ZERO_POINTS,
                Offsets::Minimums(_) => MINIMUMS,
            };
            (format!("{name}{key}"), &offsets.numbers().data[..])
        });
        [(format!("{name}{SCALES}"), &scales.data[..])].into_iter().chain(offsets)
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
        let mut offsets = |key: &str| vectors.remove(&format!("{name}{key}")).map(numbers);
        let zero_points = offsets(ZERO_POINTS).map(Offsets::ZeroPoints);
        let offsets = zero_points.or_else(|| offsets(MINIMUMS).map(Offsets::Minimums));
        Some((name, Scales { scales, offsets }))
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
        scales.insert("a.weight".into(), Scales { scales: vector(&[0.5, 1.5]), offsets: None });
        for (name, offsets) in
            [("b.weight", Offsets::ZeroPoints(vector(&[3.0]))), ("c.weight", Offsets::Minimums(vector(&[0.5])))]
        {
            scales.insert(name.into(), Scales { scales: vector(&[2.0]), offsets: Some(offsets) });
        }
        write(&path, &scales).unwrap();
        assert_eq!(read(&path).unwrap(), scales);
        fs::write(&path, b"garbage").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("scales.safetensors"));
    }
}
