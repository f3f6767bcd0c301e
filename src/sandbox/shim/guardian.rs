//! The guardian: a process that outlives isolate and removes the root.
//!
//! After execve(2), no code of this program runs in the process that became isolate, and the caller may kill it and its
//! supervisor at any moment. So another process holds the lease of the root. It waits until isolate has ended, kills remaining
//! processes of the sandbox, and removes the files of the root. Its real user is root, so the caller can neither kill nor stop it. It
//! keeps no descriptor, working directory, limit, session or control group of the caller.
//!
//! Before that, the guardian asks the daemon for a sign of life: a process that waits for a hanging daemon may be unkillable, and
//! the process that becomes isolate has to stay killable. If the daemon hangs, that process fails, and the guardian waits alone.

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{Caller, ShimError};
use crate::os::{Forked, close_all_but, detach_from_caller, fork, leave_control_groups};
use crate::roots::{PrivateRoot, RootLease, RootWatch, Roots, processes_with_mount};
use crate::sandbox::box_lock::BoxLock;

/// How long to wait for the root to die before its processes are first checked. Usually isolate's namespace is gone by then.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// How long the kernel may take to unmount everything in a namespace without processes. Each mount takes some time.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before remaining processes are killed again.
const KILL_PAUSE: Duration = Duration::from_millis(200);
/// How long the daemon may take to answer. It answers in microseconds, or within seconds on a host that is short of memory.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(10);
/// The guardian's report that the daemon answers.
const ANSWERED: u8 = b'a';
/// The guardian's report that the caller cannot reach it any more.
const DETACHED: u8 = b'd';

/// The handle of the guardian for the process that becomes isolate.
#[derive(Debug)]
pub(super) struct Guardian {
    watch: Option<RootWatch>,
    reports: OwnedFd,
}

/// The call of a guardian.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuardedCall<'a> {
    /// The supervisor's process. If it ends before isolate, the guardian kills isolate.
    pub(super) supervisor: BorrowedFd<'a>,
    /// The lock of the box's directory, which the guardian holds until its end.
    pub(super) box_lock: Option<BorrowedFd<'a>>,
    /// The mountpoint of the daemon that the guardian asks for an answer: see [`Guardian::await_mount`]. `None` without a daemon.
    pub(super) mountpoint: Option<&'a Path>,
}

impl Guardian {
    /// Starts the guardian, which will release the lease, and `run_lock` as soon as isolate has ended. The returned lease is only
    /// for mounting the root.
    pub(super) fn start(
        caller: &Caller,
        roots: &Roots,
        lease: RootLease,
        run_lock: Option<BoxLock>,
        call: GuardedCall<'_>,
    ) -> Result<(Self, ManuallyDrop<RootLease>), ShimError> {
        let failed = |error: Errno| ShimError::Guardian(error.into());
        // The kernel counts the watches of each effective user. With root's, any user could use up root's. Without a watch, the
        // guardian notices the death of the root some milliseconds later.
        let watch = caller.as_caller(RootWatch::new)?.ok();
        // Opened before the fork: afterwards this process may have ended, and its number may belong to another process.
        let isolate =
            rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
        let (reports, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        let lease = ManuallyDrop::new(lease);
        match fork().map_err(ShimError::Guardian)? {
            Forked::Parent(_) => Ok((Self { watch, reports }, lease)),
            Forked::Child => {
                // No process reads the guardian's errors, and no failed step may prevent the following steps: the guardian
                // always waits for the root's death and removes the root. The next sweep removes any remains.
                let lease = ManuallyDrop::into_inner(lease);
                let mut kept = vec![isolate.as_raw_fd(), report.as_raw_fd(), call.supervisor.as_raw_fd()];
                kept.extend(watch.as_ref().map(|watch| watch.fd().as_raw_fd()));
                kept.extend(call.box_lock.map(|lock| lock.as_raw_fd()));
                kept.extend(run_lock.iter().flat_map(BoxLock::descriptors).map(|fd| fd.as_raw_fd()));
                kept.extend(lease.descriptors().iter().map(|fd| fd.as_raw_fd()));
                let detached = attempt(|| {
                    // First of all: while the daemon hangs, no pipe of the caller may stay open.
                    close_all_but(&kept)?;
                    call.mountpoint.map_or(Ok(()), |mountpoint| ask_daemon(mountpoint, &report))?;
                    detach_from_caller(c"rcx-guardian")?;
                    send(&report, DETACHED)
                });
                if detached.is_some() {
                    // A move between control groups would hold up the mounts of the other process for some milliseconds.
                    attempt(|| await_start(&report));
                }
                // If the report failed, the closed pipe informs the other process.
                drop(report);
                attempt(leave_control_groups);
                let was_killed = wait_for_isolate(&isolate, call.supervisor);
                let release = |lock: Option<BoxLock>| {
                    attempt(|| lock.map_or(Ok(()), BoxLock::release).map_err(io::Error::other));
                };
                // The programs of an isolate that was killed may live a moment longer. isolate 1 does not clean a box with such
                // programs.
                let (early, late) = if was_killed { (None, run_lock) } else { (run_lock, None) };
                release(early);
                let is_dead = attempt(|| Ok(wait_for_death(&lease, watch.as_ref()))).unwrap_or(false);
                release(late);
                if is_dead {
                    attempt(|| lease.release().map_err(io::Error::other));
                } else {
                    // Asks the kernel whether the root is dead. If a descriptor that was passed out of the sandbox keeps it
                    // alive, its files are left to a later sweep.
                    drop(lease);
                }
                attempt(|| roots.sweep().map(drop).map_err(io::Error::other));
                std::process::exit(0);
            }
        }
    }

    /// Lets the guardian detect when the root is no longer mounted anywhere.
    pub(super) fn watch(&self, root: &PrivateRoot) {
        if let Some(watch) = &self.watch {
            // Fails at the caller's limit of watches. The guardian then works as without a watch.
            let _ = watch.add(root);
        }
    }

    /// Waits until the daemon at `mountpoint` has answered. Until then, this process must not use the mount.
    ///
    /// # Errors
    /// [`ShimError::MountHangs`] if it does not answer in time.
    pub(super) fn await_mount(&self, mountpoint: &Path) -> Result<(), ShimError> {
        let deadline = Instant::now() + DAEMON_TIMEOUT;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(remaining).ok();
            match rustix::event::poll(&mut [PollFd::new(&self.reports, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Err(ShimError::MountHangs(mountpoint.to_owned())),
                Ok(_) => return self.expect(ANSWERED),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ShimError::Guardian(errno.into())),
            }
        }
    }

    /// Waits until the caller can no longer reach the guardian.
    pub(super) fn wait(&self) -> Result<(), ShimError> {
        self.expect(DETACHED)
    }

    fn expect(&self, report: u8) -> Result<(), ShimError> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.reports, &mut byte)) {
            Ok(1) if byte[0] == report => Ok(()),
            Ok(_) => Err(ShimError::Guardian(io::Error::other("it could not detach itself from the caller"))),
            Err(errno) => Err(ShimError::Guardian(errno.into())),
        }
    }
}

