//! Errors of writing a tree to disk.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::error::ErrorCode;
use crate::index::ReadError;
use crate::os::PathError;

/// The error of writing a tree. The target is left incomplete.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The content of a file cannot be read from its layer.
    #[error("cannot read the content of {}", .path.display())]
    Read {
        /// The file in the target.
        path: PathBuf,
        /// The layer's error.
        source: ReadError,
    },
    /// The target was not empty, or its filesystem treats two names of the image as one.
    #[error("{} already exists: the directory was not empty, or its filesystem ignores case", .0.display())]
    Exists(PathBuf),
    /// The disk or a quota is full.
    #[error("cannot {action} {}: no space, inodes or quota left on the filesystem", .path.display())]
    NoSpace {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The filesystem cannot store one of the image's extended attributes.
    #[error("cannot set extended attribute {name} of {}: the filesystem does not accept it", .path.display())]
    Xattr {
        /// The attribute.
        name: String,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The process lacks a privilege.
    #[error("cannot {action} {}: setting owners and making devices requires root privileges", .path.display())]
    Permission {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Any other error of the operating system.
    #[error(transparent)]
    Io(PathError),
    /// A tar cannot be written.
    #[error("cannot write the tar")]
    Tar(#[source] io::Error),
    /// The caller cancelled the operation, or another thread failed.
    #[error("interrupted")]
    Interrupted,
}

impl UnpackError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Read { source, .. } => source.code(),
            Self::Exists(_) => ErrorCode::Exists,
            Self::NoSpace { .. } => ErrorCode::DiskFull,
            Self::Xattr { .. } => ErrorCode::Filesystem,
            Self::Permission { .. } => ErrorCode::Permission,
            Self::Io(error) => error.code(),
            Self::Tar(source) => ErrorCode::of_io(source),
            Self::Interrupted => ErrorCode::Interrupted,
        }
    }

    pub(super) fn new(action: &'static str, path: PathBuf, errno: Errno) -> Self {
        PathError::new(action, path, errno).into()
    }

    /// Returns the error of setting the extended attribute `name` of `path`.
    pub(super) fn xattr(name: &[u8], path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOTSUP | Errno::PERM | Errno::INVAL | Errno::RANGE | Errno::TOOBIG => {
                Self::Xattr { name: String::from_utf8_lossy(name).into_owned(), path, source: errno.into() }
            }
            _ => Self::new("set an extended attribute of", path, errno),
        }
    }
}

impl From<PathError> for UnpackError {
    fn from(error: PathError) -> Self {
        let PathError { action, path, source } = error;
        match Errno::from_io_error(&source) {
            Some(Errno::EXIST) => Self::Exists(path),
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { action, path, source },
            Some(Errno::PERM | Errno::ACCESS) => Self::Permission { action, path, source },
            _ => Self::Io(PathError { action, path, source }),
        }
    }
}
