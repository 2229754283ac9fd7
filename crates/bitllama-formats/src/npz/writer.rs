//! Writes an archive one array at a time.

use std::cell::Cell;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::npy::{self, Dtype, Header};
use crate::{Error, Result};

/// Every array starts at a multiple of this many bytes of the file: a cache line, and NumPy's own choice.
pub const ALIGNMENT: u16 = 64;

/// Members from this size on get the 64-bit size fields of ZIP64.
const ZIP64_FROM: u64 = u32::MAX as u64 - Header::MAX_LEN as u64;

/// An archive being written. Its bytes depend on nothing but the arrays, in their order.
pub struct NpzWriter<W: Write + Seek> {
    zip: ZipWriter<Fused<W>>,
    path: PathBuf,
}

impl<W: Write + Seek> NpzWriter<W> {
    /// Starts an archive in `inner`; `path` is for error messages.
    pub fn new(inner: W, path: &Path) -> Self {
        Self {
            zip: ZipWriter::new(Fused { inner, failed: false, error: Cell::new(None), position: 0 }),
            path: path.to_path_buf(),
        }
    }

    /// Writes an array whose elements `fill` writes, little-endian and in C order.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses, [`Error::Invalid`] if the key is there already or `fill` writes more or
    /// fewer bytes than the shape asks for.
    pub fn array_with(
        &mut self,
        key: &str,
        dtype: Dtype,
        shape: &[usize],
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let size = shape.iter().try_fold(dtype.size() as u64, |size, d| size.checked_mul(*d as u64));
        let size =
            size.ok_or_else(|| Error::invalid(&self.path, format!("{key}: the shape {shape:?} is too large")))?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::DEFAULT)
            .with_alignment(ALIGNMENT)
            .large_file(size >= ZIP64_FROM);
        let invalid = |e: ZipError| Error::invalid(&self.path, format!("{key}: {e}"));
        self.zip.start_file(format!("{key}.npy"), options).map_err(invalid)?;
        let mut counted = Counted { inner: &mut self.zip, count: 0 };
        let written = counted.inner.write_all(&npy::header(dtype, shape)).and_then(|()| fill(&mut counted));
        let count = counted.count;
        written.map_err(Error::io(&self.path))?;
        if let Some(error) = self.zip.get_ref().and_then(|fused| fused.error.take()) {
            return Err(Error::io(&self.path)(error));
        }
        if count != size {
            return Err(Error::invalid(
                &self.path,
                format!("{key}: {count} bytes written, but {shape:?} of {} take {size}", dtype.descr()),
            ));
        }
        Ok(())
    }

    /// Writes an array from its bytes, little-endian and in C order.
    ///
    /// # Errors
    /// Those of [`NpzWriter::array_with`].
    pub fn array(&mut self, key: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        self.array_with(key, dtype, shape, |out| out.write_all(bytes))
    }

    /// Writes an array of f32.
    ///
    /// # Errors
    /// Those of [`NpzWriter::array_with`].
    pub fn floats(&mut self, key: &str, shape: &[usize], elements: &[f32]) -> Result<()> {
        self.array(key, Dtype::F32, shape, bytemuck::cast_slice(elements))
    }

    /// Writes an array of i32.
    ///
    /// # Errors
    /// Those of [`NpzWriter::array_with`].
    pub fn ints(&mut self, key: &str, shape: &[usize], elements: &[i32]) -> Result<()> {
        self.array(key, Dtype::I32, shape, bytemuck::cast_slice(elements))
    }

    /// Writes the directory of the archive and gives back what it was written into.
    ///
    /// # Errors
    /// [`Error::Io`], also where an earlier write failed.
    pub fn finish(self) -> Result<W> {
        let fused = self.zip.finish().map_err(|e| Error::invalid(&self.path, e))?;
        match fused.error.take() {
            Some(error) => Err(Error::io(&self.path)(error)),
            None if fused.failed => Err(Error::invalid(&self.path, "an earlier write failed")),
            None => Ok(fused.inner),
        }
    }
}

/// Keeps the first error to itself and takes in silence whatever comes after it, so that the `ZipWriter` above never
/// meets one: after a failed write its `Drop` runs into an assertion of its own.
struct Fused<W> {
    inner: W,
    failed: bool,
    /// Until the [`NpzWriter`] takes it.
    error: Cell<Option<io::Error>>,
    position: u64,
}