/// Asks the daemon for an answer, whatever it is, and reports it.
fn ask_daemon(mountpoint: &Path, report: &OwnedFd) -> io::Result<()> {
    // The kernel never answers statfs(2) from a cache. Errors are found, and reported, by the process that uses the mount.
    let _ = rustix::fs::statfs(mountpoint);
    send(report, ANSWERED)
}

/// Fails with `EPIPE` if the other process has ended already, for example because of an error.
fn send(reports: &OwnedFd, report: u8) -> io::Result<()> {
    rustix::io::write(reports, &[report])?;
    Ok(())
}

/// Waits until the other process has executed isolate or has ended: until no process reads the reports any more.
fn await_start(reports: &OwnedFd) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut [PollFd::new(reports, PollFlags::empty())], None))?;
    Ok(())
}

/// Takes a step of the guardian. A failure or a panic ends only this step.
fn attempt<T>(step: impl FnOnce() -> io::Result<T>) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).ok().and_then(Result::ok)
}

/// Waits until isolate has ended. Kills it if the supervisor ends before; returns whether it did.
fn wait_for_isolate(isolate: &OwnedFd, supervisor: BorrowedFd<'_>) -> bool {
    wait_for_end(&[isolate.as_fd(), supervisor]);
    let mut ended = [PollFd::new(isolate, PollFlags::IN)];
    if rustix::event::poll(&mut ended, Some(&Timespec::default())).is_ok_and(|ended| ended > 0) {
        return false;
    }
    // Its supervisor was killed: the caller means isolate, whose process it does not know.
    let _ = rustix::process::pidfd_send_signal(isolate, Signal::KILL);
    wait_for_end(&[isolate.as_fd()]);
    true
}

/// Waits until the kernel has unmounted the root everywhere. Kills processes of the sandbox that keep the root mounted.
/// Returns false if the root's death was not detected: the root was never mounted, or is still in use.
fn wait_for_death(lease: &RootLease, watch: Option<&RootWatch>) -> bool {
    let is_dead = |wait| {
        watch.and_then(|watch| watch.dead(wait).ok()).unwrap_or_else(|| {
            std::thread::sleep(wait);
            false
        })
    };
    let source = lease.source();
    let mut wait = FIRST_WAIT;
    loop {
        if is_dead(wait) {
            return true;
        }
        match processes_with_mount(&source) {
            Ok(remaining) if remaining.is_empty() => break,
            Ok(remaining) => remaining.into_iter().for_each(|pid| kill(pid, &source)),
            // The next attempt may succeed.
            Err(_) => {}
        }
        wait = KILL_PAUSE;
    }
    let until = Instant::now() + UNMOUNT_TIMEOUT;
    while lease.is_alive().unwrap_or(true) && Instant::now() < until {
        if is_dead(FIRST_WAIT) {
            return true;
        }
    }
    false
}

/// Waits until one of the processes has ended.
fn wait_for_end(processes: &[BorrowedFd<'_>]) {
    let mut ended: Vec<_> = processes.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
    while !matches!(rustix::event::poll(&mut ended, None), Ok(1..)) {
        std::thread::sleep(FIRST_WAIT);
    }
}

/// Kills a process if it has the root mounted.
fn kill(pid: Pid, source: &str) {
    let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Between listing and opening, the PID may have been reused.
    if holds(pid, source) {
        let _ = rustix::process::pidfd_send_signal(fd.as_fd(), Signal::KILL);
    }
}

fn holds(pid: Pid, source: &str) -> bool {
    let mark = format!(" - overlay {source} ");
    let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.windows(mark.len()).any(|window| window == mark.as_bytes())
}
