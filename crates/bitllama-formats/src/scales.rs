//! Trained scales beside the latent weights of a checkpoint: a safetensors file of f32 vectors `NAME.scales` and, where
//! the weight `NAME` has them, `NAME.zero_points`.

use std::fs;
use std::path::Path;

use bitllama_core::DenseMatrix;
use bitllama_core::rounding::{Scales, StoredScales};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result, atomic};

const SCALES: &str = ".scales";
const ZERO_POINTS: &str = ".zero_points";

/// Writes `scales` to `path`, whole or not at all.
///
/// # Errors
/// If the disk does not take it.
pub fn write(path: &Path, scales: &StoredScales) -> Result<()> {
    let bytes = |numbers: &DenseMatrix| -> Vec<u8> { numbers.data.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let mut vectors = Vec::new();
    for (name, scales) in scales {
        vectors.push((format!("{name}{SCALES}"), bytes(&scales.scales)));
        vectors.extend(scales.zero_points.as_ref().map(|points| (format!("{name}{ZERO_POINTS}"), bytes(points))));
    }
    vectors.sort();
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
/// [`Error`] if the file is missing, is no safetensors file, or holds anything else.
pub fn read(path: &Path) -> Result<StoredScales> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::invalid(path, e))?;
    let vector = |name: &str| {
        let view = tensors.tensor(name).map_err(|e| Error::invalid(path, e))?;
        if view.dtype() != Dtype::F32 {
            return Err(Error::invalid(path, format!("{name} is {:?}, not F32", view.dtype())));
        }
        let data = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(DenseMatrix { data, columns: 1 })
    };
    let mut all = StoredScales::new();
    for key in tensors.names() {
        if let Some(name) = key.strip_suffix(SCALES) {
            let points = format!("{name}{ZERO_POINTS}");
            let zero_points = if tensors.names().contains(&points.as_str()) { Some(vector(&points)?) } else { None };
            all.insert(name.to_string(), Scales { scales: vector(key)?, zero_points });
        } else if !key.ends_with(ZERO_POINTS) {
            return Err(Error::invalid(path, format!("`{key}` is neither scales nor zero points")));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
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
