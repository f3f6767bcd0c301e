//! The isolate backend of a run, and isolate's interface as types: versions, options, directory rules and the meta file.
//!
//! isolate has no library; its interface is its command line, which differs between versions. This folder contains all
//! knowledge about it. The stand-in for isolate (`shim`) uses only these types, of which only [`IsolateVersion::detect`] starts
//! a process.

mod arguments;
mod backend;
mod box_root;
mod box_users;
mod boxes;
mod cache_file;
mod call;
mod meta;
mod options;
mod rules;
mod verdict;
mod version;
mod version_cache;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

pub use backend::IsolateSandbox;
pub(super) use box_root::{box_directory, box_root};
pub use box_users::BoxUsers;
pub(super) use boxes::remove_abandoned;
pub use cache_file::is_trusted;
pub use call::IsolateCall;
pub use meta::{IsolateMeta, failure_text, write_failure};
pub use options::{GivenOption, IsolateMode, IsolateOption};
pub use rules::{DirRule, RuleFlags, RuleTarget, components, is_root, root_rules};
pub use version::{IsolateVersion, OLDEST};

use crate::error::ErrorCode;

/// isolate cannot be used, or its arguments are invalid.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The program could not be started.
    #[error("cannot start isolate at {path}")]
    Start {
        /// The program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program is not isolate.
    #[error("{path} is not isolate: `--version` does not print a version of isolate")]
    NoVersion {
        /// The program.
        path: PathBuf,
    },
    /// The version does not support the rules that a root needs.
    #[error("isolate at {path}: version {version} is too old, {OLDEST} or newer is needed")]
    TooOld {
        /// The program.
        path: PathBuf,
        /// The version of the program.
        version: IsolateVersion,
    },
    /// No version of isolate has this option.
    #[error("unknown option `{}`", .0.display())]
    UnknownOption(OsString),
    /// An abbreviation matches more than one option.
    #[error("option `{}` is ambiguous", .0.display())]
    AmbiguousOption(OsString),
    /// A value was passed to an option that takes none.
    #[error("option `--{0}` takes no value")]
    UnwantedValue(&'static str),
    /// The value of an option is missing.
    #[error("option `--{0}` needs a value")]
    MissingValue(&'static str),
    /// Two different modes were requested, such as `--init` and `--run`.
    #[error("options `--{0}` and `--{1}` exclude each other")]
    TwoModes(&'static str, &'static str),
    /// A directory rule that isolate would refuse.
    #[error("directory rule `{}`: {reason}", .rule.display())]
    Rule {
        /// The text of the rule.
        rule: OsString,
        /// Why isolate would refuse the rule.
        reason: &'static str,
    },
}

impl IsolateError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Start { .. } | Self::NoVersion { .. } | Self::TooOld { .. } => ErrorCode::NoSandbox,
            Self::UnknownOption(_)
            | Self::AmbiguousOption(_)
            | Self::UnwantedValue(_)
            | Self::MissingValue(_)
            | Self::TwoModes(..)
            | Self::Rule { .. } => ErrorCode::Usage,
        }
    }
}
