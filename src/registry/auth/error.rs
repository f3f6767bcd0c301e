//! Errors from looking up and storing logins.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::ErrorCode;
use crate::os::PathError;

/// Stored logins cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A credential file cannot be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// A credential file is not JSON of the expected form.
    #[error("{} is not a valid credential file", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The entry of a registry is malformed.
    #[error("{}: the entry `{key}` is malformed: {reason}", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A credential helper cannot be run.
    #[error("cannot run the credential helper `{helper}` (named in {})", .path.display())]
    HelperStart {
        /// The name of the program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A credential helper reported an error.
    #[error("the credential helper `{helper}` failed with {status}: {message}")]
    HelperFailed {
        /// The name of the program.
        helper: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its output.
        message: String,
    },
    /// A credential helper did not end in time.
    #[error("the credential helper `{helper}` did not finish within {} s", .after.as_secs_f32())]
    HelperDeadline {
        /// The name of the program.
        helper: String,
        /// The length of the wait.
        after: Duration,
    },
    /// The output of a credential helper is malformed.
    #[error("the output of the credential helper `{helper}` is malformed")]
    HelperOutput {
        /// The name of the program.
        helper: String,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A login would have no effect, because the file names a credential helper for the registry.
    #[error("{} names the credential helper `{helper}` for {key}, so a login in the file would have no effect", .path.display())]
    HelperTakesPrecedence {
        /// The file.
        path: PathBuf,
        /// The name of the program.
        helper: String,
        /// The registry.
        key: String,
    },
    /// There is no login to remove.
    #[error("{} has no login for {key}", .path.display())]
    NoLogin {
        /// The file.
        path: PathBuf,
        /// The registry.
        key: String,
    },
    /// Another process holds the lock of the directory.
    #[error("{}: another process is changing the credential files in this directory", .0.display())]
    Busy(PathBuf),
}

impl AuthError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Busy(_) => ErrorCode::Busy,
            Self::File(_)
            | Self::Parse { .. }
            | Self::Entry { .. }
            | Self::HelperStart { .. }
            | Self::HelperFailed { .. }
            | Self::HelperDeadline { .. }
            | Self::HelperOutput { .. }
            | Self::HelperTakesPrecedence { .. }
            | Self::NoLogin { .. } => ErrorCode::Credentials,
        }
    }

    /// What the user can do about this error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HelperStart { helper, path, .. } => {
                Some(format!("install `{helper}`, or remove it from {}", path.display()))
            }
            Self::Parse { path, .. } => {
                Some(format!("repair {}, or remove it and log in again", path.display()))
            }
            Self::NoLogin { key, .. } => Some(format!(
                "--authfile chooses another file; a login of docker is removed with `docker logout {key}`"
            )),
            Self::HelperTakesPrecedence { key, .. } => Some(format!(
                "log in with `docker login {key}`, which uses the helper, or choose another file with --authfile"
            )),
            _ => None,
        }
    }
}
