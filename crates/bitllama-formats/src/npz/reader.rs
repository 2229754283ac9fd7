//! Reads arrays out of a memory-mapped archive.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use bitllama_core::excerpt;
use bytes::Bytes;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::npy::{self, Array, Header};
use crate::{Error, Result};

/// Deflate makes nothing smaller than this; a member that claims more is damaged or hostile.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// A whole file as a memory map.
///
/// # Errors
/// [`Error::Io`].
pub fn map_file(path: &Path) -> Result<Bytes> {
    Ok(Bytes::from_owner(crate::map::open(path)?))
}

/// An archive opened for reading.
pub struct Npz {
    path: PathBuf,
    bytes: Bytes,
    archive: ZipArchive<Cursor<Bytes>>,
    /// Index of the member that holds a key.
    members: BTreeMap<String, usize>,
}

impl Npz {
    /// Maps the archive and lists its members; no array is looked at.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read or is no ZIP archive.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = map_file(path)?;
        let archive = ZipArchive::new(Cursor::new(bytes.clone()))
            .map_err(|e| Error::invalid(path, format!("no NPZ file: {e}")))?;
        if archive.has_duplicate_names() {
            return Err(Error::invalid(path, "two members have the same name"));
        }
        let mut members = BTreeMap::new();
        for (index, name) in archive.file_names_raw().enumerate() {
            if let Some(key) = name.strip_suffix(b".npy").and_then(|key| std::str::from_utf8(key).ok()) {
                members.insert(key.to_string(), index);
            }
        }
        Ok(Self { path: path.to_path_buf(), bytes, archive, members })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys of all arrays, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Whether there is an array under `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.members.contains_key(key)
    }

    /// Element type and shape of an array, at the cost of its header; the size of its member is checked to fit.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none under `key`, or it is damaged or of a kind that is not supported.
    pub fn header(&self, key: &str) -> Result<Header> {
        let (start, size) = self.member(key, Header::MAX_LEN)?;
        let header = Header::parse(&start).map_err(|reason| self.invalid(key, reason))?;
        match size.checked_sub(header.data_start as u64) == Some(header.data_len as u64) {
            true => Ok(header),
            false => Err(self.invalid(key, format!("{size} bytes do not hold {:?} elements", header.shape))),
        }
    }

    /// An array. Its bytes are a part of the memory map where it was stored undeflated.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none under `key`, or it is damaged or of a kind that is not supported.
    pub fn array(&self, key: &str) -> Result<Array> {
        let (member, _) = self.member(key, usize::MAX)?;
        npy::parse(&member).map_err(|reason| self.invalid(key, reason))
    }

    /// Reads the whole file and holds every member against its checksum; [`Npz::array`] does so for deflated ones only,
    /// so as not to touch the map.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first key that is damaged.
    pub fn verify(&self) -> Result<()> {
        let mut archive = self.archive.clone();
        for (key, index) in &self.members {
            let mut member = archive.by_index(*index).map_err(|e| self.invalid(key, e))?;
            std::io::copy(&mut member, &mut std::io::sink()).map_err(|e| self.invalid(key, e))?;
        }
        Ok(())
    }

    /// The bytes of a member, no more than `limit` of them, and how many there are.
    fn member(&self, key: &str, limit: usize) -> Result<(Bytes, u64)> {
        let index = *self.members.get(key).ok_or_else(|| self.invalid(key, "no such array"))?;
        // Reading moves the cursor of an archive; a copy of it shares both map and directory.
        let mut archive = self.archive.clone();
        let damaged = |e: ZipError| self.invalid(key, e);
        let raw = archive.by_index_raw(index).map_err(damaged)?;
        let (method, size, compressed_size) = (raw.compression(), raw.size(), raw.compressed_size());
        if raw.encrypted() {
            return Err(self.invalid(key, "encrypted members are not supported"));
        }
        match method {
            CompressionMethod::Stored => {
                let start = raw.data_start().and_then(|start| usize::try_from(start).ok());
                let range = start.zip(usize::try_from(size).ok()).and_then(|(start, size)| {
                    let end = start.checked_add(size)?;
                    (size as u64 == compressed_size && end <= self.bytes.len()).then_some(start..end)
                });
                let range = range.ok_or_else(|| self.invalid(key, "the member ends after its file"))?;
                let end = range.end.min(range.start.saturating_add(limit));
                Ok((self.bytes.slice(range.start..end), size))
            }
            CompressionMethod::Deflated => {
                drop(raw);
                let in_file = compressed_size <= self.bytes.len() as u64;
                if !in_file || size > compressed_size.saturating_mul(MAX_DEFLATE_RATIO) {
                    return Err(self.invalid(key, format!("{size} bytes cannot come out of {compressed_size}")));
                }
                let mut bytes = Vec::new();
                let member = archive.by_index(index).map_err(damaged)?;
                let read = member.take(size.min(limit as u64)).read_to_end(&mut bytes);
                read.map_err(|e| self.invalid(key, e))?;
                Ok((bytes.into(), size))
            }
            other => Err(self.invalid(key, format!("compression method {other} is not supported"))),
        }
    }

    fn invalid(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::invalid(&self.path, format!("{}: {reason}", excerpt(key)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::npz::{Dtype, NpzWriter, header};

    fn small_archive() -> Vec<u8> {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()), Path::new("a.npz"));
        npz.array("bytes", Dtype::U8, &[2, 3], &[1, 2, 3, 4, 5, 6]).unwrap();
        npz.floats("floats", &[3], &[1.0, -2.0, 0.5]).unwrap();
        npz.finish().unwrap().into_inner()
    }

    /// Reads everything; all that matters is that it comes back.
    fn read_all(path: &Path, bytes: &[u8]) -> Result<usize> {
        std::fs::write(path, bytes).unwrap();
        let npz = Npz::open(path)?;
        let mut read = 0;
        for key in npz.keys() {
            npz.header(key)?;
            read += npz.array(key)?.data.len();
        }
        Ok(read)
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let whole = small_archive();
        assert_eq!(read_all(&path, &whole).unwrap(), 18);
        for length in 0..whole.len() {
            assert!(read_all(&path, &whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn no_flipped_byte_brings_the_reader_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        for whole in [small_archive(), deflated(&[7; 3000])] {
            for position in 0..whole.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[position] ^= flip;
                    // The arrays' own bytes and the padding may change unnoticed; their sizes may not.
                    if let Ok(read) = read_all(&path, &damaged) {
                        assert!(read <= 3000, "byte {position} ^ {flip:#x}: {read}");
                    }
                }
            }
        }
    }

    #[test]
    fn checksums_find_what_sizes_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let whole = small_archive();
        std::fs::write(&path, &whole).unwrap();
        Npz::open(&path).unwrap().verify().unwrap();
        let mut damaged = whole;
        let position = damaged.windows(6).position(|bytes| bytes == [1, 2, 3, 4, 5, 6]).unwrap();
        damaged[position] = 9;
        std::fs::write(&path, damaged).unwrap();
        let npz = Npz::open(&path).unwrap();
        assert_eq!(npz.array("bytes").unwrap().data[0], 9);
        let found = npz.verify().unwrap_err().to_string();
        assert!(found.contains("a.npz: bytes: "), "{found}");
    }

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file("a.npy", options).unwrap();
        zip.write_all(&header(Dtype::U8, &[data.len()])).unwrap();
        zip.write_all(data).unwrap();
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn deflated_members_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        std::fs::write(&path, deflated(&[7; 3000])).unwrap();
        let npz = Npz::open(&path).unwrap();
        assert_eq!(npz.header("a").unwrap().shape, [3000]);
        let array = npz.array("a").unwrap();
        assert_eq!((array.dtype, array.data.as_ref()), (Dtype::U8, [7u8; 3000].as_slice()));
        assert!(npz.array("b").unwrap_err().to_string().contains("b: no such array"));
    }
}
