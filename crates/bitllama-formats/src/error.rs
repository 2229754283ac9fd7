//! What can be wrong with a file. Every variant names it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of reading or writing a model file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A file that could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not what the format asks for.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A line of a text file that is not what it should be.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The cause.
        reason: String,
    },
    /// The hub did not give a file.
    #[error("hub: {0}")]
    Hub(String),
}

impl Error {
    /// An [`Error::Io`] about `path`, in the form that `map_err` takes.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Invalid`] about `path`.
    pub fn invalid(path: impl AsRef<Path>, reason: impl fmt::Display) -> Error {
        Error::Invalid { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }
}
