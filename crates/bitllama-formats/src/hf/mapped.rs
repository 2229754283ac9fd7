//! One safetensors file, memory-mapped, and the tensors in it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitllama_core::excerpt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};

use super::CONFIG;
use crate::gguf::BlockFormat;
use crate::stored::TypedRows;
use crate::vectors::MAX_HEADER;
use crate::{Error, Result};

/// A file whose header was read and checked: its tensors fill it without a gap and without sharing bytes.
pub(super) struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
    /// Offset of the first tensor.
    data: usize,
    header: Metadata,
}

/// A tensor of a type that is read.
pub(super) struct Tensor<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
    dtype: Dtype,
    map: &'a Arc<Mmap>,
    /// Place of its bytes in the file.
    range: Range<usize>,
}

/// A tensor of any type as it lies in a file.
pub(super) struct Raw<'a> {
    pub bytes: &'a [u8],
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

impl MappedFile {
    pub fn open(path: PathBuf) -> Result<Self> {
        let map = crate::map::open(&path)?;
        let invalid = |reason: String| Error::invalid(&path, reason);
        let size = map.len();
        let length = map.first_chunk().map(|b| u64::from_le_bytes(*b));
        let length =
            length.ok_or_else(|| invalid(format!("is {size} bytes long, a safetensors file has at least 8")))?;
        let data = usize::try_from(length).ok().and_then(|n| n.checked_add(8)).filter(|end| *end <= size);
        let data = data.ok_or_else(|| invalid(format!("the header takes {length} bytes, the file has only {size}")))?;
        if data > MAX_HEADER {
            return Err(invalid(format!("the header takes {length} bytes, more than any model's")));
        }
        let header: Metadata =
            serde_json::from_slice(&map[8..data]).map_err(|e| invalid(format!("damaged header: {e}")))?;
        if header.data_len() != size - data {
            let (expected, found) = (header.data_len(), size - data);
            return Err(invalid(format!("tensors take {expected} bytes by the header, the file has {found}")));
        }
        Ok(MappedFile { path, map: Arc::new(map), data, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn tensor_count(&self) -> usize {
        self.header.offset_keys().len()
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The tensor `name`, if it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is of another shape, or of a type that is not read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor<'_>>> {
        let Some(info) = self.header.info(name) else { return Ok(None) };
        if info.shape != shape {
            let found = format!("{:?}", info.shape);
            let reason = format!("tensor {name} has shape {}, expected {shape:?} by {CONFIG}", excerpt(&found));
            return Err(Error::invalid(&self.path, reason));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let reason = format!("tensor {name} is of type {:?}; F32, F16 and BF16 are supported", info.dtype);
            return Err(Error::invalid(&self.path, reason));
        }
        let (start, end) = info.data_offsets;
        let range = self.data + start..self.data + end;
        let bytes = self.map.get(range.clone());
        let bytes = bytes.ok_or_else(|| Error::invalid(&self.path, format!("tensor {name} ends beyond the file")))?;
        Ok(Some(Tensor { path: &self.path, bytes, dtype: info.dtype, map: &self.map, range }))
    }

    /// The tensor `name` of any type and shape, if it is there.
    pub fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end)?;
        Some(Raw { bytes, dtype: info.dtype, shape: &info.shape })
    }

    /// The bytes of the tensor `name`, which has elements of one byte.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not there, of another shape or of another type.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        let invalid = |reason: String| Error::invalid(&self.path, reason);
        let info = self.header.info(name).ok_or_else(|| invalid(format!("has no tensor {name}")))?;
        if info.shape != shape || info.dtype != Dtype::U8 {
            let found = format!("{:?} of {:?}", info.shape, info.dtype);
            return Err(invalid(format!("tensor {name} is {}, expected {shape:?} of U8", excerpt(&found))));
        }
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end);
        bytes.ok_or_else(|| invalid(format!("tensor {name} ends beyond the file")))
    }

    /// Gives back the memory of what has been read.
    pub fn release(&self) {
        crate::map::release(&self.map);
    }
}

impl<'a> Tensor<'a> {
    /// The `count` values from `first` on, which it has.
    pub fn part(self, first: usize, count: usize) -> Tensor<'a> {
        let size = if self.dtype == Dtype::F32 { 4 } else { 2 };
        let range = self.range.start + first * size..self.range.start + (first + count) * size;
        Tensor { bytes: &self.bytes[first * size..(first + count) * size], range, ..self }
    }

    /// All values, row-major.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F16 => self.bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    /// The matrix as it lies in the file, where it is one of 16 bits.
    pub fn rows(&self, shape: &[usize]) -> Option<TypedRows> {
        let (format, &[rows, columns]) = (self.halves()?, shape) else { return None };
        TypedRows::mapped(self.map, self.range.clone(), format, [rows, columns])
    }

    fn halves(&self) -> Option<BlockFormat> {
        match self.dtype {
            Dtype::F16 => Some(BlockFormat::F16),
            Dtype::BF16 => Some(BlockFormat::Bf16),
            _ => None,
        }
    }

    /// True if two tensors of one shape hold the same numbers, in whatever types.
    pub fn equals(&self, other: &Tensor) -> bool {
        let same_bytes = self.dtype == other.dtype && self.bytes == other.bytes;
        same_bytes || (0..self.len()).all(|i| self.value(i) == other.value(i))
    }

    fn len(&self) -> usize {
        self.bytes.len() / if self.dtype == Dtype::F32 { 4 } else { 2 }
    }

    /// The value at position `i`; none beyond the end.
    fn value(&self, i: usize) -> Option<f32> {
        match self.dtype {
            Dtype::F16 => self.bytes.as_chunks().0.get(i).map(|b| f16::from_le_bytes(*b).to_f32()),
            Dtype::BF16 => self.bytes.as_chunks().0.get(i).map(|b| bf16::from_le_bytes(*b).to_f32()),
            _ => self.bytes.as_chunks().0.get(i).map(|b| f32::from_le_bytes(*b)),
        }
    }
}
