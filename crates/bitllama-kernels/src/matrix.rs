//! A weight matrix: packed, in full precision, or as its file has it.

use std::sync::Arc;

use bitllama_core::{Activation, DenseMatrix, PackedMatrix, StoredRows};

use crate::weight::Weight;

/// A weight matrix `[out_features, in_features]`.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // A model has some hundreds.
pub enum Matrix {
    /// Low-bit codes with their scales, those of a GGUF's blocks among them.
    Packed(Weight),
    /// f32, row-major.
    Full(DenseMatrix),
    /// 16 bits, or blocks without whole codes, made f32 a tile of rows at a time. Products are those of the same numbers in f32, to the bit.
    Stored(Arc<dyn StoredRows>),
}

impl From<PackedMatrix> for Matrix {
    /// Packed bytes stay where they are. A matrix that the kernels cannot sum in 32 bits (see [`Weight::new`]) is
    /// dequantized.
    fn from(packed: PackedMatrix) -> Self {
        Weight::new(packed).map_or_else(|packed| Self::Full(packed.dequantize()), Self::Packed)
    }
}

impl From<Arc<dyn StoredRows>> for Matrix {
    /// Blocks of codes are put into panels, on the threads of rayon's pool; other formats stay as they are stored.
    fn from(stored: Arc<dyn StoredRows>) -> Self {
        let weight = stored.panels().and_then(|blocks| Weight::of_blocks(blocks, stored.bytes()));
        weight.map_or(Self::Stored(stored), Self::Packed)
    }
}

impl Matrix {
    /// [`Weight::with_activation`]; a matrix that is not packed reads its inputs as they are.
    pub fn with_activation(self, activation: Option<Activation>) -> Self {
        match self {
            Self::Packed(weight) => Self::Packed(weight.with_activation(activation)),
            other => other,
        }
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.rows(),
            Self::Full(full) => full.data.len() / full.columns,
            Self::Stored(stored) => stored.rows(),
        }
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.columns(),
            Self::Full(full) => full.columns,
            Self::Stored(stored) => stored.columns(),
        }
    }

    /// Bytes that a product with one row of activations reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.bytes(),
            Self::Full(full) => size_of_val(full.data.as_slice()),
            Self::Stored(stored) => stored.bytes(),
        }
    }

    /// Bytes that it takes in a file.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.stored_bytes(),
            Self::Full(full) => size_of_val(full.data.as_slice()),
            Self::Stored(stored) => stored.bytes(),
        }
    }

    /// Writes the weights of one row into `out` (`[in_features]`).
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Packed(weight) => weight.dequantize_row_into(row, out),
            Self::Full(full) => out.copy_from_slice(&full.data[row * full.columns..(row + 1) * full.columns]),
            Self::Stored(stored) => stored.rows_into(row, out),
        }
    }

    /// Asks the system to keep full-precision weights in large pages, where it has any: they are read in long streams,
    /// which small pages interrupt. Takes as long as copying them, which for a GGUF's panels is more than it gains; packed and
    /// stored bytes stay in their memory map.
    pub fn prefer_large_pages(&self) {
        if let Self::Full(full) = self {
            large_pages(bytemuck::cast_slice(&full.data));
        }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
fn large_pages(data: &[u8]) {
    const LARGE: usize = 2 << 20;
    let (start, end) = (data.as_ptr() as usize, data.as_ptr() as usize + data.len());
    let (first, last) = (start.next_multiple_of(LARGE), end / LARGE * LARGE);
    if first < last {
        // SAFETY: the range lies within `data`; the advice moves its pages and leaves what is in them. A system that
        // does not know it refuses, which changes nothing.
        unsafe {
            libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE);
            libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_COLLAPSE);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn large_pages(_: &[u8]) {}
