//! Errors of the store. Each variant names the file or the blob.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::error::ErrorCode;
use crate::image::Digest;
use crate::os::PathError;

/// An operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's directory is missing or empty.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The store's directory.
        path: PathBuf,
    },
    /// The directory is not empty and contains no OCI image layout.
    #[error("{} is not a store: it has no `oci-layout` file and is not empty", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// The layout, or the directory beside it, has an unsupported version.
    #[error("{} has version `{found}`; only version `{supported}` is supported", path.display())]
    Version {
        /// The file that holds the version.
        path: PathBuf,
        /// The version in the file.
        found: String,
        /// The version that this program reads and writes.
        supported: &'static str,
    },
    /// The operating system denied access.
    #[error("no permission to {action} {}", path.display())]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// The denied operation: a verb.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The store's owner gives other users no access, or not this access.
    #[error("store {} is private: it belongs to user {owner} and has mode {mode:04o}", path.display())]
    Private {
        /// The store's directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another user could change a file or a directory, or has put it in place of one of the store's.
    #[error("{} is not trusted: {reason}", path.display())]
    Untrusted {
        /// The file or directory.
        path: PathBuf,
        /// Why it is not trusted.
        reason: String,
    },
    /// The store is on a read-only filesystem.
    #[error("cannot {action} {}: the filesystem is read-only", path.display())]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
        /// The denied operation: a verb.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The disk or a quota became full during a write.
    #[error("cannot {action} {}: the disk or a quota is full", path.display())]
    DiskFull {
        /// The file or directory.
        path: PathBuf,
        /// The failed operation: a verb.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// Less space is free than the next step needs.
    #[error("{} has {free} bytes of free space, but {needed} are needed", path.display())]
    NoSpace {
        /// The store's directory.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes that an unprivileged process can still write.
        free: u64,
    },
    /// A plain layer has no room in its budget.
    #[error("{} has no room: the budget of plain layers is {budget} bytes, and those in use take {used}", path.display())]
    PlainBudget {
        /// The file that is being written.
        path: PathBuf,
        /// The most bytes that plain layers may take now.
        budget: u64,
        /// The bytes of those that cannot be removed.
        used: u64,
    },
    /// Any other error of the operating system.
    #[error(transparent)]
    Io(PathError),
    /// A symlink, a device or another special file was found instead of a regular file or a directory.
    #[error("{} is not a {expected}", path.display())]
    WrongFileType {
        /// The path.
        path: PathBuf,
        /// `regular file` or `directory`.
        expected: &'static str,
    },
    /// The store does not have a requested blob.
    #[error("blob {digest} is not in the store")]
    NoBlob {
        /// The blob.
        digest: Digest,
    },
    /// The content of a blob's file does not match the blob's digest or size.
    #[error("blob {digest} is damaged ({}): {reason}", path.display())]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// The difference.
        reason: String,
    },
    /// Content to be stored has the wrong digest.
    #[error("content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// The digest of the blob to be stored.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// Content to be stored has the wrong size.
    #[error("content of {digest} has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The digest of the blob to be stored.
        digest: Digest,
        /// The expected size in bytes.
        expected: u64,
        /// The size of the content in bytes.
        actual: u64,
    },
    /// A document exceeds the size limit for its kind.
    #[error("{} has {size} bytes, more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Another process held a lock for longer than the caller was willing to wait.
    #[error("{holder} holds the lock {} (waited {waited:?})", path.display())]
    Busy {
        /// The kind of process that holds the lock.
        holder: String,
        /// The lock file.
        path: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// Another daemon serves this store.
    #[error("a daemon already serves this store (process {pid}, mounted on {})", mountpoint.display())]
    DaemonRuns {
        /// The daemon's process ID.
        pid: u32,
        /// The daemon's mountpoint.
        mountpoint: PathBuf,
    },
    /// A JSON file of the store is malformed. It is left unchanged.
    #[error("{} is damaged", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parse error, with line and column.
        source: serde_json::Error,
    },
    /// The slots file is damaged in a place other than its unfinished last line.
    #[error("{} is damaged in line {line}: {reason}", path.display())]
    Slots {
        /// The file.
        path: PathBuf,
        /// The first damaged line, counted from 1.
        line: usize,
        /// The damage.
        reason: String,
    },
    /// All slots are in use.
    #[error("all {limit} slots of {} are in use", path.display())]
    SlotsExhausted {
        /// The slots file.
        path: PathBuf,
        /// The number of slots.
        limit: u32,
    },
}

