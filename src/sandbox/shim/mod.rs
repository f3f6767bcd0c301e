//! A stand-in for isolate: called with a worker's arguments, it becomes the real isolate, in the root of an image if the call
//! requests an image.
//!
//! A worker that runs `isolate` from its `PATH` needs no change: it finds this program under that name. If the call requests no
//! image, the stand-in executes the real isolate with the same arguments, descriptors and identity. Otherwise it makes a root
//! in a mount namespace of its own, rewrites the call for that root, and executes isolate in a child process. The process that
//! the caller started becomes the supervisor: it waits for isolate, ends as isolate does, and reports a failure of the sandbox
//! if the image could not be read.
//!
//! Workers are not root, and only root can make such a namespace. So the program is installed set-uid, as isolate is, and
//! does little before it drops its privileges:
//!
//! - It opens, follows and runs nothing that the caller names while it has privileges. It compares the path of an image with
//!   the mountpoint as text, and the kernel resolves the rest below the mountpoint. It opens the meta file and executes
//!   isolate only after it has dropped its privileges permanently.
//! - Settings come only from the configuration file, and only if nobody but root can write that file.
//! - Another process, the guardian, removes the root, however the others end. The caller cannot reach it.

mod caller;
mod choice;
mod exec;
mod guardian;
mod host_commands;
mod image_home;
mod images;
mod program;
mod real_isolate;
mod rewrite;
mod stored;
mod subject;
mod supervisor;
mod syslog;
mod trusted;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use caller::{Caller, Rights};
pub use choice::{ImageChoice, choose, may_request_image};
pub use exec::{ShimSettings, become_isolate, meta_file};
pub use host_commands::HostCommands;
pub use images::{BoxImages, ImageName};
pub use rewrite::CallRewrite;
pub use subject::call_subject;
pub use syslog::{SYSLOG_SOCKET, log_failure};
pub use trusted::{require_trusted, require_trusted_path};

use super::command::ProgramFault;
use super::error::SandboxError;
use super::isolate::IsolateError;
use crate::daemon::{ControlError, ReadFault};
use crate::error::ErrorCode;
use crate::fs::LoadError;
use crate::os::{PathError, UntrustedPart};
use crate::pipeline::PipelineError;
use crate::roots::RootsError;
use crate::store::StoreError;

