//! The account of a run: whether the daemon could serve everything that the run read.
//!
//! A program that cannot read a file of its image fails through no fault of its own. So a run asks the daemon once before and
//! once after it, and fails itself if a read failed in between.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::control::{ControlError, ask};
use super::protocol::{ControlRequest, ControlResponse};
use crate::error::ErrorCode;
use crate::fuse::{AccountMark, LazyReads, ReadFailure, ReaderQuery};
use crate::image::Image;
use crate::os;

/// How long the daemon may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The image of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountedImage {
    /// The name to show in errors: `NAME@DIGEST`.
    name: String,
    digest: String,
    layers: Vec<String>,
}

impl AccountedImage {
    /// Returns the image `name` for an account.
    #[must_use]
    pub fn new(name: &str, image: &Image) -> Self {
        let layers = image.layers().iter().map(|layer| layer.digest().to_string());
        Self { name: name.to_owned(), digest: image.digest().to_string(), layers: layers.collect() }
    }

    /// Returns an image whose name is known, but whose layers are not. `name` should end in `@DIGEST`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let digest = name.rsplit_once('@').map_or("", |(_, digest)| digest);
        Self { name: name.to_owned(), digest: digest.to_owned(), layers: Vec::new() }
    }

    /// The name to show in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a failed read could be one of this image. Images may have several names, and share layers.
    fn may_have_failed(&self, failure: &ReadFailure) -> bool {
        match (&failure.image, &failure.layer) {
            (Some(image), _) => image.rsplit_once('@').map(|(_, digest)| digest) == Some(&*self.digest),
            (None, Some(layer)) => self.layers.contains(layer),
            (None, None) => true,
        }
    }
}

/// An open account with the daemon that serves the image of a run.
///
/// Open it before the image is looked up in the mount, so that a daemon that is replaced meanwhile is detected. The account is
/// plain data: another process may close it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAccount {
    socket: PathBuf,
    mountpoint: PathBuf,
    start: AccountMark,
}

/// The reason why the result of a run says nothing about its program.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// Reads of the run failed.
    #[error("image {image}: {}{}", first.reason, more(*others))]
    Failed {
        /// The image.
        image: String,
        /// The first failed read.
        first: Box<ReadFailure>,
        /// The number of further failures.
        others: usize,
    },
    /// The daemon no longer knows all failures.
    #[error("image {image}: {lost} reads failed during the run that the daemon no longer knows")]
    Lost {
        /// The image.
        image: String,
        /// The number of unknown failures.
        lost: u64,
    },
    /// Another daemon has taken the place of the one that served the run.
    #[error("image {image}: the daemon at {socket} was replaced during the run")]
    Replaced {
        /// The image.
        image: String,
        /// The control socket.
        socket: PathBuf,
    },
    /// The daemon serves, but its mount is gone.
    #[error("image {image}: the mount at {mountpoint} ended during the run")]
    Unmounted {
        /// The image.
        image: String,
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The daemon answers, but its mount does not.
    #[error("image {image}: the mount at {mountpoint} does not answer after the run")]
    Hangs {
        /// The image.
        image: String,
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The daemon did not answer after the run.
    #[error("image {image}: cannot ask the daemon about failed reads after the run")]
    Daemon {
        /// The image.
        image: String,
        /// The underlying error.
        source: ControlError,
    },
}

impl ReadFault {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Failed { first, .. } => {
                let known = ErrorCode::ALL.iter().find(|code| code.as_str() == first.code);
                known.copied().unwrap_or(ErrorCode::Damaged)
            }
            Self::Lost { .. } => ErrorCode::Damaged,
            Self::Replaced { .. } | Self::Unmounted { .. } => ErrorCode::NoDaemon,
            Self::Hangs { .. } => ErrorCode::Timeout,
            Self::Daemon { source, .. } => source.code(),
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match (self, self.code()) {
            (Self::Failed { .. } | Self::Lost { .. }, ErrorCode::Timeout) => None,
            (Self::Failed { .. } | Self::Lost { .. }, _) => {
                Some("find the damage with `rcx-imagefs verify --deep`, then pull or load the image again")
            }
            (Self::Replaced { .. } | Self::Unmounted { .. }, _) => Some("repeat the run"),
            (Self::Hangs { .. }, _) => Some("look at the daemon with `rcx-imagefs status`"),
            (Self::Daemon { .. }, _) => Some("see the log of the daemon"),
        }
    }
}

fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more failed reads)") }
}

impl RunAccount {
    /// Opens an account with the daemon that listens at `socket` and serves `mountpoint`.
    ///
    /// # Errors
    ///
    /// The daemon does not answer.
    pub fn open(socket: &Path, mountpoint: &Path) -> Result<Self, ControlError> {
        let start = match ask(socket, ControlRequest::Ping, DEADLINE)? {
            ControlResponse::Pong(mark) => mark,
            _ => AccountMark::default(),
        };
        Ok(Self { socket: socket.to_owned(), mountpoint: mountpoint.to_owned(), start })
    }

    /// Returns the failed reads of a run that has failed; `None` if there are none, or if the daemon cannot tell.
    #[must_use]
    pub fn failed_reads(&self, process: u32, image: &AccountedImage) -> Option<ReadFault> {
        self.check_reads(process, image).err().filter(|fault| matches!(fault, ReadFault::Failed { .. }))
    }

