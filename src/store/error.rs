//! What can go wrong in the store: every variant names the file or the blob.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::image::Digest;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is nothing at the store's path, or an empty directory.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The store's directory.
        path: PathBuf,
    },
    /// The directory holds something else than an OCI image layout.
    #[error("{} is not a store: it has no `oci-layout` file and is not empty", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// The layout or what stands beside it was written by a program of another version.
    #[error("{} has version `{found}`, and only `{known}` is known", path.display())]
    Version {
        /// The file that tells the version.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this program reads and writes.
        known: &'static str,
    },
    /// The system refused access.
    #[error("{}: no permission to {action}", path.display())]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The store lies on a file system that takes no writes.
    #[error("{}: the file system is read-only", path.display())]
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk or a quota ran out while writing.
    #[error("{}: the disk or the quota is full", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is too little space for what is about to be written.
    #[error("{}: {needed} bytes are needed and {free} are free", path.display())]
    NoSpace {
        /// The store's directory.
        path: PathBuf,
        /// Bytes wanted.
        needed: u64,
        /// Bytes that an unprivileged process may still use.
        free: u64,
    },
    /// Any other answer of the system.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// What was tried: a verb and its object.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A symlink, a device or anything else stands where only a file or a directory is expected.
    #[error("{} is not a {wanted}", path.display())]
    NotPlain {
        /// What was found in the way.
        path: PathBuf,
        /// `regular file` or `directory`.
        wanted: &'static str,
    },
    /// A blob that is asked for is not there.
    #[error("blob {digest} is not in the store")]
    NoBlob {
        /// The blob.
        digest: Digest,
    },
    /// A blob's file does not hold what its name says.
    #[error("blob {digest} is damaged ({}): {reason}", path.display())]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// How it differs.
        reason: String,
    },
    /// Bytes offered under a digest have another one.
    #[error("content has digest {got}, not {wanted}")]
    DigestMismatch {
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// Bytes offered under a digest have another length than promised.
    #[error("content of {digest} has {got} bytes, not {wanted}")]
    SizeMismatch {
        /// The digest asked for.
        digest: Digest,
        /// The length promised.
        wanted: u64,
        /// The length that came.
        got: u64,
    },
    /// A document is larger than anything that this program takes.
    #[error("{} has {size} bytes, more than the {limit} allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Another process holds a lock for longer than the caller wants to wait.
    #[error("{}: another process is busy with {what} (waited {waited:?})", path.display())]
    Busy {
        /// What is locked.
        what: String,
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A daemon serves this store already.
    #[error("a daemon serves this store already (process {pid}, mounted on {})", mountpoint.display())]
    DaemonRuns {
        /// Its process.
        pid: u32,
        /// Where it serves.
        mountpoint: PathBuf,
    },
    /// A JSON file of the store does not parse; it is left as it is.
    #[error("{}: damaged", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why (line and column).
        source: serde_json::Error,
    },
    /// The file with the slots is damaged, and not only at its end.
    #[error("{}: line {line}: {reason}", path.display())]
    Slots {
        /// The file.
        path: PathBuf,
        /// The first line that is wrong, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// All slots have been given out.
    #[error("{}: all {limit} numbers have been given out", path.display())]
    SlotsExhausted {
        /// The file.
        path: PathBuf,
        /// How many there are.
        limit: u32,
    },
}

impl StoreError {
    /// What the user can do about it, where there is something: a sentence for a line of its own.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Missing { .. } => "`pull` and `load` make a new store; `--store` names another one",
            Self::NotAStore { .. } => "name an empty or a new directory with `--store`",
            Self::Permission { .. } => "run as the store's owner, or name another store with `--store`",
            Self::DiskFull { .. } | Self::NoSpace { .. } => {
                "`rm` and `gc` free space; what was downloaded is kept and resumed"
            }
            Self::NoBlob { .. } | Self::Damaged { .. } => "pull or load the image again",
            Self::DaemonRuns { .. } => "use its mount, or stop it first",
            Self::Slots { .. } | Self::SlotsExhausted { .. } => {
                "delete this file while no daemon runs: inode numbers then start anew"
            }
            Self::Version { .. } => "use the program that wrote it, or another store",
            _ => return None,
        })
    }

    /// Sorts an answer of the system into the variants that users can act on.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::ACCESS | Errno::PERM) => Self::Permission { path, action, source },
            Some(Errno::ROFS) => Self::ReadOnly { path, source },
            Some(Errno::NOSPC | Errno::DQUOT) => Self::DiskFull { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Unwraps an error that came through `std::io::Write` of a store's file, so that it still names the file.
    ///
    /// `path` is named for any other error.
    #[must_use]
    pub fn from_write(path: &Path, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(error) => Self::io("write", path, error),
        }
    }

    /// The same error in the dress that `std::io` traits ask for; [`StoreError::from_write`] undoes it.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::DiskFull { .. } | Self::NoSpace { .. } => io::ErrorKind::StorageFull,
            Self::Permission { source, .. } | Self::Io { source, .. } | Self::ReadOnly { source, .. } => {
                source.kind()
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

/// Adds to an answer of the system what was tried on which file.
pub(super) trait At<T> {
    /// `action` is a verb with its object where the path alone does not tell it.
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(action, path, error.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_and_names_the_file() {
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = full.write_all(b"x").at("write", Path::new("/dev/full")).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/full"));
        assert!(error.source().is_some());
    }

    #[test]
    fn a_store_error_survives_the_write_trait() {
        let wrapped = StoreError::io("write", Path::new("/s/b"), Errno::NOSPC.into()).into_io();
        assert_eq!(wrapped.kind(), io::ErrorKind::StorageFull);
        let back = StoreError::from_write(Path::new("/other"), wrapped);
        assert!(matches!(back, StoreError::DiskFull { path, .. } if path == Path::new("/s/b")));
    }
}
