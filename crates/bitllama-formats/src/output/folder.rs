//! Folders that are replaced as a whole, each with a record of all that is in it.

use std::path::{Path, PathBuf};

use super::record::{self, Kind, Record};
use super::temporary::{self, Use};
use super::{Claim, claim, disk, followed};
use crate::{Error, Result};

/// Claims a folder that is to be replaced: takes its lock, finishes or undoes what a dead writer left, and makes sure that it
/// holds nothing but an older version of the same, as this program wrote it.
///
/// # Errors
/// [`Error::Invalid`] if another process writes it, if a file stands there, or if anything in it is not on record: the first
/// such path; [`Error::Io`].
pub fn claim_folder(path: &Path, kind: Kind) -> Result<Claim> {
    let path = followed(path)?;
    let claim = claim(&path)?;
    replaceable(&path, kind)?;
    Ok(claim)
}

/// Fills a folder through `fill`, which gets the temporary folder to write into. A folder that stood under `path` is replaced
/// if this program wrote all of it and it is of the same kind; on any error it stays as it was. A link is followed.
///
/// # Errors
/// Those of `fill` and of [`claim_folder`].
pub fn write_folder(path: &Path, kind: Kind, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let _claim = claim_folder(path, kind)?;
    let path = &followed(path)?;
    let temporary = temporary::name(path, Use::Unfinished);
    let write = || {
        disk::create_folder(&temporary)?;
        fill(&temporary)?;
        record::write_all(&temporary, kind)?;
        disk::flush_tree(&temporary)?;
        if path.symlink_metadata().is_err() {
            return disk::rename(&temporary, path);
        }
        // Filling it took its time.
        replaceable(path, kind)?;
        let old = temporary::name(path, Use::Replaced);
        disk::rename(path, &old)?;
        // Best effort: the error that matters is the first.
        disk::rename(&temporary, path).inspect_err(|_| drop(disk::rename(&old, path)))?;
        disk::remove_tree(&old)
    };
    write().inspect_err(|_| drop(disk::remove_tree(&temporary)))
}

/// Removes a folder that this program wrote as a whole, at once to others' eyes; one that holds anything else stays.
///
/// # Errors
/// As [`claim_folder`].
pub fn remove_folder(path: &Path, kind: Kind) -> Result<()> {
    let _claim = claim_folder(path, kind)?;
    let gone = temporary::name(path, Use::Unfinished);
    disk::rename(path, &gone)?;
    disk::remove_tree(&gone)
}

/// Gives a folder the first free name `NAME.kept-N`, and tells it.
///
/// # Errors
/// [`Error::Io`].
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    let mut number = 1;
    loop {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".kept-{number}"));
        let aside = path.with_file_name(name);
        if aside.symlink_metadata().is_err() {
            disk::rename(path, &aside)?;
            return Ok(aside);
        }
        number += 1;
    }
}

/// Makes sure that a folder may be replaced by one of `kind`: it is not there, is empty, or holds only what this program
/// wrote.
fn replaceable(path: &Path, kind: Kind) -> Result<()> {
    if path.is_file() {
        return Err(Error::invalid(path, "a file stands here, where a folder is to be written"));
    }
    let record = Record::read(path)?;
    if let Some(found) = record.kind.filter(|found| *found != kind) {
        let reason = format!("holds {found}, which {kind} does not replace; name another output");
        return Err(Error::invalid(path, reason));
    }
    match record.foreign(path, &[])? {
        Some(foreign) => Err(foreign.refusal("its folder is not replaced")),
        None => Ok(()),
    }
}
