//! Hashes of files that were read before, in a small file of the user's: `hashes.json` in the folder that `BITLLAMA_CACHE`
//! names, or in `bitllama` below the system's folder for caches.
//!
//! A file is known by its real path, size, times, device and inode. One that changed within the last seconds before it
//! was hashed is not remembered: it could change again without another time (as git's index has it). Nothing depends on the
//! memo: where it cannot be read or written, files are hashed each time.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, atomic, checksums};

const FILE: &str = "hashes.json";
/// Names another folder for the memo.
const FOLDER: &str = "BITLLAMA_CACHE";
/// Age that the last change of a file must have.
const SETTLED: Duration = Duration::from_secs(2);
/// Files that are remembered at most; beyond that those that are gone are forgotten, and if that is not enough, all.
const ROOM: usize = 4096;

type Entries = BTreeMap<String, Entry>;

/// The memo's entry for a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
}

/// The properties of a file that change whenever its content does. Times are seconds and nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Time of the last change of the content; programs can set it back.
    modified: [i64; 2],
    /// Time of the last change of the inode, on Unix; programs cannot set it.
    changed: [i64; 2],
    device: u64,
    inode: u64,
}

/// The memo, with what was learned since it was read.
pub(super) struct Memo {
    /// `None`: nothing is remembered.
    path: Option<PathBuf>,
    settled: Duration,
    known: Entries,
    learned: Entries,
}

impl Memo {
    /// The memo of this user.
    pub(super) fn of_user() -> Self {
        Self::open(folder().map(|folder| folder.join(FILE)), SETTLED)
    }

    /// One that remembers nothing.
    #[cfg(test)]
    pub(super) fn forgetful() -> Self {
        Self::open(None, SETTLED)
    }

    fn open(path: Option<PathBuf>, settled: Duration) -> Self {
        let known = path.as_deref().map(read).unwrap_or_default();
        Self { path, settled, known, learned: Entries::new() }
    }

    /// SHA-256 of a file, in hexadecimal: as it was remembered, or taken now.
    pub(super) fn sha256(&mut self, file: &Path) -> Result<String> {
        let place = fs::canonicalize(file).map_err(Error::io(file))?;
        let stamp = |path: &Path| fs::metadata(path).map(|meta| Stamp::of(&meta)).map_err(Error::io(path));
        let (key, before) = (place.to_string_lossy().into_owned(), stamp(&place)?);
        if let Some(entry) = self.known.get(&key).filter(|entry| entry.stamp == before) {
            return Ok(entry.sha256.clone());
        }
        let settled = before.age() >= Some(self.settled);
        let sha256 = checksums::of_file(&place)?;
        if settled && stamp(&place)? == before {
            self.learned.insert(key, Entry { stamp: before, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    /// Writes what was learned, beside what others wrote meanwhile. What two write at the same moment may be lost, and is learned
    /// again.
    pub(super) fn save(self) {
        let Some(path) = self.path.filter(|_| !self.learned.is_empty()) else { return };
        let mut all = read(&path);
        all.extend(self.learned);
        if all.len() > ROOM {
            all.retain(|file, _| Path::new(file).exists());
        }
        if all.len() > ROOM {
            all.clear();
        }
        // Not to be able to remember is no error.
        let Ok(json) = serde_json::to_vec_pretty(&all) else { return };
        if let Some(folder) = path.parent() {
            let _ = fs::create_dir_all(folder);
        }
        let _ = atomic::write_bytes(&path, &json);
    }
}

/// The entries of a memo; none where it is missing or damaged.
fn read(path: &Path) -> Entries {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The folder of the memo, if the environment has one. A variable that is empty counts as missing, and so does a relative
/// `XDG_CACHE_HOME`, as the standard wants it.
fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set(FOLDER) {
        return Some(named);
    }
    let system = match cfg!(windows) {
        true => set("LOCALAPPDATA"),
        false => set("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache"))),
    };
    system.filter(|folder| folder.is_absolute()).map(|folder| folder.join("bitllama"))
}

impl Stamp {
    #[cfg(unix)]
    fn of(meta: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            size: meta.len(),
            modified: [meta.mtime(), meta.mtime_nsec()],
            changed: [meta.ctime(), meta.ctime_nsec()],
            device: meta.dev(),
            inode: meta.ino(),
        }
    }

    #[cfg(not(unix))]
    fn of(meta: &Metadata) -> Self {
        let parts = |time: std::io::Result<SystemTime>| {
            let since = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            [since.as_secs() as i64, i64::from(since.subsec_nanos())]
        };
        Self { size: meta.len(), modified: parts(meta.modified()), changed: parts(meta.created()), device: 0, inode: 0 }
    }

    /// Since the last change; `None` where that is in the future.
    fn age(&self) -> Option<Duration> {
        let [seconds, nanoseconds] = self.modified.max(self.changed);
        let last = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        SystemTime::now().duration_since(UNIX_EPOCH + last).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memo(path: &Path, settled: Duration) -> Memo {
        Memo::open(Some(path.to_path_buf()), settled)
    }

    #[test]
    fn a_file_is_read_again_only_after_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("deep/hashes.json"), folder.path().join("model"));
        fs::write(&file, "old").unwrap();
        let hash = |settled| {
            let mut memo = memo(&path, settled);
            let hash = memo.sha256(&file).unwrap();
            memo.save();
            hash
        };
        // Longer than the system's clock ticks, so that a change has another time.
        let write = |text: &str| {
            std::thread::sleep(Duration::from_millis(20));
            fs::write(&file, text).unwrap();
        };
        let old = checksums::of_bytes(b"old");
        assert_eq!(hash(SETTLED), old);
        assert!(!path.exists(), "a file that has just been written is not remembered");
        assert_eq!(hash(Duration::ZERO), old);

        // Another hash put in its place shows that the file is not read.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&old, "remembered")).unwrap();
        assert_eq!(hash(Duration::ZERO), "remembered");
        write("new");
        assert_eq!(hash(Duration::ZERO), checksums::of_bytes(b"new"), "of the same size");

        // On Unix the time of the last change of all tells, even where the other was set back.
        let times = fs::FileTimes::new().set_modified(fs::metadata(&file).unwrap().modified().unwrap());
        write("odd");
        fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
        if cfg!(unix) {
            assert_eq!(hash(Duration::ZERO), checksums::of_bytes(b"odd"));
        }
    }

    #[test]
    fn a_memo_that_cannot_be_used_costs_time_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model");
        fs::write(&file, "text").unwrap();
        // Garbage, and a place where nothing can be written.
        let garbage = folder.path().join("hashes.json");
        fs::write(&garbage, "{").unwrap();
        for path in [garbage.clone(), file.join("hashes.json")] {
            let mut memo = memo(&path, Duration::ZERO);
            assert_eq!(memo.sha256(&file).unwrap(), checksums::of_bytes(b"text"));
            memo.save();
        }
        assert_eq!(read(&garbage).len(), 1, "garbage is replaced");
    }

    #[test]
    fn two_writers_do_not_harm_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hashes.json");
        let names: Vec<PathBuf> = (0..2).map(|name| folder.path().join(name.to_string())).collect();
        names.iter().for_each(|name| fs::write(name, "x").unwrap());
        let mut memos = [memo(&path, Duration::ZERO), memo(&path, Duration::ZERO)];
        memos.iter_mut().zip(&names).for_each(|(memo, name)| drop(memo.sha256(name).unwrap()));
        memos.into_iter().for_each(Memo::save);
        assert_eq!(read(&path).len(), 2);
    }
}
