//! Errors from looking up credentials.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::ErrorCode;
use crate::os::PathError;

/// Stored credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file with credentials cannot be read.
    #[error(transparent)]
    Read(#[from] PathError),
    /// A file with credentials is not JSON of the expected form.
    #[error("{} is not a valid credential file", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The entry of a registry is malformed.
    #[error("{}: the entry `{key}` is malformed", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        key: String,
        /// The underlying error.
        source: docker_credential::CredentialRetrievalError,
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
    /// The only stored credential is a refresh token.
    #[error("the credential stored for `{key}` is an identity token, which is not supported")]
    IdentityToken {
        /// The key of the entry.
        key: String,
    },
}

impl AuthError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Read(_)
            | Self::Parse { .. }
            | Self::Entry { .. }
            | Self::HelperStart { .. }
            | Self::HelperFailed { .. }
            | Self::HelperDeadline { .. }
            | Self::HelperOutput { .. }
            | Self::IdentityToken { .. } => ErrorCode::Credentials,
        }
    }

    /// What the user can do about this error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HelperStart { helper, path, .. } => {
                Some(format!("install `{helper}`, or remove it from {}", path.display()))
            }
            Self::IdentityToken { .. } => {
                Some("log in again with a user name and a password or access token".to_owned())
            }
            _ => None,
        }
    }
}
