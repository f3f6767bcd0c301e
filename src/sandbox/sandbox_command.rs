//! The command that starts a sandbox: its program, arguments and descriptors.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, FdFlags};
use serde::{Deserialize, Serialize};

use super::process::{HeldSignals, close_all_on_exec};
use super::terminal::RunTerminal;
use super::{BOX, User};

/// The program of a sandbox, with the settings for starting it.
#[derive(Debug)]
pub(super) struct SandboxCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// The only descriptor besides the standard streams that stays open in the sandbox's program.
    inherited: OwnedFd,
    stdout_to_stderr: bool,
    /// The terminal of the run, instead of the caller's.
    terminal: Option<OwnedFd>,
    user: Option<User>,
    redirections: Option<Redirections>,
}

/// Files of the box as standard streams, for a sandbox that cannot redirect by itself. Paths are relative to the box.
#[derive(Debug)]
pub(super) struct Redirections {
    pub(super) the_box: OwnedFd,
    pub(super) stdin: Option<PathBuf>,
    pub(super) stdout: Option<PathBuf>,
    pub(super) stderr: Option<PathBuf>,
    pub(super) stderr_to_stdout: bool,
}

impl SandboxCommand {
    pub(super) fn new(program: &Path, arguments: Vec<OsString>, inherited: OwnedFd) -> Self {
        let program = program.to_owned();
        Self {
            program,
            arguments,
            inherited,
            stdout_to_stderr: false,
            terminal: None,
            user: None,
            redirections: None,
        }
    }

    /// Sends standard output to standard error.
    pub(super) fn with_stdout_to_stderr(self, stdout_to_stderr: bool) -> Self {
        Self { stdout_to_stderr, ..self }
    }

    /// Gives the sandbox a terminal of its own. Standard streams that are terminals become this one.
    pub(super) fn with_terminal(self, terminal: Option<OwnedFd>) -> Self {
        Self { terminal, ..self }
    }

    /// Drops all privileges and runs as `user`.
    pub(super) fn with_user(self, user: User) -> Self {
        Self { user: Some(user), ..self }
    }

    pub(super) fn with_redirections(self, redirections: Redirections) -> Self {
        Self { redirections: Some(redirections), ..self }
    }

    /// Replaces this process with the program. Returns only on failure.
    pub(super) fn execute(&self, signals: &HeldSignals) -> FailedStep {
        match self.prepare(signals) {
            Err(failed) => failed,
            Ok(()) => {
                let error = Command::new(&self.program).args(&self.arguments).exec();
                FailedStep::new(format!("execute {}", self.program.display()), error)
            }
        }
    }

    fn prepare(&self, signals: &HeldSignals) -> Result<(), FailedStep> {
        let failed = |step: &'static str| move |errno: Errno| FailedStep::new(step, errno);
        if self.stdout_to_stderr {
            rustix::stdio::dup2_stdout(rustix::stdio::stderr())
                .map_err(failed("redirect standard output"))?;
        }
        if let Some(terminal) = &self.terminal {
            RunTerminal::take_over(terminal.as_fd())
                .map_err(|error| FailedStep::new("use the terminal of the run", error))?;
        }
        if let Some(user) = self.user {
            let (uid, gid) = (user.uid(), user.gid());
            rustix::thread::set_thread_groups(&[]).map_err(failed("drop supplementary groups"))?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
        }
        // Files are opened with the rights of the program's user, who may have planted links in the box.
        if let Some(redirections) = &self.redirections {
            redirections.apply()?;
        }
        close_all_on_exec().map_err(|error| FailedStep::new("close inherited descriptors", error))?;
        rustix::io::fcntl_setfd(&self.inherited, FdFlags::empty()).map_err(failed("pass on a descriptor"))?;
        signals.release();
        Ok(())
    }
}

impl Redirections {
    fn apply(&self) -> Result<(), FailedStep> {
        let open = |path: &Path, flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
            let mode = Mode::from_raw_mode(0o666);
            let mode = if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() };
            rustix::fs::openat2(&self.the_box, path, flags, mode, ResolveFlags::BENEATH).map_err(|errno| {
                FailedStep::new(format!("open {}", Path::new(BOX).join(path).display()), errno)
            })
        };
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let failed = |errno: Errno| FailedStep::new("redirect a standard stream", errno);
        if let Some(path) = &self.stdin {
            rustix::stdio::dup2_stdin(open(path, OFlags::RDONLY)?).map_err(failed)?;
        }
        if let Some(path) = &self.stdout {
            rustix::stdio::dup2_stdout(open(path, write)?).map_err(failed)?;
        }
        if let Some(path) = &self.stderr {
            rustix::stdio::dup2_stderr(open(path, write)?).map_err(failed)?;
        }
        if self.stderr_to_stdout {
            rustix::stdio::dup2_stderr(rustix::stdio::stdout()).map_err(failed)?;
        }
        Ok(())
    }
}

/// A step that failed in a child process. It is sent to the parent as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FailedStep {
    pub(super) step: String,
    pub(super) errno: i32,
}

impl FailedStep {
    pub(super) fn new(step: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self { step: step.into(), errno: error.into().raw_os_error().unwrap_or(libc::EIO) }
    }
}
