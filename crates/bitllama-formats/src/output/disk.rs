//! Every change that outputs make to a disk. Each is a step at which a process can be killed; under test, [`faults`] kills
//! it there.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A new file, open for reading and writing.
pub(super) fn create_new(path: &Path) -> Result<File> {
    step(path)?;
    OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(Error::io(path))
}

/// A file, made if it is not there, open for reading and writing.
pub(super) fn open_or_create(path: &Path) -> Result<File> {
    step(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io(path))
}

/// Appends to a file that exists, and flushes it.
pub(super) fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    step(path)?;
    let mut file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    flush(&file, path)
}

/// A folder whose parent exists.
pub(super) fn create_folder(path: &Path) -> Result<()> {
    step(path)?;
    fs::create_dir(path).map_err(Error::io(path))
}

/// A folder and those above it, as far as they are missing; those that were made, from above.
pub(super) fn create_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        match create_folder(folder) {
            Ok(()) => made.push(folder.to_path_buf()),
            // Another process was faster.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(error),
        }
        flush_folder(parent(folder))?;
    }
    Ok(made)
}

/// Renames a file or folder, and flushes the folder that it lies in.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(to)?;
    fs::rename(from, to).map_err(Error::io(to))?;
    flush_folder(parent(to))
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    step(path)?;
    missing_is_fine(fs::remove_file(path), path)
}

/// Removes an empty folder, if it is there.
pub(super) fn remove_empty(path: &Path) -> Result<()> {
    step(path)?;
    missing_is_fine(fs::remove_dir(path), path)
}

/// Removes a folder with all that is in it; links in it are not followed.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    for entry in entries(path)? {
        match entry.symlink_metadata().map_err(Error::io(&entry))?.is_dir() {
            true => remove_tree(&entry)?,
            false => remove_file(&entry)?,
        }
    }
    remove_empty(path)
}

/// Flushes a file to the disk.
pub(super) fn flush(file: &File, path: &Path) -> Result<()> {
    step(path)?;
    // Tests kill processes, not machines.
    if cfg!(test) { Ok(()) } else { file.sync_all().map_err(Error::io(path)) }
}

/// Flushes the names in a folder to the disk, where the system can.
pub(super) fn flush_folder(path: &Path) -> Result<()> {
    step(path)?;
    if cfg!(any(test, not(unix))) {
        return Ok(());
    }
    match File::open(path).and_then(|folder| folder.sync_all()) {
        // Some network file systems cannot.
        Err(e) if !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Flushes all files and folders within a folder, and the folder itself.
pub(super) fn flush_tree(path: &Path) -> Result<()> {
    for entry in entries(path)? {
        match entry.is_dir() {
            true => flush_tree(&entry)?,
            false => {
                let file = OpenOptions::new().write(true).open(&entry).map_err(Error::io(&entry))?;
                flush(&file, &entry)?;
            }
        }
    }
    flush_folder(path)
}

/// The paths in a folder, by name; none if there is no such folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder)(e)),
    };
    let mut paths = Vec::new();
    for entry in found {
        paths.push(entry.map_err(Error::io(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The folder that a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn missing_is_fine(done: std::io::Result<()>, path: &Path) -> Result<()> {
    match done {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

#[cfg(not(test))]
fn step(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
fn step(path: &Path) -> Result<()> {
    faults::step().map_err(Error::io(path))
}

/// Death at a chosen step, for tests: that step and all later ones of this thread fail, clean-up included, as if the process
/// had been killed.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        /// Steps that are left to live; `None` lives on.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Runs `work`, which dies at its step `n` (from 0). The result, and whether it came to that step.
    pub fn dying_at<T>(n: usize, work: impl FnOnce() -> T) -> (T, bool) {
        LEFT.set(Some(n));
        let result = work();
        let died = LEFT.replace(None) == Some(0);
        (result, died)
    }

    pub fn step() -> io::Result<()> {
        match LEFT.get() {
            Some(0) => Err(io::Error::other("killed")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}
