//! Folders that files are added to over time, each with a record that grows before it.

use std::path::{Path, PathBuf};

use super::folder::remove_folder;
use super::lock::{self, Lock};
use super::record::{self, Kind, Line, RECORD, Record};
use super::{Claim, Foreign, disk, followed, temporary};
use crate::{Error, Result, atomic};

/// Claims a folder that is to be added to: makes it, takes its lock, and finishes or undoes what dead writers left in it.
///
/// # Errors
/// [`Error::Invalid`] if another process writes it, if a file stands there, or if this program wrote something of another kind
/// into it; [`Error::Io`].
pub fn claim_growing(path: &Path, kind: Kind) -> Result<Claim> {
    let path = followed(path)?;
    if path.is_file() {
        return Err(Error::invalid(path, "a file stands here, where a folder is to be written"));
    }
    if let Some(found) = Record::read(&path)?.kind.filter(|found| *found != kind) {
        return Err(Error::invalid(path, format!("holds {found}, not {kind}; name another output")));
    }
    let made = disk::create_folders(&path)?;
    let mut claim = Claim { made, lock: None };
    claim.lock = Some(Lock::take(&lock::within(&path), &path)?);
    temporary::recover(&path)?;
    for folder in disk::entries(&path)?.into_iter().filter(|entry| entry.is_dir()) {
        temporary::recover(&folder)?;
    }
    Ok(claim)
}

/// A folder that files are added to.
#[derive(Debug, Clone, Copy)]
pub struct Growing<'a> {
    folder: &'a Path,
    kind: Kind,
}

impl<'a> Growing<'a> {
    /// The folder `folder`, of this kind. Its record is begun with the first line that is added.
    pub fn new(folder: &'a Path, kind: Kind) -> Self {
        Self { folder, kind }
    }

    /// Writes a file in the folder, whole or not at all. One that stands there is replaced if this program wrote it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the file is not on record as it is; [`Error::Io`].
    pub fn write(self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replaceable(name)?;
        self.add(Line::content(name, bytes))?;
        atomic::write_bytes(&self.folder.join(name), bytes)
    }

    /// Makes sure that [`Growing::write`] would write a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a file stands there that is not on record as it is; [`Error::Io`].
    pub fn replaceable(self, name: &str) -> Result<()> {
        let (path, record) = (self.folder.join(name), Record::read(self.folder)?);
        match path.symlink_metadata().is_ok() && !record.proves(self.folder, name)? {
            true => Err(Foreign { path, changed: record.has(name) }.refusal("it is not replaced")),
            false => Ok(()),
        }
    }

    /// Writes the new content of a file that the user named to be edited, whole or not at all. One that is on record as it is stays
    /// on record, any other stays the user's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn edit(self, name: &str, bytes: &[u8]) -> Result<()> {
        if Record::read(self.folder)?.proves(self.folder, name)? {
            self.add(Line::content(name, bytes))?;
        }
        atomic::write_bytes(&self.folder.join(name), bytes)
    }

    /// Puts a file on record that is going to grow.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a file of that name stands there that is not on record; [`Error::Io`].
    pub fn log(self, name: &str) -> Result<()> {
        let record = Record::read(self.folder)?;
        let path = self.folder.join(name);
        if record.has(name) {
            return Ok(());
        }
        if path.symlink_metadata().is_ok() {
            return Err(Foreign { path, changed: false }.refusal("it is not written to"));
        }
        self.add(Line::Log { path: name.into() })
    }

    /// Puts a folder on record that is going to have a record of its own.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn subfolder(self, name: &str) -> Result<()> {
        match Record::read(self.folder)?.has(name) {
            true => Ok(()),
            false => self.add(Line::Folder { path: name.into() }),
        }
    }

    /// As [`Growing::write`], of what can be computed again: a file on record is replaced even if it is damaged.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a file of that name stands there that is not on record; [`Error::Io`].
    pub fn rewrite(self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        if path.symlink_metadata().is_ok() && !self.has(name)? {
            return Err(Foreign { path, changed: false }.refusal("it is not replaced"));
        }
        self.add(Line::content(name, bytes))?;
        atomic::write_bytes(&path, bytes)
    }

    /// True if the folder has a record.
    pub fn is_recorded(self) -> bool {
        self.folder.join(RECORD).is_file()
    }

    /// True if a file or folder is on record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn has(self, name: &str) -> Result<bool> {
        Ok(Record::read(self.folder)?.has(name))
    }

    /// Puts files on record that a version without records wrote, as far as they are there: `logs` as files that grow.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn adopt(self, files: &[PathBuf], logs: &[PathBuf]) -> Result<()> {
        let name = |path: &PathBuf| -> Option<String> {
            let path = path.strip_prefix(self.folder).unwrap_or(path);
            let is_file = self.folder.join(path).symlink_metadata().is_ok_and(|found| found.is_file());
            is_file.then(|| record::recorded(path))
        };
        let mut lines = Vec::new();
        for file in files.iter().filter_map(name) {
            lines.push(Line::found(self.folder, &file)?);
        }
        lines.extend(logs.iter().filter_map(name).map(|path| Line::Log { path }));
        let record = Record::read(self.folder)?;
        record::write(self.folder, self.kind, record.lines(|_| true).chain(&lines))
    }

    /// The first thing in the folder that this program did not write; paths in `keep` are not looked at.
    ///
    /// # Errors
    /// Those of [`record::foreign`].
    pub fn foreign(self, keep: &[PathBuf]) -> Result<Option<Foreign>> {
        record::foreign(self.folder, keep)
    }

    /// Removes all that this program wrote into the folder but what lies in `keep`, and begins its record.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is anything else in it, which is named; nothing is removed then. [`Error::Io`].
    pub fn clear(self, keep: &[PathBuf]) -> Result<()> {
        let (record, keep) = (Record::read(self.folder)?, record::kept(self.folder, keep));
        if let Some(foreign) = record.foreign(self.folder, &keep)? {
            return Err(foreign.refusal("nothing in its folder is removed"));
        }
        let inside = |path: &str| keep.iter().any(|kept| path == kept || path.starts_with(&format!("{kept}/")));
        self.remove("", &inside)?;
        record::write(self.folder, self.kind, record.lines(inside))
    }

    /// Removes all in the folder `within` but the record, temporary names and what `kept` is true for.
    fn remove(self, within: &str, kept: &impl Fn(&str) -> bool) -> Result<()> {
        for path in disk::entries(&self.folder.join(within))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = if within.is_empty() { name.into_owned() } else { format!("{within}/{name}") };
            if name == RECORD || kept(&name) || temporary::is_temporary(&path) {
                continue;
            }
            match path.symlink_metadata().map_err(Error::io(&path))?.is_dir() {
                false => disk::remove_file(&path)?,
                true => match Record::read(&path)?.kind {
                    Some(kind) => remove_folder(&path, kind)?,
                    None => {
                        self.remove(&name, kept)?;
                        // What is kept in it keeps it.
                        if disk::entries(&path)?.is_empty() {
                            disk::remove_empty(&path)?;
                        }
                    }
                },
            }
        }
        Ok(())
    }

    fn add(self, line: Line) -> Result<()> {
        match self.is_recorded() {
            true => record::add(self.folder, &line),
            false => record::write(self.folder, self.kind, std::iter::once(&line)),
        }
    }
}