/// The error of becoming isolate.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// A name of an image has the wrong form.
    #[error("image `{0}` is not of the form NAME[:TAG][@DIGEST]")]
    ImageName(String),
    /// A key of the table of images has the wrong form.
    #[error("boxes `{0}`: expected a number, a range such as 10-19, or `default`")]
    Boxes(String),
    /// The same box has two images.
    #[error("box {0} has two images")]
    BoxTwice(u32),
    /// A pattern of commands that run on the host has the wrong form.
    #[error(
        "host command `{0}`: expected an absolute path without `.` and `..`; `*` stands for part of a name"
    )]
    HostCommand(String),
    /// The first rule for the root is for no image, and a later one is.
    #[error("the first directory rule for the root is not for an image, but another one is for {image}")]
    TwoRoots {
        /// The image of the later rule.
        image: PathBuf,
    },
    /// The command cannot be executed in the image.
    #[error("program `{}` of image {image}: {fault}", .program.display())]
    Program {
        /// The program, as the caller names it.
        program: OsString,
        /// The image.
        image: String,
        /// Why it cannot be executed.
        fault: ProgramFault,
    },
    /// The call is for an image, and its command lies in another one.
    #[error("program {} is in image {other}, but the call is for image {image}", .program.display())]
    OtherImage {
        /// The program, as the caller names it.
        program: OsString,
        /// The image that the program lies in.
        other: String,
        /// The image of the call.
        image: String,
    },
    /// The arguments cannot be parsed, so the call may request an image.
    #[error("cannot parse the isolate arguments; they may request an image")]
    Arguments(#[source] IsolateError),
    /// The call is invalid, or the real isolate cannot be used.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// The number of the box selects its image and cannot be parsed.
    #[error("cannot choose the image of box `{0}`: not a number")]
    BoxId(String),
    /// A `run` uses the box.
    #[error("box {0} is in use by another run")]
    BoxInUse(u32),
    /// The file of the box's lock cannot be used.
    #[error(transparent)]
    BoxLock(Box<SandboxError>),
    /// A path into the mount contains `..`.
    #[error("image {0}: a path into the mount must not contain `..`")]
    ParentDir(PathBuf),
    /// A path into the mount does not lead to an image.
    #[error("{0} is not an image")]
    NotAnImage(PathBuf),
    /// The path of a rule is the root itself.
    #[error("directory rule for {0}: in the image, this path is the root")]
    OverRoot(PathBuf),
    /// The path of a rule leads into another mount.
    #[error("directory rule for {path}: in the image, this path leads into {mount}, which is mounted over")]
    Covered {
        /// The path of the rule.
        path: PathBuf,
        /// The path of the other mount.
        mount: PathBuf,
    },
    /// The real isolate does not exist.
    #[error("there is no isolate at {}", list(.0))]
    NoIsolate(Vec<PathBuf>),
    /// The configured isolate is this program.
    #[error("isolate {0} is this program itself")]
    Itself(PathBuf),
    /// Users other than root could have written a file, or could make a path lead elsewhere.
    #[error("{path} is not trusted: {reason}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why the file is not trusted.
        reason: String,
    },
    /// A file could not be examined.
    #[error(transparent)]
    Io(#[from] PathError),
    /// No daemon serves the store.
    #[error("no daemon serves the store {0}")]
    NoDaemon(PathBuf),
    /// The names of the images cannot be read from the store.
    #[error("cannot read the names of the images in the store {}", .0.display())]
    Names(PathBuf, #[source] Box<LoadError>),
    /// The call requests an image, but the process has no privileges.
    #[error("making a root requires root privileges: this program is neither run by root nor set-uid root")]
    Unprivileged,
    /// The daemon runs, but does not answer the kernel.
    #[error("the mount {} does not answer: its daemon is stopped or hangs", .0.display())]
    MountHangs(PathBuf),
    /// The process that makes the root hangs.
    #[error("the root was not ready after {} seconds: the mount or a disk hangs", .0.as_secs())]
    NotStarted(Duration),
    /// The root could not be made.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image's configuration could not be read.
    #[error("cannot read the configuration of image {image}")]
    Config {
        /// The image.
        image: String,
        /// The underlying error.
        source: PipelineError,
    },
    /// The daemon does not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The result says nothing about the program, because the image could not be read.
    #[error(transparent)]
    Read(#[from] ReadFault),
    /// The process that waits for isolate failed.
    #[error("cannot supervise isolate")]
    Supervisor(#[source] io::Error),
    /// The guardian could not be started.
    #[error("cannot start the guardian process")]
    Guardian(#[source] io::Error),
    /// The process could not change its identity or its limits.
    #[error("cannot {0}")]
    Process(&'static str, #[source] io::Error),
    /// The real isolate could not be executed.
    #[error("cannot execute {path}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl ShimError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::ImageName(_) | Self::ParentDir(_) => ErrorCode::Reference,
            Self::Boxes(_) | Self::BoxTwice(_) | Self::HostCommand(_) | Self::Itself(_) => {
                ErrorCode::Configuration
            }
            Self::Program { fault, .. } => fault.code(),
            Self::OtherImage { .. } => ErrorCode::Program,
            Self::Arguments(error) | Self::Isolate(error) => error.code(),
            Self::BoxId(_) => ErrorCode::Usage,
            Self::BoxInUse(_) => ErrorCode::NoBox,
            Self::BoxLock(error) => error.code(),
            Self::NotAnImage(_) => ErrorCode::NoImage,
            Self::OverRoot(_) | Self::Covered { .. } | Self::TwoRoots { .. } => ErrorCode::SandboxOption,
            Self::NoIsolate(_) => ErrorCode::NoSandbox,
            Self::Untrusted { .. } => ErrorCode::Untrusted,
            Self::NoDaemon(_) => ErrorCode::NoDaemon,
            Self::Names(_, source) => source.code(),
            Self::MountHangs(_) | Self::NotStarted(_) => ErrorCode::Timeout,
            Self::Unprivileged => ErrorCode::Permission,
            Self::Roots(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Io(error) => error.code(),
            Self::Config { source, .. } => source.code(),
            Self::Control(error) => error.code(),
            Self::Read(fault) => fault.code(),
            Self::Supervisor(_) | Self::Guardian(_) | Self::Process(..) | Self::Execute { .. } => {
                ErrorCode::Sandbox
            }
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoIsolate(_) | Self::Itself(_) => {
                Some("set `path` in the table [isolate] of the configuration")
            }
            Self::NoDaemon(_) => Some("start a daemon with `rcx-imagefs mount DIR`"),
            Self::MountHangs(_) | Self::NotStarted(_) => Some("look at the daemon with `rcx-imagefs status`"),
            Self::Unprivileged => Some("install the program set-uid: see rcx-imagefs-isolate(8)"),
            Self::Read(fault) => fault.hint(),
            Self::Program { fault, .. } => fault.hint(),
            Self::Roots(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Config { source, .. } => return source.hint(),
            _ => None,
        };
        hint.map(str::to_owned)
    }
}

impl From<UntrustedPart> for ShimError {
    fn from(UntrustedPart { path, reason }: UntrustedPart) -> Self {
        Self::Untrusted { path, reason }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if paths.is_empty() { "any directory of PATH".to_owned() } else { paths.join(", ") }
}