    /// Checks that the daemon could serve every read of a run since the account was opened. Returns what the run has read from the
    /// daemon; `None` if the daemon cannot tell.
    ///
    /// The run consists of `process`, which must still exist, and its descendants. Failed reads of processes outside of it do
    /// not count. If the process of a failed read is unknown, the read counts for every run of the image.
    ///
    /// # Errors
    ///
    /// A read failed, or the daemon cannot tell.
    pub fn close(&self, process: u32, image: &AccountedImage) -> Result<Option<LazyReads>, ReadFault> {
        let reads = self.check_reads(process, image)?;
        let (image, mountpoint) = (image.name.clone(), self.mountpoint.clone());
        match os::statfs_within(&self.mountpoint, DEADLINE) {
            // The kernel may have ended the connection, although the daemon still runs.
            Ok(Some(Err(Errno::NOTCONN | Errno::CONNABORTED))) => {
                Err(ReadFault::Unmounted { image, mountpoint })
            }
            Ok(None) => Err(ReadFault::Hangs { image, mountpoint }),
            // Without a process for the question, the answer of the daemon is all that is known.
            Ok(Some(_)) | Err(_) => Ok(reads),
        }
    }

    /// Asks the daemon about the reads of a run, without using the mount.
    fn check_reads(&self, process: u32, image: &AccountedImage) -> Result<Option<LazyReads>, ReadFault> {
        let name = || image.name.clone();
        let readers = Some(ReaderQuery { process, since: self.start.reader });
        let request = ControlRequest::ReadFailures { since: self.start.sequence, readers };
        let report = match ask(&self.socket, request, DEADLINE) {
            Ok(ControlResponse::ReadFailures(report)) => report,
            // A daemon of version 0.1 keeps no accounts.
            Err(ControlError::OldDaemon { .. }) if self.start.instance == 0 => return Ok(None),
            Ok(_) => return Err(ReadFault::Replaced { image: name(), socket: self.socket.clone() }),
            Err(source) => return Err(ReadFault::Daemon { image: name(), source }),
        };
        if report.mark.instance != self.start.instance {
            return Err(ReadFault::Replaced { image: name(), socket: self.socket.clone() });
        }
        let same_numbers = report.mark.pid_namespace != 0 && report.mark.pid_namespace == os::pid_namespace();
        let mut failures = report.failures.into_iter().filter(|failure| match origin(failure, process) {
            FailureOrigin::Run if same_numbers => true,
            FailureOrigin::Other if same_numbers => false,
            _ => image.may_have_failed(failure),
        });
        match failures.next() {
            Some(first) => {
                let others = failures.count();
                Err(ReadFault::Failed { image: name(), first: Box::new(first), others })
            }
            None if report.lost > 0 => Err(ReadFault::Lost { image: name(), lost: report.lost }),
            None => Ok(report.reads.filter(|_| same_numbers)),
        }
    }
}

/// Where a failed read comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureOrigin {
    /// From a process of the run.
    Run,
    /// From another process.
    Other,
    /// From a kernel thread, from a process that the daemon cannot see, or from one whose ancestors are only partly known.
    Unknown,
}

fn origin(failure: &ReadFailure, process: u32) -> FailureOrigin {
    let mut family = std::iter::once(&failure.pid).chain(&failure.ancestors);
    if family.clone().any(|pid| *pid == process) {
        FailureOrigin::Run
    } else if family.next_back() == Some(&1) {
        FailureOrigin::Other
    } else {
        FailureOrigin::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> AccountedImage {
        AccountedImage { name: "lab/a@sha256:1".into(), digest: "sha256:1".into(), layers: vec!["l1".into()] }
    }

    #[test]
    fn failure_is_of_a_run_whose_process_is_the_reader_or_an_ancestor_of_it() {
        let failure = |pid, ancestors: &[u32]| ReadFailure {
            pid,
            ancestors: ancestors.to_vec(),
            ..ReadFailure::default()
        };
        for (pid, ancestors, expected) in [
            (7, &[1][..], FailureOrigin::Run),
            (9, &[8, 7, 1], FailureOrigin::Run),
            (9, &[8, 7], FailureOrigin::Run),
            (9, &[8, 1], FailureOrigin::Other),
            (1, &[], FailureOrigin::Other),
            (0, &[], FailureOrigin::Unknown),
            (9, &[], FailureOrigin::Unknown),
            (77, &[2], FailureOrigin::Unknown),
        ] {
            assert_eq!(origin(&failure(pid, ancestors), 7), expected, "{pid} {ancestors:?}");
        }
    }

    #[test]
    fn failure_of_an_unknown_process_counts_for_the_runs_of_its_image_or_layer() {
        let failure = |image: Option<&str>, layer: Option<&str>| ReadFailure {
            image: image.map(str::to_owned),
            layer: layer.map(str::to_owned),
            ..ReadFailure::default()
        };
        for (image_name, layer, expected) in [
            (Some("other/name@sha256:1"), None, true),
            (Some("lab/a@sha256:2"), Some("l1"), false),
            (None, Some("l1"), true),
            (None, Some("l2"), false),
            (None, None, true),
        ] {
            assert_eq!(
                image().may_have_failed(&failure(image_name, layer)),
                expected,
                "{image_name:?} {layer:?}"
            );
        }
    }
}
