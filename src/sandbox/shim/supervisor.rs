//! The supervisor: the process that the caller started, which waits for isolate and reports the result of the run.
//!
//! If the image could not be read, isolate reports a failure of the program. The exit code and the meta file must say instead
//! that the sandbox failed, and only the caller's own child can do that. So isolate runs in a child of the supervisor. The
//! supervisor forwards signals to isolate, ends as isolate does, and asks the daemon about failed reads before.
//!
//! The caller may kill the supervisor with SIGKILL, which cannot be forwarded. The guardian then kills isolate.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use super::ShimError;
use crate::daemon::{AccountedImage, RunAccount};
use crate::fuse::LazyReads;
use crate::os::{Forked, fork};
use crate::sandbox::process::{HeldSignals, end_by_signal, wait_for};

/// How long the child may take to execute isolate. It takes milliseconds, or some seconds if the disk is slow.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a signal may wait for the supervisor while isolate has not started.
const SIGNAL_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The side of [`split`] that this process is on.
#[derive(Debug)]
pub(super) enum SplitSide {
    /// The process that the caller started.
    Supervisor(Box<Supervisor>),
    /// Its child, which is to become isolate.
    Child(SupervisedChild),
}

/// The supervisor, with its child.
#[derive(Debug)]
pub(super) struct Supervisor {
    child: Pid,
    signals: HeldSignals,
    account: File,
    /// The end for reading of a pipe that closes when the child executes isolate, or ends.
    start: OwnedFd,
}

/// The child's handle of its supervisor.
#[derive(Debug)]
pub(super) struct SupervisedChild {
    supervisor: OwnedFd,
    account: File,
    _start: OwnedFd,
}

/// The message of the child to its supervisor: the account to close after the run.
#[derive(Debug, Serialize, Deserialize)]
struct SupervisedRun {
    account: RunAccount,
    image: AccountedImage,
    box_id: Option<u32>,
}

impl SupervisedRun {
    /// The line for the system log. It must not contain text of the caller's choice.
    fn note(&self, LazyReads { bytes, wait_ms }: LazyReads) -> String {
        let id = self.box_id.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        let image = self.image.name();
        format!(
            "box {id}, image {image}: read {bytes} bytes from the daemon and waited {wait_ms} ms for them"
        )
    }
}

/// Forks. From here on, signals that would end the supervisor are forwarded to the child.
pub(super) fn split() -> Result<SplitSide, ShimError> {
    let failed = |error: Errno| ShimError::Supervisor(error.into());
    // Before the fork: afterwards this process may have ended, and its number may belong to another process.
    let supervisor =
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
    // In memory, not in a pipe: the list of layers may be longer than a pipe's buffer.
    let account = rustix::fs::memfd_create("account", MemfdFlags::CLOEXEC).map_err(failed)?;
    let account = File::from(account);
    let (start, child_start) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let signals = HeldSignals::hold().map_err(ShimError::Supervisor)?;
    match fork() {
        Ok(Forked::Parent(child)) => {
            Ok(SplitSide::Supervisor(Box::new(Supervisor { child, signals, account, start })))
        }
        Ok(Forked::Child) => {
            signals.release();
            Ok(SplitSide::Child(SupervisedChild { supervisor, account, _start: child_start }))
        }
        Err(error) => {
            signals.release();
            Err(ShimError::Supervisor(error))
        }
    }
}

impl SupervisedChild {
    /// The descriptor of the supervisor's process.
    pub(super) fn supervisor(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }

    /// Passes the account of the run to the supervisor.
    pub(super) fn hand_over(
        mut self,
        account: RunAccount,
        image: AccountedImage,
        box_id: Option<u32>,
    ) -> Result<(), ShimError> {
        let text = serde_json::to_vec(&SupervisedRun { account, image, box_id });
        let text = text.map_err(|error| ShimError::Supervisor(error.into()))?;
        self.account.write_all(&text).map_err(ShimError::Supervisor)
    }
}

impl Supervisor {
    /// Waits for the child and ends this process in the same way: with its exit code, or by its signal. Passes a line to `log` if the
    /// run has read from the daemon.
    ///
    /// # Errors
    /// [`ShimError::NotStarted`]: the child does not become isolate; it is killed. [`ShimError::Read`]: the image could not be
    /// read during the run.
    pub(super) fn end_as_child(mut self, log: impl FnOnce(&str)) -> Result<Infallible, ShimError> {
        self.await_start()?;
        let (exit, _) = wait_for(self.child, &self.signals, &|| ()).map_err(ShimError::Supervisor)?;
        // The child reports its own failures, and passes no account then.
        if let Some(run) = self.account().map_err(ShimError::Supervisor)? {
            let reads = run.account.close(std::process::id(), &run.image)?.unwrap_or_default();
            if reads.bytes > 0 {
                log(&run.note(reads));
            }
        }
        match exit.signal() {
            Some(signal) => end_by_signal(&self.signals, signal),
            None => std::process::exit(exit.code().unwrap_or(0)),
        }
    }

    /// Waits until the child executes isolate, or ends.
    ///
    /// The child uses the mount and the disk, and this process does not. So it can report that one of them hangs, even if the
    /// child cannot be killed.
    fn await_start(&self) -> Result<(), ShimError> {
        let deadline = Instant::now() + START_TIMEOUT;
        // The guardian has the pipe too until it has closed it.
        let child = rustix::process::pidfd_open(self.child, PidfdFlags::empty())
            .map_err(|errno| ShimError::Supervisor(errno.into()))?;
        loop {
            let mut events =
                [PollFd::new(&self.start, PollFlags::empty()), PollFd::new(&child, PollFlags::IN)];
            match rustix::event::poll(&mut events, Some(&SIGNAL_PAUSE)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(ShimError::Supervisor(errno.into())),
            }
            let signal = self.signals.wait_for_end(Duration::ZERO).map_err(ShimError::Supervisor)?;
            let is_late = Instant::now() >= deadline;
            if let Some(signal) = if is_late { Some(Signal::KILL) } else { signal } {
                // The child is not reaped yet, so its PID cannot belong to another process.
                let _ = rustix::process::kill_process(self.child, signal);
            }
            if is_late {
                return Err(ShimError::NotStarted(START_TIMEOUT));
            }
        }
    }

    fn account(&mut self) -> io::Result<Option<SupervisedRun>> {
        let mut text = Vec::new();
        self.account.rewind()?;
        self.account.read_to_end(&mut text)?;
        if text.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&text)?)) }
    }
}