impl StoreError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } => ErrorCode::NoStore,
            Self::NotAStore { .. } | Self::Version { .. } | Self::WrongFileType { .. } => {
                ErrorCode::StoreFormat
            }
            Self::Permission { .. } | Self::Private { .. } => ErrorCode::Permission,
            Self::Untrusted { .. } => ErrorCode::Untrusted,
            Self::ReadOnly { .. } => ErrorCode::ReadOnlyFilesystem,
            Self::DiskFull { .. } | Self::NoSpace { .. } | Self::PlainBudget { .. } => ErrorCode::DiskFull,
            Self::Io(error) => error.code(),
            Self::NoBlob { .. } => ErrorCode::NoBlob,
            Self::Damaged { .. } | Self::Json { .. } | Self::Slots { .. } => ErrorCode::Damaged,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => ErrorCode::WrongContent,
            Self::TooLarge { .. } => ErrorCode::Document,
            Self::Busy { .. } => ErrorCode::Busy,
            Self::DaemonRuns { .. } => ErrorCode::DaemonRuns,
            Self::SlotsExhausted { .. } => ErrorCode::NoSlot,
        }
    }

    /// What the user can do about this error, as a sentence for a separate line.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Missing { .. } => "`pull` and `load` create a store; `--store DIR` selects another one",
            Self::NotAStore { .. } => "choose a new or an empty directory with `--store DIR`",
            Self::Permission { .. } => {
                "run as the owner of the store, or select another store with `--store DIR`"
            }
            Self::Private { .. } => {
                "run as root or as the owner of the store, or select another store with `--store DIR`"
            }
            Self::Untrusted { .. } => "`chown` and `chmod` it, or remove it, if you know how it came there",
            Self::DiskFull { .. } | Self::NoSpace { .. } => {
                "free space with `rm` and `gc --partial`; without `--partial`, an interrupted download resumes where it stopped"
            }
            Self::PlainBudget { .. } => {
                "raise `plain-budget` in the table [erofs] of the configuration, or free space; without its plain layers, the daemon serves the image"
            }
            Self::NoBlob { .. } | Self::Damaged { .. } => "pull or load the image again",
            Self::DaemonRuns { .. } => "use its mount, or stop that daemon first",
            Self::Slots { .. } | Self::SlotsExhausted { .. } => {
                "delete this file while no daemon runs; all inode numbers then change"
            }
            Self::Version { .. } => "use the program version that wrote it, or another store",
            _ => return None,
        })
    }

    /// The error of an operation on a store that its owner does not permit.
    pub(super) fn private(path: &Path, stat: &Stat, errno: Errno) -> Self {
        let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
        Self::Private { path: path.to_owned(), owner, mode, source: errno.into() }
    }

    /// Returns the error inside an error of a [`std::io::Write`] implementation of the store, which names the file.
    ///
    /// Any other error becomes a failed write to `path`.
    #[must_use]
    pub fn from_write(path: &Path, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(error) => PathError::new("write", path, error).into(),
        }
    }

    /// Wraps this error for [`std::io::Write`]; [`StoreError::from_write`] unwraps it.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::DiskFull { .. } | Self::NoSpace { .. } | Self::PlainBudget { .. } => {
                io::ErrorKind::StorageFull
            }
            Self::Permission { source, .. }
            | Self::Private { source, .. }
            | Self::ReadOnly { source, .. } => source.kind(),
            Self::Io(error) => error.source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

impl From<PathError> for StoreError {
    /// Separates the errors that a user can act on from all others.
    fn from(error: PathError) -> Self {
        let code = error.code();
        let PathError { action, path, source } = error;
        match code {
            ErrorCode::Permission => Self::Permission { path, action, source },
            ErrorCode::ReadOnlyFilesystem => Self::ReadOnly { path, action, source },
            ErrorCode::DiskFull => Self::DiskFull { path, action, source },
            _ => Self::Io(PathError { action, path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::Write as _;

    use super::*;
    use crate::os::AtPath as _;

    #[test]
    fn full_disk_has_its_own_variant_that_names_the_file() {
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error: StoreError = full.write_all(b"x").at("write", Path::new("/dev/full")).unwrap_err().into();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/full"));
        assert!(error.source().is_some());
    }

    #[test]
    fn store_error_survives_the_write_trait() {
        let full = PathError::new("write", "/s/b", Errno::NOSPC);
        let wrapped = StoreError::from(full).into_io();
        assert_eq!(wrapped.kind(), io::ErrorKind::StorageFull);
        let unwrapped = StoreError::from_write(Path::new("/other"), wrapped);
        assert!(matches!(unwrapped, StoreError::DiskFull { path, .. } if path == Path::new("/s/b")));
    }
}
