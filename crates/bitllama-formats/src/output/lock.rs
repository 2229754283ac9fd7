//! One writer at a time: a locked file that says who holds it.
//!
//! The system gives the lock back when its process ends, however that ends, so a lock file alone means nothing. Its owner removes it;
//! that of a process that was killed is taken over by the next writer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::disk;
use crate::{Error, Result};

/// Time for which a second writer waits: a killed process and its children may take that long to end.
const GRACE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Ends the name of every lock file.
pub(super) const SUFFIX: &str = "lock~";

/// A lock, held until the last copy is dropped. A thread that holds it may take it again.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] Rc<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    _file: File,
}

thread_local! {
    /// Locks of this thread, by their paths.
    static HELD: RefCell<HashMap<PathBuf, Weak<Held>>> = RefCell::default();
}

/// The lock of an output that is replaced as a whole: beside it.
pub(super) fn beside(output: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(output.file_name().unwrap_or_default());
    name.push(".");
    name.push(SUFFIX);
    output.with_file_name(name)
}

/// The lock of a folder that grows: in it.
pub(super) fn within(folder: &Path) -> PathBuf {
    folder.join(format!(".{SUFFIX}"))
}

impl Lock {
    /// Takes the lock file `path`, which guards `output`.
    ///
    /// # Errors
    /// If another process or thread holds it: who, and since when.
    pub(super) fn take(path: &Path, output: &Path) -> Result<Self> {
        let start = Instant::now();
        loop {
            match Self::try_take(path)? {
                Ok(lock) => return Ok(lock),
                Err(_) if start.elapsed() < GRACE => std::thread::sleep(GRACE / 20),
                Err(holder) => {
                    let reason = format!("{holder} is writing here; wait until it ends, or name another output");
                    return Err(Error::invalid(output, reason));
                }
            }
        }
    }

    /// As [`Lock::take`]; the holder, if there is one.
    pub(super) fn try_take(path: &Path) -> Result<std::result::Result<Self, String>> {
        let folder = disk::parent(path);
        let folder = fs::canonicalize(folder).map_err(Error::io(folder))?;
        let path = folder.join(path.file_name().unwrap_or_default());
        if let Some(held) = HELD.with_borrow(|held| held.get(&path)?.upgrade()) {
            return Ok(Ok(Self(held)));
        }
        loop {
            let mut file = disk::open_or_create(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Err(holder(&path))),
                // Some network file systems have no locks; they are written without, as cargo does.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
            }
            // Its last owner may have removed the file between the two calls; then this is a lock on nothing.
            if !is_at(&file, &path) {
                continue;
            }
            file.set_len(0).and_then(|()| file.write_all(introduction().as_bytes())).map_err(Error::io(&path))?;
            let held = Rc::new(Held { path: path.clone(), _file: file });
            HELD.with_borrow_mut(|all| all.insert(path, Rc::downgrade(&held)));
            return Ok(Ok(Self(held)));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| held.remove(&self.path));
        // While it is still locked, so that nobody else's is removed. What cannot be removed is taken over.
        drop(disk::remove_file(&self.path));
    }
}

/// True if `path` still names the open `file`.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(named)) =
        (file.try_clone().and_then(same_file::Handle::from_file), same_file::Handle::from_path(path))
    else {
        return false;
    };
    file == named
}

/// The owner's entry in its lock.
fn introduction() -> String {
    let now = OffsetDateTime::now_utc();
    let (date, (hour, minute, second)) = (now.date(), now.to_hms());
    format!(
        "process {} on {} (since {date} {hour:02}:{minute:02}:{second:02} UTC)\n",
        std::process::id(),
        gethostname::gethostname().display(),
    )
}

fn holder(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.trim() {
        // It has only just taken it, or the system does not let others read it.
        "" => "another process".into(),
        text => text.chars().filter(|c| !c.is_control()).take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let (output, path) = (folder.path().join("model"), beside(&folder.path().join("model")));
        let first = Lock::take(&path, &output).unwrap();
        let again = Lock::take(&path, &output).unwrap();
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| Lock::take(&path, &output).map(drop)).join().unwrap().unwrap_err().to_string()
        });
        let expected = format!("model: process {} on ", std::process::id());
        assert!(refused.contains(&expected) && refused.contains(" (since 20"), "{refused}");
        drop(first);
        assert!(path.exists(), "one of its two holders still has it");
        drop(again);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_a_dead_process_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model");
        fs::write(beside(&output), "process 1 on elsewhere").unwrap();
        drop(Lock::take(&beside(&output), &output).unwrap());
        assert!(disk::entries(folder.path()).unwrap().is_empty());
    }
}
