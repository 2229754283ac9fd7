//! A weight matrix in the form that the runtime multiplies with.

use bitllama_core::weights::WeightSpec;
use bitllama_core::{DenseMatrix, PackedMatrix};
use bitllama_formats::StoredWeight;

use crate::{Error, Result};

/// A weight matrix `[out_features, in_features]`, packed or in full precision.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// Low-bit codes with their scales.
    Packed(PackedMatrix),
    /// f32, row-major.
    Full(DenseMatrix),
}

impl Matrix {
    /// Takes the weight that a file holds under `spec`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it does not have the shape of `spec`.
    pub fn new(spec: &WeightSpec, weight: StoredWeight) -> Result<Self> {
        let wrong = |found| Error::Shape { name: spec.name.clone(), found, expected: format!("{:?}", spec.shape) };
        match weight {
            StoredWeight::Packed(packed) if spec.shape == [packed.rows(), packed.columns()] => Ok(Self::Packed(packed)),
            StoredWeight::Packed(packed) => Err(wrong(format!("[{}, {}]", packed.rows(), packed.columns()))),
            StoredWeight::Full(data) => match spec.shape.as_slice() {
                [_, columns] if data.len() == spec.len() => Ok(Self::Full(DenseMatrix { data, columns: *columns })),
                _ => Err(wrong(format!("{} numbers", data.len()))),
            },
        }
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.rows(),
            Self::Full(full) => full.data.len() / full.columns,
        }
    }

    /// `x * weight^T`: `[n, in_features]` to `[n, out_features]`.
    pub fn apply(&self, n: usize, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; n * self.rows()];
        match self {
            Self::Packed(packed) => bitllama_kernels::matmul(packed, x, &mut out),
            Self::Full(full) => bitllama_kernels::matmul_full(&full.data, full.columns, x, &mut out),
        }
        out
    }

    /// Writes the weights of one row into `out` (`[in_features]`).
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Packed(packed) => packed.dequantize_row_into(row, out),
            Self::Full(full) => out.copy_from_slice(&full.data[row * full.columns..(row + 1) * full.columns]),
        }
    }
}
