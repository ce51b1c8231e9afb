//! What can go wrong, with the path and the reason.

use std::path::{Path, PathBuf};

use crate::trust::Untrusted;
use crate::ulimit::limit_behind;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}{}", limit_behind(source))]
pub struct FileError {
    /// What was tried, as it stands after "cannot".
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

/// Why nothing can be built on a shelf.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Others than this user can change what is on it.
    #[error("{path} {reason}")]
    Untrusted {
        /// The shelf's folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: Untrusted,
    },
}

/// Why something is still in the cache.
#[derive(Debug, thiserror::Error)]
pub enum NotRemoved {
    /// A process uses it, or has just begun to.
    #[error("in use")]
    InUse,
    /// A process builds something, and may need it for that.
    #[error("something is being built")]
    Building,
    /// It could not be looked at, locked, moved or removed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Adds to an I/O error what was tried on which file.
pub trait At<T> {
    /// `action` stands after "cannot".
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { action, path: path.to_owned(), source })
    }
}
