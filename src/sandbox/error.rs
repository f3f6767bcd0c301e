//! Why a command could not be run in a sandbox. What the program itself does wrong is no error but a result.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::command::ProgramFault;
use super::isolate::{IsolateError, IsolateVersion};
use crate::roots::RootsError;

/// What kept a run from happening, or its files from coming out.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Sandboxes need mounts.
    #[error("only root can run programs in images: this takes mounts and namespaces")]
    NotRoot,
    /// Neither sandbox is there.
    #[error("neither `isolate` nor `bwrap` is on the PATH")]
    NoSandbox,
    /// The sandbox that was asked for is not there.
    #[error("`{0}` is not on the PATH")]
    Missing(&'static str),
    /// isolate cannot be used, or not in this way.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// An option that other versions know.
    #[error("option `--{option}`: isolate {version} does not know it")]
    Unknown {
        /// The option.
        option: &'static str,
        /// What is installed.
        version: IsolateVersion,
    },
    /// An option that means nothing without another one.
    #[error("option `--{option}` needs `--{needed}`")]
    Needs {
        /// The option.
        option: &'static str,
        /// The other one.
        needed: &'static str,
    },
    /// Not a rule for a variable.
    #[error("variable `{}` has no name", .0.display())]
    Variable(OsString),
    /// A limit that nobody would hold the program to.
    #[error("option `--{0}`: bubblewrap enforces no limits")]
    NoLimits(&'static str),
    /// Something else that bubblewrap does not do.
    #[error("option `--{option}`: {why}")]
    NotWithBubblewrap {
        /// The option.
        option: &'static str,
        /// What is the matter.
        why: &'static str,
    },
    /// A directory that nobody would see.
    #[error("directory rule for {at}: bubblewrap mounts its own {over} over it")]
    Hidden {
        /// Where it was to be.
        at: PathBuf,
        /// What hides it.
        over: PathBuf,
    },
    /// The root could not be made or removed.
    #[error(transparent)]
    Overlay(#[from] RootsError),
    /// Nothing says what to run.
    #[error("no command: the image has none, and none is given")]
    NoCommand,
    /// The program cannot be executed.
    #[error("program `{}`: {fault}", .program.display())]
    Program {
        /// As it was given.
        program: OsString,
        /// Why.
        fault: ProgramFault,
    },
    /// The image's environment cannot be handed on.
    #[error("the image's configuration: {0}")]
    ImageConfig(&'static str),
    /// Another run has the box.
    #[error("box {0} is in use by another run")]
    BoxInUse(u32),
    /// Somebody else has the box.
    #[error("box {id}: {message}")]
    BoxTaken {
        /// The box.
        id: u32,
        /// What isolate says.
        message: String,
    },
    /// All boxes are in use.
    #[error("no box of {first}-{last} is free")]
    NoFreeBox {
        /// The first of the range.
        first: u32,
        /// The last of it.
        last: u32,
    },
    /// What is written is not a range of boxes.
    #[error("box ids `{0}` are not of the form FIRST-LAST")]
    BoxRange(String),
    /// The sandbox itself failed.
    #[error("{sandbox}: {message}")]
    Sandbox {
        /// Its program, and what it was to do.
        sandbox: &'static str,
        /// What it says.
        message: String,
    },
    /// The run was told to end before the program was started.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// The process that the sandbox is started from ended before its time.
    #[error("the first process of the run {0}")]
    FirstProcess(String),
    /// Not a name for a file in the box.
    #[error("`{}` does not name a file in the box", .0.display())]
    CopyName(OsString),
    /// The program did not leave what was to be copied.
    #[error("{0} is not there after the run")]
    NotLeft(PathBuf),
    /// Only files and directories are copied.
    #[error("{path} is {what}: only files and directories are copied")]
    NotCopied {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Directories within directories go further down than is copied.
    #[error("{path}: more than {limit} directories deep")]
    TooDeep {
        /// The last one.
        path: PathBuf,
        /// How many are copied.
        limit: usize,
    },
    /// A file or directory could not be used.
    #[error("{step} {path}")]
    Io {
        /// What was done with it.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("{step}")]
    Step {
        /// The step.
        step: String,
        /// What came of it.
        source: io::Error,
    },
}

impl SandboxError {
    /// What to do about it, if anything can be said.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoSandbox => Some("install isolate, or bubblewrap, which isolates without limits"),
            Self::Missing("isolate") => Some(
                "install isolate, name it in `path` of the configuration's table [isolate], or use `--sandbox bwrap`",
            ),
            Self::Missing(_) => Some("install the package bubblewrap"),
            Self::Isolate(IsolateError::TooOld { .. }) => {
                Some("install a newer isolate, or use `--sandbox bwrap`, which isolates without limits")
            }
            Self::NoLimits(_) => Some("leave the option out, or use `--sandbox isolate`"),
            Self::Overlay(error) => error.hint(),
            Self::NoCommand => Some("name one: `rcx-imagefs run REF -- COMMAND ARGUMENT...`"),
            Self::BoxTaken { .. } | Self::NoFreeBox { .. } => Some(
                "`isolate --box-id=N --cleanup` frees a box that nothing uses; `box-ids` of the table [run] is the range",
            ),
            _ => None,
        }
    }

    pub(super) fn step(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Step { step: step.into(), source: source.into() }
    }
}

/// Names what was done with which file when that failed.
pub(super) trait At<T> {
    fn at(self, step: &'static str, path: &Path) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str, path: &Path) -> Result<T, SandboxError> {
        self.map_err(|error| SandboxError::Io { step, path: path.to_owned(), source: error.into() })
    }
}
