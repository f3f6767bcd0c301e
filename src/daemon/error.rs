//! The errors of the daemon.

use std::io;
use std::path::PathBuf;

use super::control::ControlError;
use crate::error::ErrorCode;
use crate::fs::LoadError;
use crate::fuse::SessionError;
use crate::os::PathError;
use crate::store::StoreError;

/// The error of starting or running a daemon, or of requesting a refresh.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store cannot be locked, or the daemon that serves it cannot be found.
    #[error("store {path}")]
    Store {
        /// The store's directory.
        path: PathBuf,
        /// The underlying error.
        source: Box<StoreError>,
    },
    /// The store's references cannot be read.
    #[error("cannot read the references of the store")]
    References(#[source] LoadError),
    /// Mounting, serving or unmounting failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control socket cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] PathError),
    /// The mount would hide the store or the run directory from the daemon.
    #[error("mountpoint {mountpoint} would hide {path}, which the daemon needs")]
    Hidden {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The store or the run directory.
        path: PathBuf,
    },
    /// Basic process resources could not be set up.
    #[error("{failure}")]
    System {
        /// The operation that failed.
        failure: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

impl DaemonError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Store { source, .. } => source.code(),
            Self::References(error) => error.code(),
            Self::Session(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::RunDir(error) => error.code(),
            Self::Hidden { .. } => ErrorCode::Mountpoint,
            Self::System { .. } => ErrorCode::Io,
        }
    }

    /// What the user can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            Self::References(error) => error.hint(),
            Self::Session(error) => error.hint(),
            Self::Control(error) => error.hint(),
            Self::RunDir(_) | Self::Hidden { .. } | Self::System { .. } => None,
        }
    }
}
