//! GGUF
use crate::{Model, Result};
use std::path::Path;
/// Opens a directory.
pub fn open(_path: &Path) -> Result<Model> {
    todo!()
}
