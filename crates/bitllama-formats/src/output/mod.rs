//! Outputs: files and folders that belong to their user, of which a command replaces or removes only what is on record as
//! written by this program.
//!
//! | module | subject |
//! |---|---|
//! | [`record`] | the hidden file that says what was written into a folder, and what is in it that was not |
//! | [`folder`] | folders that are replaced as a whole: artifacts, models, checkpoints |
//! | [`growing`] | folders that files are added to: runs, grids, teacher caches |
//! | [`lock`] | one writer at a time |
//! | [`temporary`] | names of what is not finished, and what becomes of it when its process has died |
//! | [`inputs`] | inputs that an output would take the place of |
//! | [`disk`] | the steps that all of these are made of, each a place to be killed at in tests |

mod disk;
mod folder;
mod growing;
mod inputs;
mod lock;
mod record;
mod temporary;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub use folder::{claim_folder, remove_folder, set_aside, write_folder};
pub use growing::{Growing, claim_growing};
pub use inputs::apart;
pub use record::{Foreign, Kind, RECORD, foreign};
pub use temporary::recover;

use crate::{Error, Result};
use lock::Lock;
use temporary::Use;

/// The right to write an output, held until it is dropped. Folders that were made for it are removed then if nothing came
/// into them.
#[derive(Debug)]
pub struct Claim {
    made: Vec<PathBuf>,
    lock: Option<Lock>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.lock.take());
        for folder in self.made.iter().rev() {
            // Best effort: what is not empty stays.
            drop(disk::remove_empty(folder));
        }
    }
}

/// Claims a file that is to be written, with others beside it: takes its lock, and finishes or undoes what dead writers left in
/// its folder.
///
/// # Errors
/// [`Error::Invalid`] if another process writes it; [`Error::Io`].
pub fn claim_file(path: &Path) -> Result<Claim> {
    let path = followed(path)?;
    let claim = claim(&path)?;
    temporary::recover(disk::parent(&path))?;
    Ok(claim)
}

/// The lock beside `path`, after the folder that both lie in was made.
fn claim(path: &Path) -> Result<Claim> {
    let mut claim = Claim { made: disk::create_folders(disk::parent(path))?, lock: None };
    let lock = Lock::take(&lock::beside(path), path)?;
    temporary::recover_output(path, &lock)?;
    claim.lock = Some(lock);
    Ok(claim)
}

/// The path that is written for an output `path`: a link's target, else the path itself.
///
/// # Errors
/// [`Error::Invalid`] if it is a link to nothing (a disk that is not there, perhaps), or has no name.
pub fn followed(path: &Path) -> Result<PathBuf> {
    if path.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
        return fs::canonicalize(path).map_err(|e| {
            let target = fs::read_link(path).unwrap_or_default();
            let reason = format!("a link to {}: {e}; make that or remove the link", target.display());
            Error::invalid(path, reason)
        });
    }
    match path.file_name() {
        // Without a slash at its end.
        Some(_) => Ok(path.components().collect()),
        // `.` or `..`.
        None => match fs::canonicalize(path).map_err(Error::io(path))? {
            found if found.file_name().is_some() => Ok(found),
            _ => Err(Error::invalid(path, "names no folder that could be written")),
        },
    }
}

/// Writes a file under a temporary name through `fill`, which also gets that name and gives the file back, and renames it to
/// `path`.
pub(crate) fn write_temporary(path: &Path, fill: impl FnOnce(File, &Path) -> Result<File>) -> Result<()> {
    let (temporary, file) = loop {
        let temporary = temporary::name(path, Use::Unfinished);
        let file = disk::create_new(&temporary)?;
        // Tells who cleans up that this one lives; a file system without locks cannot.
        drop(file.try_lock());
        if lock::is_at(&file, &temporary) {
            break (temporary, file);
        }
    };
    let write = || {
        let file = fill(file, &temporary)?;
        disk::flush(&file, path)?;
        disk::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(disk::remove_file(&temporary)))
}

/// Makes a folder and those above it, as far as they are missing.
pub(crate) fn create_folders(path: &Path) -> Result<()> {
    disk::create_folders(path).map(drop)
}
