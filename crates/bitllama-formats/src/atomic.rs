//! Files and folders that exist whole or not at all: written under a temporary name, flushed to disk, renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file through `fill`; on any error nothing stands under `path` that did not stand there before.
///
/// # Errors
/// Those of `fill` and [`Error::Io`].
pub fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    // With the number of this process: another may be writing the same file into a shared cache.
    let temporary = beside(path, &format!(".{}.tmp~", std::process::id()));
    let write = || {
        let mut file = BufWriter::new(File::create(&temporary).map_err(Error::io(&temporary))?);
        fill(&mut file)?;
        file.flush().map_err(Error::io(path))?;
        file.get_ref().sync_all().map_err(Error::io(path))?;
        fs::rename(&temporary, path).map_err(Error::io(path))
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Writes a whole file of bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// Fills a folder through `fill`, which gets the temporary folder to write into. A folder that stood under `path`
/// is replaced; on any error it stays as it was.
///
/// # Errors
/// Those of `fill` and [`Error::Io`].
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let temporary = beside(path, ".tmp~");
    remove_folder(&temporary)?;
    let write = || {
        fs::create_dir(&temporary).map_err(Error::io(&temporary))?;
        fill(&temporary)?;
        for entry in fs::read_dir(&temporary).map_err(Error::io(&temporary))? {
            let file = entry.map_err(Error::io(&temporary))?.path();
            File::options().write(true).open(&file).and_then(|f| f.sync_all()).map_err(Error::io(&file))?;
        }
        if !path.exists() {
            return fs::rename(&temporary, path).map_err(Error::io(path));
        }
        let old = beside(path, ".old~");
        remove_folder(&old)?;
        fs::rename(path, &old).map_err(Error::io(path))?;
        if let Err(e) = fs::rename(&temporary, path) {
            // Best effort: the error that matters is the first.
            drop(fs::rename(&old, path));
            return Err(Error::io(path)(e));
        }
        remove_folder(&old)
    };
    write().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))
}

/// Makes sure that a folder about to be replaced holds nothing but an older version of the same: a mistyped `--output`
/// must not cost somebody a folder of other things. `marker` is a file that every version has.
///
/// # Errors
/// [`Error::Invalid`] if `path` is a file, or a folder that is not empty and lacks `marker`.
pub fn refuse_foreign(path: &Path, marker: &str) -> Result<()> {
    if path.is_file() {
        return Err(Error::invalid(path, "a file stands here, where a folder is to be written"));
    }
    let empty = match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(Error::io(path)(e)),
    };
    match empty || path.join(marker).is_file() {
        true => Ok(()),
        false => Err(Error::invalid(path, format!("the folder holds files but no {marker}, so it is not replaced"))),
    }
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// The name of `path` with a suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.txt");
        write_bytes(&file, b"old").unwrap();
        let failed = write_file(&file, |f| {
            f.write_all(b"half").unwrap();
            Err(Error::invalid("a.txt", "no"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("deep/model");
        write_folder(&folder, |f| write_bytes(&f.join("one"), b"1")).unwrap();
        write_folder(&folder, |f| write_bytes(&f.join("two"), b"2")).unwrap();
        assert!(!folder.join("one").exists() && folder.join("two").exists());
        let failed = write_folder(&folder, |f| {
            write_bytes(&f.join("three"), b"3")?;
            Err(Error::invalid("three", "no"))
        });
        assert!(failed.is_err());
        assert!(folder.join("two").exists() && !folder.join("three").exists());
        assert_eq!(fs::read_dir(root.path().join("deep")).unwrap().count(), 1);
    }
}
