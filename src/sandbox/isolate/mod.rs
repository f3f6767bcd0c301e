//! What isolate is called with and what it answers, as values: versions, options, directory rules, the meta file.
//!
//! isolate has no library; its interface is its command line, which differs between versions. Everything that is known
//! about that stands in this folder, and nothing in it but [`IsolateVersion::detect`] starts a process.

mod meta;
mod options;
mod rules;
mod version;
mod version_cache;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

pub use meta::{IsolateMeta, failure_text, write_failure};
pub use options::{GivenOption, IsolateCall, IsolateMode, IsolateOption};
pub use rules::{DirRule, RuleFlags, RuleTarget, components, is_root, root_rules};
pub use version::{IsolateVersion, OLDEST};
pub use version_cache::is_trusted;

/// Why isolate cannot be used, or is asked for what it does not know.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The program could not be started.
    #[error("isolate {path}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The program is something else.
    #[error("isolate {path}: `--version` does not tell a version")]
    NoVersion {
        /// The program.
        path: PathBuf,
    },
    /// The program lacks what a root of an image needs.
    #[error("isolate {path}: version {version} is too old, at least {OLDEST} is needed")]
    TooOld {
        /// The program.
        path: PathBuf,
        /// What it is.
        version: IsolateVersion,
    },
    /// No version of isolate has this option.
    #[error("unknown option `{}`", .0.display())]
    UnknownOption(OsString),
    /// The start of more than one option.
    #[error("option `{}` is ambiguous", .0.display())]
    AmbiguousOption(OsString),
    /// An option that takes no value was given one.
    #[error("option `--{0}` takes no value")]
    UnwantedValue(&'static str),
    /// An option that takes a value stands at the end.
    #[error("option `--{0}` needs a value")]
    MissingValue(&'static str),
    /// Two of `--init`, `--run` and their like.
    #[error("`--{0}` and `--{1}` exclude each other")]
    TwoModes(&'static str, &'static str),
    /// A directory rule that isolate would refuse.
    #[error("directory rule `{}`: {reason}", .rule.display())]
    Rule {
        /// As it was given.
        rule: OsString,
        /// What is wrong with it.
        reason: &'static str,
    },
}
