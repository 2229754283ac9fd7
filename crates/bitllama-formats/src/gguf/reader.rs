//! The container: header, metadata, tensor list. Nothing here knows what a model is.
//!
//! Every count, length and offset is checked against the file before it is used or allocated for.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitllama_core::excerpt;
use memmap2::Mmap;

use super::{TensorType, split};
use crate::stored::TypedRows;
use crate::{Error, Result};

/// A memory-mapped GGUF, in one file or split into parts.
pub struct Gguf {
    files: Vec<MappedFile>,
    /// Metadata of the first file.
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
}

/// A metadata value; widths are not kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `u8` to `u64`.
    Unsigned(u64),
    /// `i8` to `i64`.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// UTF-8.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// A metadata array.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Whole numbers of any width.
    Integers(Vec<i64>),
    /// `f32` or `f64`.
    Floats(Vec<f64>),
    /// `bool`.
    Bools(Vec<bool>),
    /// UTF-8.
    Strings(Vec<String>),
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Row-major: `[rows, columns]`. (The file lists dimensions the other way round.)
    pub shape: Vec<usize>,
    /// Number of the type in ggml, see [`TensorType::from_id`].
    pub format_id: u32,
    /// Bytes in the file; of unknown types only the start is known, and the range is empty.
    pub bytes: Range<usize>,
    /// Index of the file that holds it, counted from 0.
    pub file: usize,
}

/// Elements of a list that is kept: more than any vocabulary has tokens, or merges.
const MAX_LIST: usize = 1 << 20;

/// ggml has tensors of up to four dimensions.
const MAX_DIMENSIONS: u32 = 4;

impl Gguf {
    /// Maps a file, and the other parts where it is one of a split model's, and reads everything but the tensors' data.
    ///
    /// # Errors
    /// [`Error`] if it is no GGUF of version 2 or 3, little-endian, anything in it lies beyond its end, two tensors share
    /// bytes or a name, or a part of its set is missing.
    pub fn open(path: &Path) -> Result<Self> {
        split::complete(Self::one(path)?)
    }

    /// Maps one file and no other part of its set.
    pub(super) fn one(path: &Path) -> Result<Self> {
        let map = crate::map::open(path)?;
        let (metadata, tensors) = Cursor { path, bytes: &map, position: 0 }.file()?;
        Ok(Gguf { files: vec![MappedFile { path: path.to_path_buf(), map: Arc::new(map) }], metadata, tensors })
    }

    /// Adds the tensors of a further part.
    pub(super) fn absorb(&mut self, part: Gguf) -> Result<()> {
        for (name, tensor) in part.tensors {
            let moved = TensorInfo { file: self.files.len(), ..tensor };
            if let Some(other) = self.tensors.insert(name.clone(), moved) {
                let (name, other) = (excerpt(&name), self.files[other.file].path.display());
                return Err(Error::invalid(&part.files[0].path, format!("tensor {name} is in {other} as well")));
            }
        }
        self.files.extend(part.files);
        Ok(())
    }

