//! Errors of the queue. Each names the environment, the revision or the file.

use std::path::PathBuf;

use super::RevisionState;
use super::context::ContextError;
use super::dockerfile::DockerfileError;
use super::fault::BuildFault;
use super::id::{EnvironmentId, EnvironmentNameError, RevisionId, RevisionNumber};
use super::records::AttributionError;
use crate::error::ErrorCode;
use crate::image::{Digest, Platform, ReferenceError};
use crate::os::PathError;
use crate::registry::RegistryError;

/// An operation on the queue failed.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentsError {
    /// A file of the queue cannot be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A name is malformed.
    #[error(transparent)]
    Name(#[from] EnvironmentNameError),
    /// A change is attributed to nobody.
    #[error(transparent)]
    Attribution(#[from] AttributionError),
    /// There is no queue.
    #[error("there is no queue at {}", .path.display())]
    NoQueue {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has other content.
    #[error("{} is not a queue, and not empty", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The queue was written by another version of this program.
    #[error("the queue {} has format version `{version}`; this program supports only 1", .path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// The version.
        version: String,
    },
    /// Another user could change the queue.
    #[error("the queue {} is not trusted: {}: {reason}", .path.display(), .part.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// The part of its path.
        part: PathBuf,
        /// Why the part is not trusted.
        reason: String,
    },
    /// Another process has changed the queue for too long.
    #[error("another process has held the lock {} for more than {seconds} seconds", .path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long this process waited.
        seconds: u64,
    },
    /// A file of the queue does not have its form.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The environment has no revision.
    #[error("environment {0} is not in the queue")]
    NoEnvironment(EnvironmentId),
    /// The environment has no such revision.
    #[error("revision {revision} is not in the queue: the newest one of {} is {newest}", .revision.environment)]
    NoRevision {
        /// The revision.
        revision: RevisionId,
        /// The newest revision of the environment.
        newest: RevisionNumber,
    },
    /// The environment has the highest number.
    #[error("environment {0} has no number for another revision")]
    NoNumber(EnvironmentId),
    /// The revision is in a state in which the operation makes no sense.
    #[error("revision {revision} cannot be {operation}: {reason}")]
    State {
        /// The revision.
        revision: RevisionId,
        /// What was to be done, such as `approved`.
        operation: &'static str,
        /// The state of the revision.
        state: RevisionState,
        /// The state in words, with who brought the revision into it.
        reason: String,
    },
    /// The environment has nothing to retire.
    #[error("environment {0} has no published revision that workers could offer")]
    NothingCurrent(EnvironmentId),
    /// The environment is retired already.
    #[error("environment {id} is retired already (by {who})")]
    Retired {
        /// The environment.
        id: EnvironmentId,
        /// Who retired it.
        who: String,
    },
    /// The revision to make current is current.
    #[error("workers offer revision {0} already")]
    Current(RevisionId),
    /// No revision was published before the current one.
    #[error("environment {0} has no published revision before the one that workers offer")]
    NothingBefore(EnvironmentId),
    /// A context is refused.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The context is not the one that was submitted.
    #[error(
        "the context of revision {revision} has changed: its digest is {actual}, and {expected} was submitted"
    )]
    ContextChanged {
        /// The revision.
        revision: RevisionId,
        /// The digest at submission.
        expected: Digest,
        /// The digest now.
        actual: Digest,
    },
    /// The reviewer has seen another context.
    #[error("revision {revision} has the context {actual}, not {expected}")]
    OtherContext {
        /// The revision.
        revision: RevisionId,
        /// The digest that the reviewer named.
        expected: Digest,
        /// The digest of the revision.
        actual: Digest,
    },
    /// The Dockerfile cannot be read.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A base image is not known, or not allowed.
    #[error("Dockerfile line {line}: {reason}")]
    Base {
        /// The line of the Dockerfile.
        line: usize,
        /// Why the image cannot be used.
        reason: String,
    },
    /// The name of a base image is malformed.
    #[error("Dockerfile line {line}")]
    BaseName {
        /// The line of the Dockerfile.
        line: usize,
        /// What is wrong with the name.
        source: ReferenceError,
    },
    /// Another process builds the revisions of the queue.
    #[error("the queue {} has another builder", .0.display())]
    OtherBuilder(PathBuf),
    /// A program is not installed.
    #[error("the program `{program}`, which builds need, is not on PATH")]
    NoTool {
        /// The program.
        program: &'static str,
        /// Its Debian package.
        package: &'static str,
    },
    /// The revision is for another platform.
    #[error("revision {revision} is for {wanted}, and this builder builds only for {own}")]
    BuildPlatform {
        /// The revision.
        revision: RevisionId,
        /// The platform of the revision.
        wanted: Platform,
        /// The platform of this host.
        own: Platform,
    },
    /// The revision needs hosts.
    #[error("revision {revision} needs hosts ({hosts}), and builds have no network")]
    BuildHosts {
        /// The revision.
        revision: RevisionId,
        /// The hosts.
        hosts: String,
    },
    /// buildah could not be started as builds need it.
    #[error("the build cannot begin: {0}")]
    BuildSetup(String),
    /// The smoke command cannot be run on this host.
    #[error("the smoke command cannot be run: {0}")]
    SmokeSetup(String),
    /// The revision cannot be built.
    #[error("the build of {revision} has failed ({fault}): {message}")]
    Build {
        /// The revision.
        revision: RevisionId,
        /// The kind of failure.
        fault: BuildFault,
        /// What happened.
        message: String,
        /// The output of the build, as a hint.
        hint: String,
    },
    /// A published list cannot name the image.
    #[error("the image of {0} is in no registry: it was built without one")]
    LocalImage(RevisionId),
    /// The digest of a base image cannot be determined.
    #[error("Dockerfile line {line}")]
    BaseDigest {
        /// The line of the Dockerfile.
        line: usize,
        /// The error of the registry.
        source: Box<RegistryError>,
    },
}

