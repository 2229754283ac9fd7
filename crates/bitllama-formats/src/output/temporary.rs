//! Names of what is not finished, and what becomes of it when its process has died.
//!
//! | name | what | when its process has died |
//! |---|---|---|
//! | `.NAME.PID-N.tmp~`, a file | `NAME`, being written; locked meanwhile | removed |
//! | `.NAME.PID-N.tmp~`, a folder | `NAME`, being written or removed, under the lock of `NAME` | removed |
//! | `.NAME.PID-N.old~` | what `NAME` takes the place of, under the lock of `NAME` | put back if there is no `NAME`, else removed |
//! | `.NAME.lock~` | the lock of `NAME` | removed |

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::disk;
use super::lock::{self, Lock};
use crate::Result;

/// Purpose of a temporary name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Being written or removed.
    Unfinished,
    /// About to be replaced.
    Replaced,
}

const USES: [(Use, &str); 2] = [(Use::Unfinished, ".tmp~"), (Use::Replaced, ".old~")];

/// A name beside `path` that nothing has.
pub(super) fn name(path: &Path, wanted: Use) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let suffix = USES.iter().find(|(named, _)| *named == wanted).map_or("", |(_, suffix)| suffix);
    loop {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}-{}{suffix}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let free = path.with_file_name(name);
        if free.symlink_metadata().is_err() {
            return free;
        }
    }
}

/// The name and the use that a temporary name is made of.
fn parsed(name: &str) -> Option<(&str, Use)> {
    let name = name.strip_prefix('.')?;
    let (rest, found) = USES.iter().find_map(|(found, suffix)| Some((name.strip_suffix(suffix)?, *found)))?;
    let (target, process) = rest.rsplit_once('.')?;
    let (pid, number) = process.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (!target.is_empty() && digits(pid) && digits(number)).then_some((target, found))
}

/// The name that a lock file beside its output guards.
fn locked(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(lock::SUFFIX)?.strip_suffix('.').filter(|target| !target.is_empty())
}

/// True if a path has a name of this module's, or is the lock of a folder.
pub(super) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    parsed(name).is_some() || locked(name).is_some() || path == lock::within(disk::parent(path))
}

/// Finishes or undoes what dead processes left in a folder. What belongs to a living one stays.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn recover(folder: &Path) -> Result<()> {
    let mut targets = BTreeSet::new();
    for path in disk::entries(folder)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match parsed(name) {
            Some((_, Use::Unfinished)) if path.is_file() => remove_dead(&path)?,
            Some((target, _)) => drop(targets.insert(folder.join(target))),
            None => targets.extend(locked(name).map(|target| folder.join(target))),
        }
    }
    for target in targets {
        if let Ok(lock) = Lock::try_take(&lock::beside(&target))? {
            recover_output(&target, &lock)?;
        }
    }
    Ok(())
}

/// Finishes or undoes what a dead process left beside `output`, under its lock.
pub(super) fn recover_output(output: &Path, _: &Lock) -> Result<()> {
    let name = output.file_name().and_then(|name| name.to_str());
    for path in disk::entries(disk::parent(output))? {
        let found = path.file_name().and_then(|name| name.to_str()).and_then(parsed);
        match found.filter(|(target, _)| Some(*target) == name) {
            Some((_, Use::Unfinished)) if path.is_file() => remove_dead(&path)?,
            Some((_, Use::Replaced)) if output.symlink_metadata().is_err() => disk::rename(&path, output)?,
            Some(_) => disk::remove_tree(&path)?,
            None => {}
        }
    }
    Ok(())
}

/// Removes a temporary file that no living process writes.
fn remove_dead(path: &Path) -> Result<()> {
    match File::open(path) {
        Ok(file) if file.try_lock().is_ok() && lock::is_at(&file, path) => disk::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_those_of_others() {
        let of = name(Path::new("runs/a.1.npz"), Use::Replaced);
        assert_eq!(parsed(of.file_name().unwrap().to_str().unwrap()), Some(("a.1.npz", Use::Replaced)));
        assert_eq!(parsed(".a.12-3.tmp~"), Some(("a", Use::Unfinished)));
        for other in [".a.12.tmp~", "a.12-3.tmp~", ".a.tmp~", ".12-3.tmp~", ".a.x-3.tmp~", ".a.12-3.tmp", "notes~"] {
            assert_eq!(parsed(other), None, "{other}");
        }
        assert_eq!((locked(".a.lock~"), locked(".lock~"), locked("a.lock~")), (Some("a"), None, None));
        assert!(is_temporary(Path::new("runs/.lock~")) && !is_temporary(Path::new("runs/lock~")));
    }

    #[test]
    fn files_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (dead, living) = (folder.path().join(".a.1-0.tmp~"), folder.path().join(".b.1-0.tmp~"));
        std::fs::write(&dead, "half").unwrap();
        let file = File::create(&living).unwrap();
        file.lock().unwrap();
        recover(folder.path()).unwrap();
        assert_eq!(disk::entries(folder.path()).unwrap(), std::slice::from_ref(&living));
        drop(file);
        recover(folder.path()).unwrap();
        assert!(!living.exists());
    }
}
