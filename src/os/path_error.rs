//! I/O errors that name what was done, and to which file.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct PathError {
    /// What was tried: a verb, with an object where the path alone is not it (`open`, `make the upper in`).
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The operating system's error.
    pub source: io::Error,
}

impl PathError {
    /// An error of `action` on `path`.
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.into(), source: source.into() }
    }
}

/// Adds the operation and the path to an error of the operating system.
pub trait AtPath<T> {
    /// Turns the error into a [`PathError`]; `action` completes the sentence "cannot ... PATH".
    ///
    /// # Errors
    ///
    /// The error of `self`.
    fn at(self, action: &'static str, path: &Path) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> AtPath<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, PathError> {
        self.map_err(|source| PathError::new(action, path, source))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn error_names_action_path_and_cause() {
        let failed: Result<(), Errno> = Err(Errno::NOENT);
        let error = failed.at("open", Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /no/such/file");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }
}
