//! SHA-256 of files, and lists of them beside the files of a folder, so that damage is noticed when they are read again.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result, atomic};

/// The list of a folder, in the form that `sha256sum --check` takes.
pub const SUMS: &str = "SHA256SUMS";

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 20;

/// SHA-256 of some bytes, in lower-case hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A digest in lower-case hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file, in lower-case hexadecimal. The file is read in blocks, not mapped.
///
/// # Errors
/// [`Error::Io`].
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(read) => hash.update(&block[..read]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path)(e)),
        }
    }
}

/// Writes the list of all files that stand in `folder` now, hidden ones left out.
///
/// # Errors
/// [`Error::Io`].
pub fn write(folder: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && !name.is_empty() && !name.starts_with('.') && name != SUMS {
            lines.push((name.to_string(), of_file(&path)?));
        }
    }
    lines.sort();
    let text: String = lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    atomic::write_bytes(&folder.join(SUMS), text.as_bytes())
}

/// Holds the files of a folder against its list. `false` where there is no list, as in folders of version 0.1.0.
///
/// # Errors
/// [`Error`] with the first file that is missing or not as it was written.
pub fn verify(folder: &Path) -> Result<bool> {
    let list = folder.join(SUMS);
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io(&list)(e)),
    };
    let mut listed = 0;
    for (number, line) in text.lines().enumerate() {
        let parts = line.split_once("  ").filter(|(_, name)| !name.is_empty() && !name.contains(['/', '\\', ':']));
        let (sum, name) = parts.ok_or_else(|| {
            Error::invalid(&list, format!("line {}: damaged, a SHA-256 and a file name were expected", number + 1))
        })?;
        let path = folder.join(name);
        if !path.is_file() {
            return Err(Error::invalid(&path, format!("missing, though {SUMS} lists it")));
        }
        if of_file(&path)? != sum {
            return Err(Error::invalid(&path, format!("damaged: its SHA-256 is not that of {SUMS}")));
        }
        listed += 1;
    }
    match listed {
        0 => Err(Error::invalid(&list, "damaged, it lists no file")),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_bytes(b"abc"), abc);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, b"abc").unwrap();
        assert_eq!(of_file(&file).unwrap(), abc);
        let long: Vec<u8> = (0..3 * BLOCK + 5).map(|i| (i % 251) as u8).collect();
        fs::write(&file, &long).unwrap();
        assert_eq!(of_file(&file).unwrap(), of_bytes(&long));
    }

    #[test]
    fn damage_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        fs::write(folder.join("b"), "two").unwrap();
        fs::write(folder.join("a"), "one").unwrap();
        assert!(!verify(folder).unwrap(), "without a list nothing is known");
        write(folder).unwrap();
        assert!(verify(folder).unwrap());
        let list = fs::read_to_string(folder.join(SUMS)).unwrap();
        assert_eq!(list.lines().map(|line| &line[64..]).collect::<Vec<_>>(), ["  a", "  b"]);
        // A file that came later is nobody's damage.
        fs::write(folder.join("c"), "three").unwrap();
        assert!(verify(folder).unwrap());

        let refused = || verify(folder).unwrap_err().to_string();
        fs::write(folder.join("b"), "twO").unwrap();
        assert_eq!(
            refused(),
            format!("{}: damaged: its SHA-256 is not that of SHA256SUMS", folder.join("b").display())
        );
        fs::remove_file(folder.join("b")).unwrap();
        assert_eq!(refused(), format!("{}: missing, though SHA256SUMS lists it", folder.join("b").display()));
        fs::write(folder.join(SUMS), format!("{}  ../b\n", "0".repeat(64))).unwrap();
        assert!(refused().contains("SHA256SUMS: line 1: damaged"), "{}", refused());
        fs::write(folder.join(SUMS), "").unwrap();
        assert!(refused().contains("it lists no file"), "{}", refused());
    }
}