impl EnvironmentsError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(error) => error.code(),
            Self::Name(error) => error.code(),
            Self::Attribution(error) => error.code(),
            Self::NoQueue { .. } => ErrorCode::NoQueue,
            Self::Foreign { .. } | Self::Version { .. } => ErrorCode::StoreFormat,
            Self::Untrusted { .. } => ErrorCode::Untrusted,
            Self::Busy { .. } | Self::OtherBuilder(_) => ErrorCode::Busy,
            Self::NoTool { .. } | Self::BuildSetup(_) | Self::SmokeSetup(_) | Self::BuildHosts { .. } => {
                ErrorCode::Host
            }
            Self::BuildPlatform { .. } => ErrorCode::NoPlatform,
            Self::Build { .. } => ErrorCode::Build,
            Self::Damaged { .. } | Self::ContextChanged { .. } => ErrorCode::Damaged,
            Self::NoEnvironment(_) | Self::NoRevision { .. } => ErrorCode::NoRevision,
            Self::NoNumber(_)
            | Self::State { .. }
            | Self::NothingCurrent(_)
            | Self::Retired { .. }
            | Self::Current(_)
            | Self::NothingBefore(_)
            | Self::LocalImage(_)
            | Self::OtherContext { .. } => ErrorCode::RevisionState,
            Self::Context(error) => error.code(),
            Self::Dockerfile(_) | Self::Base { .. } | Self::BaseName { .. } => ErrorCode::Dockerfile,
            Self::BaseDigest { source, .. } => source.code(),
        }
    }

    /// Advice for the user.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoQueue { .. } => Some("`env submit` creates a queue; `--queue DIR` selects another one"),
            Self::Foreign { .. } => Some("`--queue DIR` selects another directory"),
            Self::NoEnvironment(_) | Self::NoRevision { .. } => {
                Some("`rcx-imagefs env list` lists all revisions")
            }
            Self::ContextChanged { .. } => {
                Some("somebody has changed a file of the queue; submit the context again")
            }
            Self::OtherBuilder(_) => Some("a queue has one builder at a time; wait for its end, or stop it"),
            Self::NoTool { package, .. } => Some(package),
            Self::BuildHosts { .. } => {
                Some("put the files into the context; `env withdraw` takes the revision back")
            }
            Self::BuildSetup(_) => Some("builds need root, loop devices, ext4 and overlayfs"),
            Self::Build { hint, .. } => Some(hint),
            Self::LocalImage(_) => Some(
                "set `registry` in the table [environments] of the builder's configuration, and submit the revision again",
            ),
            Self::State { state: RevisionState::Building, .. } => {
                Some("wait for the end of the build, or stop the builder")
            }
            Self::State { .. } => {
                Some("a revision is decided about once; submit another one with `env submit`")
            }
            _ => None,
        }
    }
}
