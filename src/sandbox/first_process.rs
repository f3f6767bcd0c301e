//! The first process of a run, and the sandbox's program that it starts.
//!
//! It is the first one of a process namespace, so that its end takes all others with it, and it ends when the caller does.
//! The caller waits for it and hands signals on to it, as it does to the sandbox's program.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::MountFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Pid, Signal, Uid};
use serde::{Deserialize, Serialize};

use super::User;
use super::error::SandboxError;
use super::process::{ChildExit, Forked, HeldSignals, attend, fork, fork_first_process};

/// Exit code of the first process, and of one that could not become the sandbox; what was the matter is in the report.
const FAILED: i32 = 2;

/// The sandbox's program, and how it is to be started.
#[derive(Debug)]
pub(super) struct SandboxCommand {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// Stays open in it.
    passed: OwnedFd,
    stdout_to_stderr: bool,
    user: Option<User>,
    redirections: Option<Redirections>,
}

/// Files of the box as standard streams, for a sandbox that knows no such thing.
#[derive(Debug)]
pub(super) struct Redirections {
    pub(super) the_box: OwnedFd,
    pub(super) stdin: Option<PathBuf>,
    pub(super) stdout: Option<PathBuf>,
    pub(super) stderr: Option<PathBuf>,
    pub(super) stderr_to_stdout: bool,
}

impl SandboxCommand {
    pub(super) fn new(path: &Path, arguments: Vec<OsString>, passed: OwnedFd) -> Self {
        let path = path.to_owned();
        Self { path, arguments, passed, stdout_to_stderr: false, user: None, redirections: None }
    }

    pub(super) fn with_stdout_to_stderr(self, stdout_to_stderr: bool) -> Self {
        Self { stdout_to_stderr, ..self }
    }

    pub(super) fn with_user(self, user: User) -> Self {
        Self { user: Some(user), ..self }
    }

    pub(super) fn with_redirections(self, redirections: Redirections) -> Self {
        Self { redirections: Some(redirections), ..self }
    }

    /// Becomes the sandbox's program; returns only where that fails.
    fn execute(&self, signals: &HeldSignals) -> FailedStep {
        match self.prepare(signals) {
            Err(failed) => failed,
            Ok(()) => {
                let error = Command::new(&self.path).args(&self.arguments).exec();
                FailedStep::new(format!("execute {}", self.path.display()), error)
            }
        }
    }

    fn prepare(&self, signals: &HeldSignals) -> Result<(), FailedStep> {
        let at = |step: &'static str| move |errno: Errno| FailedStep::new(step, errno);
        if self.stdout_to_stderr {
            rustix::stdio::dup2_stdout(rustix::stdio::stderr()).map_err(at("standard output"))?;
        }
        if let Some(User { uid, gid }) = self.user {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).map_err(at("setgroups"))?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at("setresgid"))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at("setresuid"))?;
        }
        // With the program's own rights: the files are its own.
        if let Some(redirections) = &self.redirections {
            redirections.apply()?;
        }
        rustix::io::fcntl_setfd(&self.passed, FdFlags::empty()).map_err(at("descriptor"))?;
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
                FailedStep::new(format!("open {}", Path::new("/box").join(path).display()), errno)
            })
        };
        let written = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let at = |errno: Errno| FailedStep::new("standard stream", errno);
        if let Some(path) = &self.stdin {
            rustix::stdio::dup2_stdin(open(path, OFlags::RDONLY)?).map_err(at)?;
        }
        if let Some(path) = &self.stdout {
            rustix::stdio::dup2_stdout(open(path, written)?).map_err(at)?;
        }
        if let Some(path) = &self.stderr {
            rustix::stdio::dup2_stderr(open(path, written)?).map_err(at)?;
        }
        if self.stderr_to_stdout {
            rustix::stdio::dup2_stderr(rustix::stdio::stdout()).map_err(at)?;
        }
        Ok(())
    }
}

/// A step that failed in another process.
#[derive(Debug, Serialize, Deserialize)]
struct FailedStep {
    step: String,
    errno: i32,
}

impl FailedStep {
    fn new(step: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self { step: step.into(), errno: error.into().raw_os_error().unwrap_or(libc::EIO) }
    }
}

/// How the sandbox's program ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ProgramExit {
    pub(super) process: ChildExit,
    /// From its start to its end.
    pub(super) wall_us: u64,
    /// Whether a signal to the caller was handed on to it.
    pub(super) told_to_end: bool,
}

