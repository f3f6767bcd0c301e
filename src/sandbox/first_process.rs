//! The first process of a run, which starts the sandbox's program.
//!
//! It is the first process (PID 1) of a PID namespace: when it ends, the kernel kills all others in the namespace. It ends when
//! the caller ends. The caller waits for it and forwards signals to it, and it forwards them to the sandbox's program.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use rustix::mount::MountFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::process::{ChildExit, HeldSignals, fork_first_process, wait_for};
use super::sandbox_command::{FailedStep, SandboxCommand};
use crate::os::{Forked, fork};

/// Exit code of the first process, and of a child that could not execute the sandbox's program. The reason is in the report.
const EXIT_FAILED: i32 = 2;

/// How the sandbox's program ended by itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ProgramExit {
    pub(super) process: ChildExit,
    /// From start to end, in microseconds.
    pub(super) wall_us: u64,
}

/// A line that the first process sends to the caller. Its child sends one if it cannot execute the sandbox's program.
#[derive(Debug, Serialize, Deserialize)]
enum FirstProcessReport {
    Failed(FailedStep),
    Exited(ProgramExit),
    /// This signal was forwarded to the sandbox's program, which has ended since.
    Interrupted(i32),
}

/// The parent's handle of the first process.
#[derive(Debug)]
pub(super) struct FirstProcess {
    pid: Pid,
    reports: File,
    /// Closed by the kernel when the parent dies. The first process detects this.
    _alive: OwnedFd,
}

/// Starts the first process in the mount namespace of this process, and the sandbox's program as its child.
pub(super) fn start(command: &SandboxCommand, signals: &HeldSignals) -> Result<FirstProcess, SandboxError> {
    let pipe =
        |flags| rustix::pipe::pipe_with(flags).map_err(|errno| SandboxError::step("make a pipe", errno));
    let (reports, report) = pipe(PipeFlags::CLOEXEC)?;
    let (parent, alive) = pipe(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    match fork_first_process().map_err(|error| SandboxError::step("make a PID namespace", error))? {
        Forked::Parent(pid) => Ok(FirstProcess { pid, reports: reports.into(), _alive: alive }),
        Forked::Child => {
            drop((reports, alive));
            let report = File::from(report);
            // No destructor of the parent's values may run in this process, even after a panic: it would undo the parent's
            // work. So this function does not return here.
            let result = catch_unwind(AssertUnwindSafe(|| first_process(command, signals, &parent, &report)));
            std::process::exit(if result.is_ok() { 0 } else { EXIT_FAILED });
        }
    }
}

fn first_process(command: &SandboxCommand, signals: &HeldSignals, parent: &OwnedFd, report: &File) {
    let send = |message: &FirstProcessReport| {
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        // Writing fails only if the parent is dead, and then no process needs the report.
        let _ = (&*report).write_all(&line);
    };
    match run_command(command, signals, parent, &send) {
        Ok(Some(report)) => send(&report),
        Ok(None) => {}
        Err(failed) => send(&FirstProcessReport::Failed(failed)),
    }
}

/// Runs the command and waits for its end. Returns `None` if the parent is dead.
fn run_command(
    command: &SandboxCommand,
    signals: &HeldSignals,
    parent: &OwnedFd,
    send: &dyn Fn(&FirstProcessReport),
) -> Result<Option<FirstProcessReport>, FailedStep> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| FailedStep::new("set the parent death signal", errno))?;
    // The kernel sends no signal for a parent that died before the call above.
    if matches!(rustix::io::read(parent, &mut [0_u8]), Ok(0)) {
        return Ok(None);
    }
    // isolate looks up its children in /proc, by their number in this PID namespace.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None)
        .map_err(|errno| FailedStep::new("mount /proc", errno))?;
    let start = Instant::now();
    let child = match fork().map_err(|error| FailedStep::new("fork", error))? {
        Forked::Child => {
            send(&FirstProcessReport::Failed(command.execute(signals)));
            std::process::exit(EXIT_FAILED);
        }
        Forked::Parent(child) => child,
    };
    let (process, interrupted) =
        wait_for(child, signals, &|| ()).map_err(|error| FailedStep::new("wait for the sandbox", error))?;
    let wall_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Some(match interrupted {
        Some(signal) => FirstProcessReport::Interrupted(signal),
        None => FirstProcessReport::Exited(ProgramExit { process, wall_us }),
    }))
}

impl FirstProcess {
    /// Waits for the first process to end, and so for all processes in its namespace.
    ///
    /// A signal that ends the run is an error even if the program has caught it and ended by itself: the caller of `run` did
    /// not let it finish. `on_resize` is called when the caller's terminal has another size.
    pub(super) fn wait(
        mut self,
        signals: &HeldSignals,
        on_resize: &dyn Fn(),
    ) -> Result<ProgramExit, SandboxError> {
        let failed = |error| SandboxError::step("wait for the first process", error);
        let (exit, interrupted) = wait_for(self.pid, signals, on_resize).map_err(failed)?;
        let mut text = Vec::new();
        self.reports.read_to_end(&mut text).map_err(failed)?;
        let report = serde_json::Deserializer::from_slice(&text).into_iter::<FirstProcessReport>().next();
        match report {
            Some(Ok(FirstProcessReport::Interrupted(signal))) => Err(SandboxError::Interrupted(signal)),
            Some(Ok(FirstProcessReport::Exited(exit))) => Ok(exit),
            Some(Ok(FirstProcessReport::Failed(FailedStep { step, errno }))) => {
                Err(SandboxError::step(step, io::Error::from_raw_os_error(errno)))
            }
            Some(Err(_)) | None => match (interrupted, exit.signal()) {
                (Some(signal), _) => Err(SandboxError::Interrupted(signal)),
                (None, Some(signal)) => {
                    Err(SandboxError::FirstProcess(format!("was killed by signal {signal}")))
                }
                (None, None) => Err(SandboxError::FirstProcess("panicked".to_owned())),
            },
        }
    }
}
