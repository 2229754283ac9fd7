//! Files and folders that exist whole or not at all: written under a temporary name, flushed to disk, renamed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::output::{self, write_temporary};
use crate::{Error, Result};

pub use crate::output::write_folder;

/// Writes a file through `fill`; on any error nothing stands under `path` that did not stand there before. A link is
/// followed.
///
/// # Errors
/// Those of `fill` and [`Error::Io`].
pub fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    write_file_checked(path, fill, |_| Ok(()))
}

/// As [`write_file`]; `check` sees the whole file under its temporary name, and on an error of its own nothing is left.
///
/// # Errors
/// Those of `fill`, `check` and [`Error::Io`].
pub fn write_file_checked(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    write_temporary(&output::followed(path)?, |file, temporary| {
        let mut file = BufWriter::new(file);
        fill(&mut file)?;
        let file = file.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
        check(temporary)?;
        Ok(file)
    })
}

/// Writes a whole file of bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// Makes a folder and those above it, as far as they are missing, and flushes them.
///
/// # Errors
/// [`Error::Io`].
pub fn create_folders(path: &Path) -> Result<()> {
    output::create_folders(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

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
}
