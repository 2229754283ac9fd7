//! Text files by extension, the reader of each, and the files that are taken from a folder.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::bytes;
use crate::{Error, Result};

/// Form of a text file, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The file is the text.
    Text,
    /// A JSON object per line.
    Lines,
    /// A JSON array, or objects as in [`Kind::Lines`].
    Json,
}

/// Compression of a file, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Endings of files that people keep text in and this reader has no way to read.
const UNREADABLE: [&str; 10] = ["parquet", "arrow", "bz2", "xz", "lzma", "zip", "7z", "tar", "tgz", "pdf"];

impl Kind {
    /// The form of a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name whose ending promises a format that is not read.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = ending(path);
        match ending.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Self::Lines),
            Some("json") => Ok(Self::Json),
            Some(other) if UNREADABLE.contains(&other) => {
                let reason =
                    format!(".{other} is not read as text: write it as .jsonl or .txt (.gz and .zst may follow)");
                Err(Error::invalid(path, reason))
            }
            _ => Ok(Self::Text),
        }
    }
}

impl Packing {
    pub(super) fn of(path: &Path) -> Self {
        match lower(path.extension()).as_deref() {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

fn lower(extension: Option<&OsStr>) -> Option<String> {
    Some(extension?.to_str()?.to_ascii_lowercase())
}

/// The file's name without the ending of its compression.
fn unpacked(path: &Path) -> &Path {
    match (Packing::of(path), path.file_stem()) {
        (Packing::Gzip | Packing::Zstd, Some(stem)) => Path::new(stem),
        _ => path,
    }
}

/// Ending of the file's name in lower case, in front of that of its compression.
fn ending(path: &Path) -> Option<String> {
    lower(unpacked(path).extension())
}

/// Kind of thing that stands under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    File,
    Folder,
    /// A pipe that the caller connected to this process.
    Stream,
}

impl Input {
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for a named pipe, a socket or a device.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(Error::io(path))?.file_type();
        if kind.is_dir() {
            return Ok(Self::Folder);
        }
        if kind.is_file() {
            return Ok(Self::File);
        }
        let connected = ["/dev/stdin", "/dev/fd/", "/proc/self/fd/"];
        if is_pipe(kind) && connected.iter().any(|start| path.to_str().is_some_and(|path| path.starts_with(start))) {
            return Ok(Self::Stream);
        }
        let reason =
            "a pipe, socket or device, not a file: write its text to a file, or connect it and name /dev/stdin";
        Err(Error::invalid(path, reason))
    }
}

#[cfg(unix)]
fn is_pipe(kind: fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&kind)
}

#[cfg(not(unix))]
fn is_pipe(_: fs::FileType) -> bool {
    false
}

/// Bytes of a file that is stored as it is; 0 where that is not known.
pub(super) fn plain_size(path: &Path) -> usize {
    match (Packing::of(path), fs::metadata(path)) {
        (Packing::None, Ok(meta)) if meta.is_file() => meta.len() as usize,
        _ => 0,
    }
}

/// The text files of `sources`, in an order that depends on their names only.
///
/// Folders are gone through, links in them followed, each folder once; taken are the endings of [the module](super) and
/// `.txt` and `.md`, left out are hidden files, any `README.md`, and `.json` files that hold no array.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] for a folder without text, and for a pipe or device: these files may be read more
/// than once.
pub fn files(sources: &[impl AsRef<Path>]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources.iter().map(AsRef::as_ref) {
        match Input::of(source)? {
            Input::File => files.push(source.to_path_buf()),
            Input::Stream => {
                return Err(Error::invalid(source, "a pipe can be read only once: write its text to a file"));
            }
            Input::Folder => {
                let before = files.len();
                collect(source, &mut files, &mut HashSet::new())?;
                if files.len() == before {
                    let reason =
                        "no text file in this folder (.txt, .md, .jsonl, .ndjson, .json, and .gz or .zst of them)";
                    return Err(Error::invalid(source, reason));
                }
            }
        }
    }
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>, seen: &mut HashSet<PathBuf>) -> Result<()> {
    if !seen.insert(folder.canonicalize().map_err(Error::io(folder))?) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = paths.map_err(Error::io(folder))?;
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files, seen)?;
        } else if is_text(&path)? {
            Input::of(&path)?;
            files.push(path);
        }
    }
    Ok(())
}

/// Decides on a file that was found, not named.
fn is_text(path: &Path) -> Result<bool> {
    let readme = unpacked(path).file_name().is_some_and(|name| name.eq_ignore_ascii_case("README.md"));
    match ending(path).as_deref() {
        Some("md") => Ok(!readme),
        Some("txt" | "jsonl" | "ndjson") => Ok(true),
        // Settings and indexes lie about as `.json`, too.
        Some("json") => {
            let first = bytes::first_visible(&mut bytes::open(path)?);
            Ok(first.map_err(Error::io(path))? == Some(b'['))
        }
        _ => Ok(false),
    }
}
