//! Files as memory.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file to be read.
pub(crate) fn open(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is only read, as bytes. Another process that truncates the file meanwhile can end this one with SIGBUS,
    // the known price of a map; model files are replaced by renaming, which leaves the map as it is.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Gives back the memory of a map's pages; those that are read later come from the file again.
pub(crate) fn release(map: &Mmap) {
    #[cfg(unix)]
    // SAFETY: nothing is ever written through the map, so its pages hold what the file does. Where the system does not take the
    // advice, nothing changes.
    let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
}
