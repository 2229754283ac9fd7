//! A safetensors file whose tensors are known one by one: types and shapes follow from the weights as they come, so the header is
//! written last, into a place that is left for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::{Error, Result};

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major.
    pub bytes: Vec<u8>,
}

/// A multiple of the bytes of any element. Readers map tensors, which have to lie at multiples of their elements.
const ALIGNMENT: usize = 8;

/// A file in the making.
pub(super) struct Writer<'a> {
    path: &'a Path,
    file: &'a mut BufWriter<File>,
    /// Bytes of the header, which is filled with spaces.
    header: usize,
    tensors: Vec<(String, TensorInfo)>,
    end: usize,
    /// Tensors that would push those behind them off their places.
    odd: Vec<Tensor>,
}

impl<'a> Writer<'a> {
    /// Begins the file `path` with a place for the header of tensors of these `names`.
    pub fn new<'n>(
        path: &'a Path,
        file: &'a mut BufWriter<File>,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self> {
        // A line of a header: name, type, shape, two offsets and their punctuation.
        let header = names.map(|name| name.len() + 160).sum::<usize>() + 64;
        let header = header.next_multiple_of(ALIGNMENT);
        file.write_all(&vec![b' '; 8 + header]).map_err(Error::io(path))?;
        Ok(Self { path, file, header, tensors: Vec::new(), end: 0, odd: Vec::new() })
    }

    /// Writes a tensor; one of an odd number of bytes is kept for the end.
    pub fn put(&mut self, tensor: Tensor) -> Result<()> {
        match tensor.bytes.len().is_multiple_of(ALIGNMENT) {
            true => self.append(tensor),
            false => {
                self.odd.push(tensor);
                Ok(())
            }
        }
    }

    fn append(&mut self, Tensor { name, dtype, shape, bytes }: Tensor) -> Result<()> {
        let data_offsets = (self.end, self.end + bytes.len());
        self.file.write_all(&bytes).map_err(Error::io(self.path))?;
        self.end += bytes.len();
        self.tensors.push((name, TensorInfo { dtype, shape, data_offsets }));
        Ok(())
    }

    /// Writes what was kept, and the header. `framework` is what readers check: `pt` or `mlx`.
    pub fn finish(mut self, framework: &str) -> Result<()> {
        let mut odd = std::mem::take(&mut self.odd);
        odd.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
        for tensor in odd {
            self.append(tensor)?;
        }
        let invalid = |reason: String| Error::invalid(self.path, reason);
        let about = HashMap::from([("format".to_string(), framework.to_string())]);
        let header = Metadata::new(Some(about), self.tensors).map_err(|e| invalid(e.to_string()))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| invalid(e.to_string()))?;
        if header.len() > self.header {
            return Err(invalid(format!("the header takes {} bytes, more than its place has", header.len())));
        }
        header.resize(self.header, b' ');
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(self.path))?;
        self.file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(self.path))?;
        self.file.write_all(&header).map_err(Error::io(self.path))
    }
}