/// What the first process says: of its own, or for the program that could not be executed.
#[derive(Debug, Serialize, Deserialize)]
enum FirstProcessReport {
    FailedStep(FailedStep),
    ProgramExit(ProgramExit),
}

/// The first process, as its parent sees it.
#[derive(Debug)]
pub(super) struct FirstProcess {
    pid: Pid,
    says: File,
    /// Tells by its end that the parent has died.
    _alive: OwnedFd,
}

/// Starts the first process, in this process's mount namespace, and the program as its child.
pub(super) fn start(program: &SandboxCommand, signals: &HeldSignals) -> Result<FirstProcess, SandboxError> {
    let pipe = |flags| rustix::pipe::pipe_with(flags).map_err(|errno| SandboxError::step("pipe", errno));
    let (says, said) = pipe(PipeFlags::CLOEXEC)?;
    let (parent, alive) = pipe(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    match fork_first_process().map_err(|error| SandboxError::step("process namespace", error))? {
        Forked::Parent(pid) => Ok(FirstProcess { pid, says: says.into(), _alive: alive }),
        Forked::Child => {
            drop((says, alive));
            let said = File::from(said);
            // Whatever happens here, nothing of the parent's may be undone: no destructor runs in this process.
            let ended = catch_unwind(AssertUnwindSafe(|| first_process(program, signals, &parent, &said)));
            std::process::exit(if ended.is_ok() { 0 } else { FAILED });
        }
    }
}

fn first_process(program: &SandboxCommand, signals: &HeldSignals, parent: &OwnedFd, said: &File) {
    let say = |what: &FirstProcessReport| {
        let mut line = serde_json::to_vec(what).unwrap_or_default();
        line.push(b'\n');
        // Where nobody listens any more, there is nobody to tell.
        let _ = (&*said).write_all(&line);
    };
    match attend_program(program, signals, parent, &say) {
        Ok(Some(finished)) => say(&FirstProcessReport::ProgramExit(finished)),
        Ok(None) => {}
        Err(failed) => say(&FirstProcessReport::FailedStep(failed)),
    }
}

fn attend_program(
    program: &SandboxCommand,
    signals: &HeldSignals,
    parent: &OwnedFd,
    say: &dyn Fn(&FirstProcessReport),
) -> Result<Option<ProgramExit>, FailedStep> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| FailedStep::new("prctl", errno))?;
    // A parent that died before that would never be noticed.
    if matches!(rustix::io::read(parent, &mut [0_u8]), Ok(0)) {
        return Ok(None);
    }
    // Of this process namespace: isolate looks for its children there.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None)
        .map_err(|errno| FailedStep::new("mount /proc", errno))?;
    let start = Instant::now();
    let child = match fork().map_err(|error| FailedStep::new("fork", error))? {
        Forked::Child => {
            say(&FirstProcessReport::FailedStep(program.execute(signals)));
            std::process::exit(FAILED);
        }
        Forked::Parent(child) => child,
    };
    let (process, told_to_end) = attend(child, signals).map_err(|error| FailedStep::new("wait", error))?;
    let wall_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Some(ProgramExit { process, wall_us, told_to_end }))
}

impl FirstProcess {
    /// Waits for its end, and with it for that of all processes in its namespace.
    pub(super) fn wait(mut self, signals: &HeldSignals) -> Result<ProgramExit, SandboxError> {
        let (ended, told_to_end) =
            attend(self.pid, signals).map_err(|error| SandboxError::step("wait", error))?;
        let mut text = Vec::new();
        self.says.read_to_end(&mut text).map_err(|error| SandboxError::step("wait", error))?;
        let said = serde_json::Deserializer::from_slice(&text).into_iter::<FirstProcessReport>().next();
        match said {
            Some(Ok(FirstProcessReport::ProgramExit(finished))) => Ok(finished),
            Some(Ok(FirstProcessReport::FailedStep(FailedStep { step, errno }))) => {
                Err(SandboxError::step(step, io::Error::from_raw_os_error(errno)))
            }
            _ => match ended.signal() {
                Some(signal) if told_to_end => Err(SandboxError::Interrupted(signal)),
                signal => {
                    let how = signal.map_or_else(
                        || "panicked".to_owned(),
                        |signal| format!("was killed by signal {signal}"),
                    );
                    Err(SandboxError::FirstProcess(how))
                }
            },
        }
    }
}
