//! Why a tree could not be written.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::index::ReadError;

/// Why a tree could not be written. What was written until then is incomplete.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A layer's bytes could not be read.
    #[error("read {path}")]
    Read {
        /// The file whose content it is.
        path: PathBuf,
        /// What came of it.
        source: ReadError,
    },
    /// The directory holds a file of this name already: it was not empty, or its filesystem takes two names for one.
    #[error("{path} is there already: the directory was not empty, or its filesystem ignores case")]
    Exists {
        /// Where it was to be made.
        path: PathBuf,
    },
    /// No room is left.
    #[error("{path}: no space, inodes or quota left on the filesystem")]
    NoSpace {
        /// What could not be written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The filesystem cannot hold one of the image's extended attributes.
    #[error("{path}: the filesystem does not take the extended attribute {name}")]
    Xattr {
        /// The file.
        path: PathBuf,
        /// The attribute.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Writing takes a privilege that this process does not have.
    #[error("{path}: no permission to {action} (owners and devices take root)")]
    Permission {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that the filesystem refused.
    #[error("{path}: {action}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was called off: another thread met an error, or the caller wished it.
    #[error("interrupted")]
    Interrupted,
}

impl UnpackError {
    pub(super) fn new(path: PathBuf, action: &'static str, errno: Errno) -> Self {
        let source = errno.into();
        match errno {
            Errno::EXIST => Self::Exists { path },
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path, source },
            Errno::PERM | Errno::ACCESS => Self::Permission { path, action, source },
            _ => Self::Io { path, action, source },
        }
    }
}
