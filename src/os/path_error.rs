//! I/O errors that name the operation and the file.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::ErrorCode;

/// A failed operation on a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct PathError {
    /// The operation: a verb (`open`), with its own object if that is not the path (`create the upper in`).
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The operating system's error.
    pub source: io::Error,
}

impl PathError {
    /// Creates the error of an operation on `path`.
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.into(), source: source.into() }
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::of_io(&self.source)
    }
}

/// Adds the operation and the path to an error of the operating system.
pub trait AtPath<T> {
    /// Turns the error into a [`PathError`], which reads "cannot ACTION PATH".
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
    fn path_error_names_action_path_and_cause() {
        let failed: Result<(), Errno> = Err(Errno::NOENT);
        let error = failed.at("open", Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /no/such/file");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn path_error_code_distinguishes_full_disk_from_missing_permission() {
        for (errno, code) in [
            (Errno::ACCESS, ErrorCode::Permission),
            (Errno::PERM, ErrorCode::Permission),
            (Errno::NOSPC, ErrorCode::DiskFull),
            (Errno::DQUOT, ErrorCode::DiskFull),
            (Errno::ROFS, ErrorCode::ReadOnlyFilesystem),
            (Errno::NOENT, ErrorCode::Io),
        ] {
            assert_eq!(PathError::new("open", "/file", errno).code(), code, "{errno}");
        }
        assert_eq!(PathError::new("read", "/file", io::ErrorKind::InvalidData).code(), ErrorCode::Io);
    }
}