    /// The file, or the first part.
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// The file that a tensor is in.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.files.get(tensor.file).map_or(self.path(), |file| &file.path)
    }

    /// Gives back the memory of what has been read; it is read from the file again when needed.
    pub fn release(&self) {
        self.files.iter().for_each(|file| crate::map::release(&file.map));
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A tensor's place and format.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Names of all tensors, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// A tensor's bytes.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.files.get(tensor.file).and_then(|file| file.map.get(tensor.bytes.clone())).unwrap_or_default()
    }

    /// The matrix of `shape` that the rows of a tensor from `first` on are, as it lies in the file; `None` for another number of
    /// dimensions, and a type that is not read or no rows of blocks.
    pub(super) fn rows(&self, tensor: &TensorInfo, first: usize, shape: &[usize]) -> Option<TypedRows> {
        let (TensorType::Blocks(format), &[rows, columns]) = (TensorType::from_id(tensor.format_id)?, shape) else {
            return None;
        };
        let row = tensor.bytes.len().checked_div(tensor.shape[0])?;
        let start = tensor.bytes.start + first * row;
        TypedRows::mapped(&self.files.get(tensor.file)?.map, start..start + rows * row, format, [rows, columns])
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key has a value that is none.
    pub fn whole(&self, key: &str) -> Result<Option<usize>> {
        let convert = |value: &Value| match value {
            Value::Unsigned(n) => usize::try_from(*n).ok(),
            Value::Signed(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        self.typed(key, "a whole number", convert)
    }

    /// A number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key has a value that is none.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let convert = |value: &Value| match value {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        };
        self.typed(key, "a number", convert)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key has a value that is none.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| if let Value::Bool(b) = value { Some(*b) } else { None })
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key has a value that is none.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| if let Value::String(s) = value { Some(s.as_str()) } else { None })
    }

    /// An array.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key has a value that is none.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", |value| if let Value::Array(a) = value { Some(a) } else { None })
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key is absent, or those of `get`.
    pub fn required<'a, T>(&'a self, key: &str, get: impl FnOnce(&'a Self, &str) -> Result<Option<T>>) -> Result<T> {
        get(self, key)?.ok_or_else(|| self.invalid(format!("has no metadata {key}")))
    }

    /// An error about this file.
    pub(super) fn invalid(&self, reason: impl std::fmt::Display) -> Error {
        Error::invalid(self.path(), reason)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.invalid(format!("metadata {key} is not {what}")))
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    fn file(mut self) -> Result<(HashMap<String, Value>, HashMap<String, TensorInfo>)> {
        if self.take(4, "the magic GGUF")? != b"GGUF" {
            return Err(self.invalid("is neither a model directory nor a GGUF file: the magic GGUF is missing"));
        }
        let version = self.u32("the version")?;
        if version.swap_bytes() < 0x1_0000 && version >= 0x1_0000 {
            return Err(self.invalid("is a big-endian GGUF; only little-endian ones are supported"));
        }
        if !(2..=3).contains(&version) {
            return Err(self.invalid(format!("is GGUF version {version}; versions 2 and 3 are supported")));
        }
        // The least that a tensor takes: length of the name, dimensions, one dimension, type, offset.
        let tensor_count = self.count(8 + 4 + 8 + 4 + 8, "tensors")?;
        // Length of the key, type, one byte.
        let value_count = self.count(8 + 4 + 1, "metadata values")?;
        let mut metadata = HashMap::new();
        for _ in 0..value_count {
            let key = self.string("a metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.invalid(format!("metadata {} comes twice", excerpt(&key))));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
            Some(_) => return Err(self.invalid("general.alignment is no power of two up to 2^20")),
        };
        let mut listed = Vec::new();
        for _ in 0..tensor_count {
            listed.push(self.tensor()?);
        }
        let data = self.position.next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        for (name, shape, format_id, offset) in listed {
            if !offset.is_multiple_of(alignment as u64) {
                let name = excerpt(&name);
                let reason = format!("tensor {name} is at offset {offset}, no multiple of the alignment {alignment}");
                return Err(self.invalid(reason));
            }
            let bytes = self.place(&name, &shape, format_id, data, offset)?;
            if tensors.insert(name.clone(), TensorInfo { shape, format_id, bytes, file: 0 }).is_some() {
                return Err(self.invalid(format!("tensor {} comes twice", excerpt(&name))));
            }
        }
        self.refuse_overlaps(&tensors)?;
        Ok((metadata, tensors))
    }

    /// Two tensors that share bytes are damage: at most one of them can be what it is called.
    fn refuse_overlaps(&self, tensors: &HashMap<String, TensorInfo>) -> Result<()> {
        let mut places: Vec<(&Range<usize>, &String)> = tensors.iter().map(|(name, t)| (&t.bytes, name)).collect();
        places.sort_unstable_by_key(|(bytes, name)| (bytes.start, bytes.end, *name));
        for pair in places.windows(2) {
            let [(first, one), (second, other)] = [pair[0], pair[1]];
            // No tensor is empty, even where its format is unknown and its end with it.
            if second.start < first.end || second.start == first.start {
                let (one, other) = (excerpt(one), excerpt(other));
                return Err(self.invalid(format!("tensors {one} and {other} lie on the same bytes")));
            }
        }
        Ok(())
    }

    /// Name, shape, format, and offset from the start of the data.
    fn tensor(&mut self) -> Result<(String, Vec<usize>, u32, u64)> {
        let name = self.string("a tensor name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let name = excerpt(&name);
            return Err(self.invalid(format!("tensor {name} has {dimensions} dimensions, expected 1 to 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            let size = usize::try_from(size).ok().filter(|n| *n > 0);
            shape.push(size.ok_or_else(|| self.invalid(format!("tensor {} has an empty dimension", excerpt(&name))))?);
        }
        shape.reverse();
        let format_id = self.u32(&name)?;
        let offset = self.u64(&name)?;
        Ok((name, shape, format_id, offset))
    }

    /// Bytes of a tensor, which lie within the file.
    fn place(&self, name: &str, shape: &[usize], format_id: u32, data: usize, offset: u64) -> Result<Range<usize>> {
        let beyond = || {
            let (size, name) = (self.bytes.len(), excerpt(name));
            self.invalid(format!("is cut: tensor {name} {shape:?} at offset {offset} ends beyond the {size} bytes"))
        };
        let start = usize::try_from(offset).ok().and_then(|o| data.checked_add(o)).ok_or_else(beyond)?;
        let Some(kind) = TensorType::from_id(format_id) else {
            return if start > self.bytes.len() { Err(beyond()) } else { Ok(start..start) };
        };
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(kind.block_len()) {
            let (name, kind, block) = (excerpt(name), kind.name(), kind.block_len());
            return Err(self.invalid(format!("tensor {name}: rows of {columns} are no multiple of {kind}'s {block}")));
        }
        let end = kind.bytes(shape).and_then(|bytes| start.checked_add(bytes));
        let end = end.filter(|end| *end <= self.bytes.len()).ok_or_else(beyond)?;
        Ok(start..end)
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 | 2 | 4 | 10 => Value::Unsigned(match kind {
                0 => self.array::<1>(key)?[0].into(),
                2 => u16::from_le_bytes(self.array(key)?).into(),
                4 => self.u32(key)?.into(),
                _ => self.u64(key)?,
            }),
            1 | 3 | 5 | 11 => Value::Signed(self.integer(kind, key)?),
            6 | 12 => Value::Float(self.float(kind, key)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(key)?),
            9 => {
                let kind = self.u32(key)?;
                Value::Array(self.values(kind, key)?)
            }
            _ => return Err(self.invalid(format!("metadata {} has the unknown type {kind}", excerpt(key)))),
        })
    }

    fn values(&mut self, kind: u32, key: &str) -> Result<Array> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => {
                let key = excerpt(key);
                return Err(self.invalid(format!("metadata {key} is an array of the unsupported type {kind}")));
            }
        };
        let count = self.count(size, key)?;
        if count > MAX_LIST {
            let key = excerpt(key);
            return Err(
                self.invalid(format!("metadata {key} is a list of {count}, more than any tokenizer's {MAX_LIST}"))
            );
        }
        Ok(match kind {
            6 | 12 => Array::Floats((0..count).map(|_| self.float(kind, key)).collect::<Result<_>>()?),
            7 => Array::Bools((0..count).map(|_| self.bool(key)).collect::<Result<_>>()?),
            8 => Array::Strings((0..count).map(|_| self.string(key)).collect::<Result<_>>()?),
            _ => Array::Integers((0..count).map(|_| self.integer(kind, key)).collect::<Result<_>>()?),
        })
    }

    fn integer(&mut self, kind: u32, key: &str) -> Result<i64> {
        Ok(match kind {
            0 => self.array::<1>(key)?[0].into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => self.u32(key)?.into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            10 => {
                let value = self.u64(key)?;
                i64::try_from(value)
                    .map_err(|_| self.invalid(format!("metadata {} holds {value}, too large", excerpt(key))))?
            }
            _ => i64::from_le_bytes(self.array(key)?),
        })
    }

    fn float(&mut self, kind: u32, key: &str) -> Result<f64> {
        Ok(if kind == 6 { f32::from_le_bytes(self.array(key)?).into() } else { f64::from_le_bytes(self.array(key)?) })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.array::<1>(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.invalid(format!("metadata {} is the bool {other}, expected 0 or 1", excerpt(key)))),
        }
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.count(1, what)?;
        let bytes = self.take(length, what)?;
        // Not lossy: two damaged tokens could become the same.
        String::from_utf8(bytes.to_vec()).map_err(|_| self.invalid(format!("{} is not UTF-8", excerpt(what))))
    }

    /// A count of things of at least `size` bytes each, so many as the rest of the file can hold.
    fn count(&mut self, size: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let rest = self.bytes.len() - self.position;
        let fits = usize::try_from(count).ok().filter(|n| *n <= rest / size);
        fits.ok_or_else(|| {
            let what = excerpt(what);
            self.invalid(format!(
                "is cut or damaged: {what} should be {count} by {size} bytes or more, {rest} are left"
            ))
        })
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&[u8]> {
        let start = self.position;
        let end = start.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            let (size, what) = (self.bytes.len(), excerpt(what));
            self.invalid(format!("is cut: {what} should take {length} bytes at byte {start}, the file has {size}"))
        })?;
        self.position = end;
        Ok(&self.bytes[start..end])
    }

    fn invalid(&self, reason: impl std::fmt::Display) -> Error {
        Error::invalid(self.path, reason)
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
