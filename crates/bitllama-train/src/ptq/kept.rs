//! What calibration found, kept in a file for other runs that start the same way.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use bitllama_core::rounding::StoredScales;
use bitllama_formats::{atomic, output, scales, vectors};

/// Weights and trained scales by name, as [`super::starts`] gives them.
pub type Found = (HashMap<String, Vec<f32>>, StoredScales);

/// What the file `path` has; found and written there if there is no such file.
///
/// # Errors
/// Those of `find`; a file that is damaged or cannot be written.
pub fn kept(path: &Path, find: impl FnOnce() -> Result<Found>) -> Result<Found> {
    if path.is_file() {
        let mut vectors = vectors::read(path)?;
        let scales = scales::taken(&mut vectors);
        return Ok((vectors.into_iter().collect(), scales));
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
    use bitllama_core::rounding::Scales;

    use super::*;

    #[test]
    fn found_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/start.safetensors");
        let numbers = |data: &[f32]| DenseMatrix { data: data.to_vec(), columns: 1 };
        let weights = HashMap::from([("a.weight".to_string(), vec![1.0, -2.0])]);
        let zero_points = Some(numbers(&[3.0]));
        let scales = StoredScales::from([("a.weight".to_string(), Scales { scales: numbers(&[0.5]), zero_points })]);
        let found = (weights, scales);
        assert_eq!(kept(&path, || Ok(found.clone())).unwrap(), found);
        assert_eq!(kept(&path, || unreachable!()).unwrap(), found);
        std::fs::write(&path, b"garbage").unwrap();
        let error = kept(&path, || unreachable!()).unwrap_err().to_string();
        assert!(error.contains("start.safetensors"), "{error}");
    }
}
