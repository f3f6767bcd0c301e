//! The specification of a run by its caller.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::copy::FileCopy;
use super::environment::Variable;
use super::isolate::{DirRule, GivenOption, IsolateOption};
use super::{BOX, DEFAULT_PATH};
use crate::roots::Upper;

/// The specification of a run by its caller.
///
/// Options and directory rules are those of isolate. Each backend checks whether it supports them.
#[derive(Debug, Clone, Default)]
pub struct RunSpec {
    /// Limits, redirections and other options of isolate.
    pub options: Vec<GivenOption>,
    /// Rules for variables, applied after the image's variables: `NAME=VALUE` sets a variable, `NAME=` removes it, and `NAME`
    /// inherits the caller's value.
    pub env: Vec<OsString>,
    /// Directories of the host that the program sees in addition to the image.
    pub dirs: Vec<DirRule>,
    /// The directory that the program starts in, relative to the box. `None`: the image's working directory.
    pub chdir: Option<PathBuf>,
    /// The box. `None`: a free box.
    pub box_id: Option<u32>,
    /// How long to wait for a free box.
    pub wait: Option<Duration>,
    /// Where writes outside the box go.
    pub upper: Upper,
    /// Replaces the image's entrypoint; empty for no entrypoint.
    pub entrypoint: Option<OsString>,
    /// The command. Empty: the image's command.
    pub command: Vec<OsString>,
    /// Files to copy into the box before the run.
    pub copy_in: Vec<FileCopy>,
    /// Files to copy out of the box after the run.
    pub copy_out: Vec<FileCopy>,
    /// Gives the program a terminal of its own, which is shown on the caller's.
    pub terminal: bool,
    /// Leaves `/etc` and the environment as the image has them: no names for the user and `localhost`, no default `HOME`.
    pub no_inject: bool,
    /// Sends the program's standard output to standard error, because the caller uses standard output itself.
    pub stdout_to_stderr: bool,
}

impl RunSpec {
    pub(super) fn has(&self, option: IsolateOption) -> bool {
        self.options.iter().any(|entry| entry.option == option)
    }

    /// Returns the value of an option. If the option is repeated, the last value applies.
    pub(super) fn value(&self, option: IsolateOption) -> Option<&OsStr> {
        self.options.iter().rev().find(|entry| entry.option == option)?.value.as_deref()
    }

    /// Returns the variables that the program has if neither the image nor the caller sets them.
    pub(super) fn default_variables(&self) -> Vec<Variable> {
        let is_inherited = |name| self.has(IsolateOption::FullEnv) && std::env::var_os(name).is_some();
        let mut variables = vec![Variable::Set("PATH".into(), DEFAULT_PATH.into())];
        if !self.no_inject && !is_inherited("HOME") {
            variables.push(Variable::Set("HOME".into(), BOX.into()));
        }
        if self.terminal {
            let kind = std::env::var_os("TERM").unwrap_or_else(|| "xterm".into());
            variables.push(Variable::Set("TERM".into(), kind));
        }
        variables
    }

    /// Returns whether the run uses control groups.
    pub(super) fn cg(&self) -> bool {
        self.has(IsolateOption::Cg)
    }
}
