//! What calibration found, kept in a file for other runs that start the same way.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use bitllama_core::rounding::StoredScales;
use bitllama_formats::{Error as FormatError, atomic, notes, output, scales, vectors};

/// Weights and trained scales by name, as [`super::starts`] gives them.
pub type Found = (HashMap<String, Vec<f32>>, StoredScales);

/// The content of the file `path`; found and written there if there is no such file. One that is damaged is named on standard
/// error and replaced.
///
/// # Errors
/// Those of `find`; a file that cannot be written.
pub fn kept(path: &Path, find: impl FnOnce() -> Result<Found>) -> Result<Found> {
    if path.is_file() {
        match vectors::read(path) {
            Ok(mut vectors) => {
                let scales = scales::taken(&mut vectors);
                return Ok((vectors.into_iter().collect(), scales));
            }
            Err(FormatError::Invalid { reason, .. }) => notes::tell(path, &format!("{reason}; it is made again")),
            Err(error) => return Err(error.into()),
        }
    }
    let (weights, scales) = find()?;
    if let Some(folder) = path.parent() {
        atomic::create_folders(folder)?;
        output::recover(folder)?;
    }
    let weights_named = weights.iter().map(|(name, weight)| (name.clone(), &weight[..]));
    vectors::write(path, weights_named.chain(scales::named(&scales)))?;
    Ok((weights, scales))
}

#[cfg(test)]
mod tests {
    use bitllama_core::DenseMatrix;
    use bitllama_core::rounding::{Offsets, Scales};

    use super::*;

    #[test]
    fn found_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/start.safetensors");
        let numbers = |data: &[f32]| DenseMatrix { data: data.to_vec(), columns: 1 };
        let weights = HashMap::from([("a.weight".to_string(), vec![1.0, -2.0])]);
        let offsets = Some(Offsets::ZeroPoints(numbers(&[3.0])));
        let scales = StoredScales::from([("a.weight".to_string(), Scales { scales: numbers(&[0.5]), offsets })]);
        let found = (weights, scales);
        assert_eq!(kept(&path, || Ok(found.clone())).unwrap(), found);
        assert_eq!(kept(&path, || unreachable!()).unwrap(), found);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&b"garbage"[..], &flipped, &whole[..whole.len() - 4]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(kept(&path, || Ok(found.clone())).unwrap(), found);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "made again");
        }
    }
}
