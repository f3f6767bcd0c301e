//! The errors of mounting, serving and unmounting.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorCode;
use crate::os::PathError;

/// The error of mounting, serving or unmounting the filesystem.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The mountpoint does not exist.
    #[error("mountpoint {0} does not exist")]
    Missing(PathBuf),
    /// The mountpoint is not a directory.
    #[error("mountpoint {0} is not a directory")]
    NotADirectory(PathBuf),
    /// The mountpoint has entries, which the mount would hide.
    #[error("mountpoint {0} is not empty")]
    NotEmpty(PathBuf),
    /// A running daemon serves this mountpoint.
    #[error("mountpoint {0} is busy: another rcx-imagefs daemon serves it")]
    Served(PathBuf),
    /// Another filesystem is mounted there.
    #[error("mountpoint {0} is busy: another filesystem is mounted there")]
    Busy(PathBuf),
    /// The mountpoint cannot be examined.
    #[error(transparent)]
    Mountpoint(#[from] PathError),
    /// The kernel has no FUSE, or its module is not loaded.
    #[error("FUSE is not available in this kernel")]
    NoFuse(#[source] io::Error),
    /// The process lacks the privilege to mount.
    #[error("cannot mount {path}: no permission")]
    Permission {
        /// The mountpoint.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refused a step of mounting.
    #[error("cannot mount {path}: {step}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The system call or mount option that failed.
        step: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// FUSE_INIT negotiation failed, the connection broke, or a thread could not be started.
    #[error("cannot serve the FUSE connection")]
    Serve(#[source] io::Error),
    /// The kernel refused to unmount.
    #[error("cannot unmount {path}")]
    Unmount {
        /// The mountpoint.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

impl SessionError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing(_)
            | Self::NotADirectory(_)
            | Self::NotEmpty(_)
            | Self::Served(_)
            | Self::Busy(_)
            | Self::Mountpoint(_) => ErrorCode::Mountpoint,
            Self::NoFuse(_) => ErrorCode::Kernel,
            Self::Permission { .. } => ErrorCode::Permission,
            Self::Mount { .. } | Self::Unmount { .. } => ErrorCode::Mount,
            Self::Serve(_) => ErrorCode::Io,
        }
    }

    /// What the user can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(path) => Some(format!("create it with `mkdir -p {}`", path.display())),
            Self::NotEmpty(_) => Some("`--allow-nonempty` hides the entries behind the mount".to_owned()),
            Self::Served(_) => Some("use its mount, or stop that daemon first".to_owned()),
            Self::NoFuse(_) => Some("load the kernel module with `modprobe fuse`".to_owned()),
            Self::Permission { .. } => Some(
                "run the command as root: mounting needs CAP_SYS_ADMIN and access to /dev/fuse".to_owned(),
            ),
            Self::NotADirectory(_)
            | Self::Busy(_)
            | Self::Mountpoint(_)
            | Self::Mount { .. }
            | Self::Serve(_)
            | Self::Unmount { .. } => None,
        }
    }
}
