//! The record of what this program wrote into a folder: a hidden file of JSON lines in that folder.
//!
//! The first line says what the folder is. Every other line is about a path in it: a file with its size, SHA-256 and maybe its
//! time; a `log`, which grows; a `folder` that has a record of its own. A line is written before what it is about appears, so
//! a process that is killed leaves nothing that is not on record. Of several lines about a file any may hold.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::{disk, temporary};
use crate::{Error, Result, atomic, checksums};

/// The name of the record.
pub const RECORD: &str = ".bitllama-record";

/// The version of the record that this program writes, and the newest that it reads.
const VERSION: u32 = 1;

/// The kinds of folders that this program writes. One is never put in the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An exported model, packed.
    Artifact,
    /// A Hugging Face directory.
    Model,
    /// A checkpoint of a run.
    Checkpoint,
    /// The folder of a run.
    Run,
    /// The folder of a grid of runs.
    Grid,
    /// A teacher's likeliest tokens.
    TeacherCache,
    /// Dequantized weights, a file each.
    Weights,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Artifact => "an artifact",
            Kind::Model => "a model",
            Kind::Checkpoint => "a checkpoint",
            Kind::Run => "a run",
            Kind::Grid => "a grid",
            Kind::TeacherCache => "a teacher cache",
            Kind::Weights => "dequantized weights",
        })
    }
}

/// A line of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    /// The first: what the folder is.
    Record { version: u32, kind: Kind, program: String },
    /// A file with this content.
    File { path: String, bytes: u64, sha256: String, modified: Option<u64> },
    /// A file that grows.
    Log { path: String },
    /// A folder with a record of its own.
    Folder { path: String },
}

impl Line {
    /// The first line of a record.
    pub(super) fn header(kind: Kind) -> Self {
        Line::Record { version: VERSION, kind, program: env!("CARGO_PKG_VERSION").into() }
    }

    /// The line about a file that is going to have this content.
    pub(super) fn content(path: &str, bytes: &[u8]) -> Self {
        let sha256 = checksums::of_bytes(bytes);
        Line::File { path: path.into(), bytes: bytes.len() as u64, sha256, modified: None }
    }

    /// The line about the file `path` of `folder` as it is.
    pub(super) fn found(folder: &Path, path: &str) -> Result<Self> {
        let file = folder.join(path);
        let (bytes, modified) = size_and_time(&file)?;
        Ok(Line::File { path: path.into(), bytes, sha256: checksums::of_file(&file)?, modified })
    }

    fn path(&self) -> Option<&str> {
        match self {
            Line::Record { .. } => None,
            Line::File { path, .. } | Line::Log { path } | Line::Folder { path } => Some(path),
        }
    }

    fn text(&self, record: &Path) -> Result<String> {
        let line = serde_json::to_string(self).map_err(|e| Error::invalid(record, e))?;
        Ok(line + "\n")
    }
}

/// A record that was read.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Kind of the folder; `None` without a record.
    pub(super) kind: Option<Kind>,
    lines: BTreeMap<String, Vec<Line>>,
}

/// A file or folder that this program did not write, or that was changed since.
#[derive(Debug, PartialEq)]
pub struct Foreign {
    /// The path.
    pub path: PathBuf,
    /// True if this program wrote a file of that name.
    pub changed: bool,
}

impl Foreign {
    /// The error that refuses something because of it: `so` says what.
    pub fn refusal(&self, so: &str) -> Error {
        let reason = match self.changed {
            true => "has changed since this program wrote it",
            false => "not on record as written by this program",
        };
        Error::invalid(&self.path, format!("{reason}, so {so}; move it away or name another output"))
    }
}

/// The first thing in a folder that this program did not write, in the order of names. Paths in `keep` are not looked at.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] if the record is of a newer version.
pub fn foreign(folder: &Path, keep: &[PathBuf]) -> Result<Option<Foreign>> {
    Record::read(folder)?.foreign(folder, &kept(folder, keep))
}

/// Paths of `keep` that lie in `folder`, as the record names them.
pub(super) fn kept(folder: &Path, keep: &[PathBuf]) -> Vec<String> {
    let Ok(folder) = fs::canonicalize(folder) else { return Vec::new() };
    let within = |path: &PathBuf| Some(recorded(fs::canonicalize(path).ok()?.strip_prefix(&folder).ok()?));
    keep.iter().filter_map(within).collect()
}

