//! The errors of runs. A failure of the program itself is a verdict, not an error.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::command::ProgramFault;
use super::copy::CopyError;
use super::isolate::{IsolateError, IsolateVersion};
use crate::daemon::ReadFault;
use crate::error::ErrorCode;
use crate::os::PathError;
use crate::roots::RootsError;

/// The error of a run, from its preparation to the copying of its files.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The process lacks the privileges for mounts and namespaces.
    #[error("only root can run programs in images: a run needs mounts and namespaces")]
    NotRoot,
    /// No sandbox is installed.
    #[error("neither `isolate` nor `bwrap` is on the PATH")]
    NoSandbox,
    /// The sandbox that the caller named is not installed.
    #[error("`{0}` is not on the PATH")]
    Missing(&'static str),
    /// isolate cannot be used, or its arguments are wrong.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// The installed version of isolate lacks an option.
    #[error("option `--{option}` is not supported by isolate {version}")]
    UnknownOption {
        /// The option.
        option: &'static str,
        /// The installed version.
        version: IsolateVersion,
    },
    /// An option requires another option.
    #[error("option `--{option}` needs `--{needed}`")]
    MissingOption {
        /// The option.
        option: &'static str,
        /// The missing option.
        needed: &'static str,
    },
    /// A variable rule names no variable.
    #[error("variable `{}` has no name", .0.display())]
    Variable(OsString),
    /// A limit that bubblewrap would not enforce.
    #[error("option `--{0}`: bubblewrap enforces no limits")]
    NoLimits(&'static str),
    /// Another option that bubblewrap does not support.
    #[error("option `--{option}`: {reason}")]
    NotWithBubblewrap {
        /// The option.
        option: &'static str,
        /// Why it is not supported.
        reason: &'static str,
    },
    /// The program would not see a directory that the caller has bound.
    #[error("directory rule for {path}: bubblewrap mounts {mount} over it")]
    Hidden {
        /// The path of the rule.
        path: PathBuf,
        /// The mount that hides it.
        mount: PathBuf,
    },
    /// The root could not be made or removed.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// Neither the caller nor the image has a command.
    #[error("no command was given, and the image has none")]
    NoCommand,
    /// The program cannot be executed.
    #[error("program `{}`: {fault}", .program.display())]
    Program {
        /// The program, as the caller or the image names it.
        program: OsString,
        /// Why it cannot be executed.
        fault: ProgramFault,
    },
    /// The image's configuration contains something that cannot be passed to a program.
    #[error("configuration of the image: {0}")]
    ImageConfig(&'static str),
    /// Another run uses the box.
    #[error("box {0} is in use by another run")]
    BoxInUse(u32),
    /// Another program uses the box.
    #[error("box {id}: {message}")]
    BoxTaken {
        /// The box.
        id: u32,
        /// isolate's message.
        message: String,
    },
    /// Another user could change the records of boxes.
    #[error("{path} is not trusted: {reason}")]
    Untrusted {
        /// The directory or record.
        path: PathBuf,
        /// Why it is not trusted.
        reason: String,
    },
    /// All boxes are in use.
    #[error("all boxes of {first}-{last} are in use")]
    NoFreeBox {
        /// The first box of the range.
        first: u32,
        /// The last box of the range.
        last: u32,
    },
    /// A run should have a terminal, but its caller has none.
    #[error("option `--tty`: standard input and output are not the terminal of this process")]
    NoTerminal,
    /// A range of boxes has the wrong form.
    #[error("box ids `{0}` do not have the form FIRST-LAST")]
    BoxRange(String),
    /// The sandbox itself failed.
    #[error("{sandbox}: {message}")]
    Sandbox {
        /// The program and its operation, such as `isolate --init`.
        sandbox: &'static str,
        /// The program's message.
        message: String,
    },
    /// The result says nothing about the program, because the image could not be read.
    #[error(transparent)]
    Read(#[from] ReadFault),
    /// A signal to this process ended the run.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// The first process ended before the sandbox did.
    #[error("the first process of the run {0}")]
    FirstProcess(String),
    /// A file could not be copied into or out of the box.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The operating system refused an operation on a file.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A step of the run failed.
    #[error("cannot {step}")]
    Step {
        /// The step: a verb with its object.
        step: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl SandboxError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotRoot => ErrorCode::Permission,
            Self::NoSandbox | Self::Missing(_) => ErrorCode::NoSandbox,
            Self::Isolate(error) => error.code(),
            Self::UnknownOption { .. }
            | Self::MissingOption { .. }
            | Self::NoLimits(_)
            | Self::NotWithBubblewrap { .. }
            | Self::NoTerminal
            | Self::Hidden { .. } => ErrorCode::SandboxOption,
            Self::Variable(_) => ErrorCode::Usage,
            Self::Roots(error) => error.code(),
            Self::NoCommand => ErrorCode::Program,
            Self::Program { fault, .. } => fault.code(),
            Self::ImageConfig(_) => ErrorCode::Document,
            Self::BoxInUse(_) | Self::BoxTaken { .. } | Self::NoFreeBox { .. } => ErrorCode::NoBox,
            Self::Untrusted { .. } => ErrorCode::Untrusted,
            Self::BoxRange(_) => ErrorCode::Configuration,
            Self::Sandbox { .. } | Self::FirstProcess(_) | Self::Step { .. } => ErrorCode::Sandbox,
            Self::Read(fault) => fault.code(),
            Self::Interrupted(_) => ErrorCode::Interrupted,
            Self::Copy(error) => error.code(),
            Self::Io(error) => error.code(),
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoSandbox => Some("install isolate, or bubblewrap, which isolates but enforces no limits"),
            Self::Missing("isolate") => Some(
                "install isolate, set `path` in the table [isolate] of the configuration, or use `--sandbox bwrap`",
            ),
            Self::Missing(_) => Some("install the package bubblewrap"),
            Self::Isolate(IsolateError::TooOld { .. }) => Some(
                "install a newer isolate, or use `--sandbox bwrap`, which isolates but enforces no limits",
            ),
            Self::NoLimits(_) => Some("omit the option, or use `--sandbox isolate`"),
            Self::Roots(error) => error.hint(),
            Self::Read(fault) => fault.hint(),
            Self::Program { fault, .. } => fault.hint(),
            Self::BoxInUse(_) => Some("`--wait` waits until the box is free"),
            Self::NoTerminal => Some("omit the option, or run the command in a terminal"),
            Self::NoCommand => Some("give a command: `rcx-imagefs run REF -- COMMAND ARGUMENT...`"),
            Self::BoxTaken { .. } | Self::NoFreeBox { .. } => Some(
                "`--wait` waits for a free box; free an unused one with `isolate --box-id=N --cleanup`, or change `box-ids` in the table [run] of the configuration",
            ),
            _ => None,
        }
    }

    pub(super) fn step(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Step { step: step.into(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_error_keeps_its_code() {
        let path = || PathBuf::from("/x");
        let version = IsolateVersion::new(1, 2, 0);
        let denied = PathError::new("open", path(), io::ErrorKind::PermissionDenied);
        for (error, code) in [
            (IsolateError::TooOld { path: path(), version }.into(), ErrorCode::NoSandbox),
            (IsolateError::MissingValue("meta").into(), ErrorCode::Usage),
            (CopyError::Missing(path()).into(), ErrorCode::Copy),
            (denied.into(), ErrorCode::Permission),
            (
                SandboxError::Program { program: "sh".into(), fault: ProgramFault::Missing },
                ErrorCode::Program,
            ),
        ] {
            let error: SandboxError = error;
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
