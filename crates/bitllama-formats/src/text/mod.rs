//! The one reader of text: files and folders to documents, for evaluation, calibration and training alike.
//!
//! | name ends in | is read as |
//! |---|---|
//! | `.jsonl`, `.ndjson` | a document per line: the text field of a JSON object |
//! | `.json` | a document per element of an array (an object or a string); without an array as `.jsonl` |
//! | anything else | one document: the file as it stands, line ends included |
//!
//! Behind each of these may stand `.gz` or `.zst`, and case does not matter. Text is UTF-8, whose byte order mark is
//! dropped; anything else is refused with the place of the first wrong byte. Documents come one at a time, so memory is
//! bounded by the largest of them.

mod bytes;
mod files;
mod json;

use std::io::Read;
use std::path::Path;

pub use files::{Kind, files};

use crate::{Error, Result};

/// Field that has the text of a JSON object unless another one is named.
pub const DEFAULT_FIELD: &str = "text";

/// Gives the documents of a file to `each`, in order; blank ones are left out. `field` names the text of JSON objects.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or has no text; a line or element of JSON without a string in `field`, by its
/// number; those of `each`, which end the reading.
pub fn documents<E: From<Error>>(
    path: &Path,
    field: &str,
    mut each: impl FnMut(String) -> Result<(), E>,
) -> Result<(), E> {
    let mut found = false;
    let mut unless_blank = |document: String| {
        if document.trim().is_empty() {
            return Ok(());
        }
        found = true;
        each(document)
    };
    match Kind::of(path)? {
        Kind::Text => unless_blank(read(path)?)?,
        Kind::Lines => json::lines(path, &mut bytes::open(path)?, field, &mut unless_blank)?,
        Kind::Json => {
            let mut reader = bytes::open(path)?;
            match bytes::first_visible(&mut reader).map_err(Error::io(path))? {
                Some(b'[') => json::array(path, reader, field, &mut unless_blank)?,
                _ => json::lines(path, &mut reader, field, &mut unless_blank)?,
            }
        }
    }
    match found {
        true => Ok(()),
        false => Err(Error::invalid(path, "no text in this file").into()),
    }
}

/// The text of a file or folder as evaluation reads it: a plain text file as it stands; of all others the documents,
/// trimmed, with a blank line between them.
///
/// # Errors
/// Those of [`files()`] and [`documents`].
pub fn whole(path: &Path, field: &str) -> Result<String> {
    if !path.is_dir() && Kind::of(path)? == Kind::Text {
        let text = read(path)?;
        return match text.trim().is_empty() {
            true => Err(Error::invalid(path, "no text in this file")),
            false => Ok(text),
        };
    }
    let files = if path.is_dir() { files(&[path])? } else { vec![path.to_path_buf()] };
    let mut text = String::new();
    for file in files {
        documents(&file, field, |document| {
            if text.is_empty() && document.trim().len() == document.len() {
                text = document;
            } else {
                text.push_str(if text.is_empty() { "" } else { "\n\n" });
                text.push_str(document.trim());
            }
            Ok::<_, Error>(())
        })?;
    }
    Ok(text)
}

/// A whole file as it stands: unpacked, checked, without its byte order mark.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let mut reader = bytes::open(path)?;
    let mut text = String::new();
    text.reserve_exact(files::plain_size(path));
    reader.read_to_string(&mut text).map_err(Error::io(path))?;
    Ok(text)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
