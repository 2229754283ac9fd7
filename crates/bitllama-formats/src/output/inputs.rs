//! Inputs that an output would take the place of.

use std::fs;
use std::path::{Path, PathBuf};

use super::{disk, followed};
use crate::{Error, Result};

/// Makes sure that none of `inputs`, each with the flag or key that names it, is `output` or lies in it, links and the files
/// that a model's folder links to included. Inputs that are no paths (hub ids) are passed over.
///
/// # Errors
/// [`Error::Invalid`]: the first input that does.
pub fn apart<'a>(output: &Path, inputs: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<()> {
    let output = followed(output)?;
    // Where nothing stands, nothing can be taken the place of.
    let Ok(place) = fs::canonicalize(&output) else { return Ok(()) };
    for (name, input) in inputs {
        if real(input)?.iter().any(|path| path.starts_with(&place)) {
            let reason =
                format!("`{name}` {} lies here, and is not written over; name another output", input.display());
            return Err(Error::invalid(&output, reason));
        }
    }
    Ok(())
}

/// The places that an input is read from.
fn real(input: &Path) -> Result<Vec<PathBuf>> {
    let Ok(place) = fs::canonicalize(input) else { return Ok(Vec::new()) };
    let mut places = Vec::new();
    if place.is_dir() {
        let links = disk::entries(&place)?.into_iter().filter(|path| path.is_symlink());
        places.extend(links.filter_map(|path| fs::canonicalize(path).ok()));
    }
    places.push(place);
    Ok(places)
}