impl<W> Fused<W> {
    fn or_keep<T>(&mut self, result: io::Result<T>, otherwise: T) -> io::Result<T> {
        match result {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.failed = true;
                self.error.set(Some(e));
                Ok(otherwise)
            }
            other => other,
        }
    }
}

impl<W: Write> Write for Fused<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = bytes.len();
        if !self.failed {
            let result = match self.inner.write(bytes) {
                Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            written = self.or_keep(result, bytes.len())?;
        }
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.failed {
            true => Ok(()),
            false => {
                let result = self.inner.flush();
                self.or_keep(result, ())
            }
        }
    }
}

impl<W: Seek> Seek for Fused<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pretended = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(offset) | SeekFrom::End(offset) => self.position.saturating_add_signed(offset),
        };
        self.position = match self.failed {
            true => pretended,
            false => {
                let result = self.inner.seek(to);
                self.or_keep(result, pretended)?
            }
        };
        Ok(self.position)
    }
}

/// Counts the elements' bytes.
struct Counted<'a, W> {
    inner: &'a mut W,
    count: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::npz::Npz;

    #[test]
    fn arrays_read_back_aligned_and_out_of_the_map() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()), &path);
        for length in 0..130 {
            npz.array(&"k".repeat(length + 1), Dtype::U8, &[length], &vec![length as u8; length]).unwrap();
        }
        npz.ints("scalar", &[], &[-7]).unwrap();
        let bytes = npz.finish().unwrap().into_inner();
        std::fs::write(&path, &bytes).unwrap();
        let npz = Npz::open(&path).unwrap();
        assert_eq!(npz.keys().len(), 131);
        for length in 0..130 {
            let array = npz.array(&"k".repeat(length + 1)).unwrap();
            assert_eq!(array.data.as_ref(), vec![length as u8; length]);
            // A map starts at a page, so its addresses are aligned as the file's offsets are.
            assert_eq!(array.data.as_ptr() as usize % ALIGNMENT as usize, 0);
        }
        assert_eq!(npz.array("scalar").unwrap().to_number(), Some(-7.0));
    }

    #[test]
    fn wrong_lengths_and_double_keys_are_refused() {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()), Path::new("a.npz"));
        npz.array("a", Dtype::U8, &[2], &[1, 2]).unwrap();
        assert!(npz.array("a", Dtype::U8, &[2], &[1, 2]).is_err());
        let message = npz.array("b", Dtype::F32, &[2], &[0; 7]).unwrap_err().to_string();
        assert!(message.contains("b: 7 bytes written, but [2] of <f4 take 8"), "{message}");
    }

    /// Takes `room` bytes, then none.
    struct Full {
        inner: Cursor<Vec<u8>>,
        room: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= bytes.len();
            self.inner.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
            self.inner.seek(position)
        }
    }

    #[test]
    fn a_full_disk_is_an_error_at_every_byte() {
        let write = |room| {
            let mut npz = NpzWriter::new(Full { inner: Cursor::default(), room }, Path::new("a.npz"));
            npz.array("a", Dtype::U8, &[100], &[1; 100]).and_then(|()| npz.finish())
        };
        let needed = 1000 - write(1000).map(|full| full.room).unwrap();
        assert!(needed > 228);
        for room in 0..needed {
            let refused = write(room).map(drop).unwrap_err();
            assert!(matches!(refused, Error::Io { .. }), "{room}: {refused}");
        }
        write(needed).map(drop).unwrap();
    }

    #[test]
    #[ignore = "writes 5 GB"]
    fn archives_beyond_4_gib_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let size = 5_000_000_000;
        let mut npz = NpzWriter::new(io::BufWriter::new(std::fs::File::create(&path).unwrap()), &path);
        npz.array_with("large", Dtype::U8, &[size], |out| {
            let chunk = vec![3; 1_000_000];
            (0..size / chunk.len()).try_for_each(|_| out.write_all(&chunk))
        })
        .unwrap();
        npz.ints("after", &[1], &[42]).unwrap();
        npz.finish().unwrap().into_inner().unwrap();
        if let Some(kept) = std::env::var_os("BITLLAMA_KEEP") {
            std::fs::hard_link(&path, kept).unwrap();
        }
        let npz = Npz::open(&path).unwrap();
        let large = npz.array("large").unwrap().data;
        assert_eq!((large.len(), large[size - 1], large.as_ptr() as usize % 64), (size, 3, 0));
        assert_eq!(npz.array("after").unwrap().to_number(), Some(42.0));
    }
}
