//! Ways to damage a good file.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// `text` with `from` replaced, which must be there.
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "`{from}` is not in the good input");
    text.replace(from, to)
}

/// Writes a file of a folder.
pub fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Copies the files of a folder of the repository.
pub fn copy(from: &str, to: &Path) {
    for entry in fs::read_dir(super::root().join(from)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A file of the repository.
pub fn good(path: &str) -> Vec<u8> {
    fs::read(super::root().join(path)).unwrap()
}

/// Changes a JSON file of a folder.
pub fn json(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
}

/// The value at a JSON pointer, to be changed; objects on the way are made.
pub fn at<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer.split('/').skip(1).fold(value, |value, key| match value {
        Value::Array(list) => &mut list[key.parse::<usize>().unwrap()],
        other => &mut other[key],
    })
}

/// A JSON text nested so deep.
pub fn nested(depth: usize) -> String {
    "[".repeat(depth)
}