impl Record {
    /// The record of a folder; an empty one without any. Lines that a kill cut short count as not written.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Self::default()),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let mut record = Self::default();
        for line in bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok()) {
            match (&line, line.path()) {
                (Line::Record { version, .. }, _) if *version > VERSION => {
                    return Err(Error::invalid(
                        path,
                        format!("version {version} of the record is newer than {VERSION}"),
                    ));
                }
                (Line::Record { kind, .. }, _) => record.kind = Some(*kind),
                (_, Some(path)) => record.lines.entry(path.to_string()).or_default().push(line),
                (_, None) => {}
            }
        }
        Ok(record)
    }

    /// True if there is a line about a path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.lines.contains_key(path)
    }

    /// All lines about paths that `wanted` is true for.
    pub(super) fn lines(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |(path, _)| wanted(path)).flat_map(|(_, lines)| lines)
    }

    /// True if the file `path` of `folder` is as this program wrote it.
    pub(super) fn proves(&self, folder: &Path, path: &str) -> Result<bool> {
        for line in self.lines.get(path).into_iter().flatten() {
            match line {
                Line::Log { .. } => return Ok(true),
                Line::File { bytes, sha256: expected, modified, .. } => {
                    let file = folder.join(path);
                    let (found, time) = size_and_time(&file)?;
                    // A copy has another time; then the content decides.
                    if found == *bytes
                        && ((time.is_some() && time == *modified) || checksums::of_file(&file)? == *expected)
                    {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// As [`foreign`], with `keep` as [`kept`] gives it.
    pub(super) fn foreign(&self, folder: &Path, keep: &[String]) -> Result<Option<Foreign>> {
        self.walk(folder, "", keep)
    }

    fn walk(&self, root: &Path, within: &str, keep: &[String]) -> Result<Option<Foreign>> {
        for path in disk::entries(&root.join(within))? {
            let name = recorded(path.strip_prefix(root).unwrap_or(&path));
            if name == RECORD || keep.contains(&name) || temporary::is_temporary(&path) {
                continue;
            }
            let kind = path.symlink_metadata().map_err(Error::io(&path))?.file_type();
            let known = self.lines.get(&name).into_iter().flatten();
            let found = if kind.is_dir() && known.clone().any(|line| matches!(line, Line::Folder { .. })) {
                foreign(&path, &[])?
            } else if kind.is_dir() {
                let inside = format!("{name}/");
                let expected = self.lines.keys().chain(keep).any(|path| path.starts_with(&inside));
                match self.walk(root, &name, keep)? {
                    None if !expected => Some(Foreign { path, changed: false }),
                    found => found,
                }
            } else if kind.is_file() && self.proves(root, &name)? {
                None
            } else {
                Some(Foreign { changed: known.count() > 0 && kind.is_file(), path })
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Writes the record of a folder anew, whole or not at all.
pub(super) fn write<'a>(folder: &Path, kind: Kind, lines: impl Iterator<Item = &'a Line>) -> Result<()> {
    let path = folder.join(RECORD);
    let mut text = Line::header(kind).text(&path)?;
    for line in lines {
        text += &line.text(&path)?;
    }
    atomic::write_bytes(&path, text.as_bytes())
}

/// Writes the record of a finished folder: all files that are in it.
pub(super) fn write_all(folder: &Path, kind: Kind) -> Result<()> {
    fn collect(root: &Path, folder: &Path, lines: &mut Vec<Line>) -> Result<()> {
        for path in disk::entries(folder)? {
            match path.is_dir() {
                true => collect(root, &path, lines)?,
                false => lines.push(Line::found(root, &recorded(path.strip_prefix(root).unwrap_or(&path)))?),
            }
        }
        Ok(())
    }
    let mut lines = Vec::new();
    collect(folder, folder, &mut lines)?;
    write(folder, kind, lines.iter())
}

/// Adds a line to the record of a folder that has one.
pub(super) fn add(folder: &Path, line: &Line) -> Result<()> {
    let path = folder.join(RECORD);
    let whole = fs::read(&path).map_err(Error::io(&path))?.ends_with(b"\n");
    let text = line.text(&path)?;
    // What a kill cut short stays a line of its own.
    disk::append(&path, if whole { text } else { format!("\n{text}") }.as_bytes())
}

/// A path as records have it: with `/` on every system.
pub(super) fn recorded(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Bytes of a file, and nanoseconds since 1970 when it was changed, where the system tells.
fn size_and_time(path: &Path) -> Result<(u64, Option<u64>)> {
    let found = fs::metadata(path).map_err(Error::io(path))?;
    let time = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok((found.len(), time.and_then(|time| u64::try_from(time.as_nanos()).ok())))
}
