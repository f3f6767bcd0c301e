//! The process that outlives isolate and removes what the run leaves.
//!
//! Nobody of this program is left in the process that became isolate, and that one may be killed at any moment. So a
//! second process holds the lease of the root, waits for the first one's end, kills what is left of the sandbox and removes the
//! root's files. It is root's alone: its real user is root too, so that the caller can neither kill nor stop it, and it
//! keeps nothing of the caller's: no descriptor, directory, limit or session.

#![expect(unsafe_code, reason = "descriptors that nobody owns are closed by number")]

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid};

use super::ShimError;
use crate::roots::{PrivateRoot, RootLease, RootWatch, Roots, processes_with_mount};
use crate::sandbox::process::{Forked, fork};

/// An isolate that ended by itself took its namespace with it before its end could be seen.
const AT_ONCE: Duration = Duration::from_millis(20);
/// How long a namespace that nobody is in any more may take to go: each of its mounts takes a moment.
const DYING: Duration = Duration::from_secs(5);
/// How often what does not die is killed again.
const AGAIN: Duration = Duration::from_millis(200);
/// Room for what one clean-up opens; removing a tree is bounded.
const FILES: u64 = 1024;

/// The guardian, as the process sees it that it waits for.
#[derive(Debug)]
pub(super) struct Guardian {
    watch: RootWatch,
    ready: OwnedFd,
}

impl Guardian {
    /// Starts the process. From here on the lease is its to release; what is returned is for mounting the root.
    pub(super) fn start(
        roots: &Roots,
        lease: RootLease,
    ) -> Result<(Self, ManuallyDrop<RootLease>), ShimError> {
        let failed = |error: Errno| ShimError::Guardian(error.into());
        let watch = RootWatch::new().map_err(ShimError::Guardian)?;
        // Of this very process: once forked, its number could be another's already.
        let ward =
            rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
        let (ready, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        let lease = ManuallyDrop::new(lease);
        match fork().map_err(ShimError::Guardian)? {
            Forked::Parent(_) => Ok((Self { watch, ready }, lease)),
            Forked::Child => {
                let guard = std::panic::AssertUnwindSafe(|| {
                    guard(roots, ManuallyDrop::into_inner(lease), &watch, &ward, &tell)
                });
                // What goes wrong is left for the next sweep; there is nobody to tell.
                let ended = std::panic::catch_unwind(guard);
                std::process::exit(i32::from(!matches!(ended, Ok(Ok(())))));
            }
        }
    }

    /// Has the guardian know when the root is dead.
    pub(super) fn watch(&self, root: &PrivateRoot) -> Result<(), ShimError> {
        self.watch.add(root).map_err(ShimError::Guardian)
    }

    /// Waits until the guardian is out of the caller's reach.
    pub(super) fn wait(&self) -> Result<(), ShimError> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.ready, &mut byte)) {
            Ok(1) => Ok(()),
            Ok(_) => Err(ShimError::Guardian(io::Error::other("it ended before it had begun"))),
            Err(errno) => Err(ShimError::Guardian(errno.into())),
        }
    }
}

/// What the guardian does in its life.
fn guard(
    roots: &Roots,
    lease: RootLease,
    watch: &RootWatch,
    ward: &OwnedFd,
    tell: &OwnedFd,
) -> io::Result<()> {
    let mut kept = vec![watch.fd().as_raw_fd(), ward.as_raw_fd(), tell.as_raw_fd()];
    kept.extend(lease.descriptors().iter().map(|fd| fd.as_raw_fd()));
    settle(&kept)?;
    rustix::io::write(tell, &[1])?;
    let mut ended = [PollFd::new(ward, PollFlags::IN)];
    while rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, None))? == 0 {}
    let source = lease.source();
    let mut wait = AT_ONCE;
    while !watch.dead(wait)? {
        let left = processes_with_mount(&source)?;
        if left.is_empty() {
            let until = Instant::now() + DYING;
            while lease.is_alive().map_err(io::Error::other)? && Instant::now() < until {
                watch.dead(AT_ONCE)?;
            }
            // Nothing was mounted, or a descriptor that was handed out of the sandbox keeps it: then the lease leaves its
            // files to a later sweep.
            drop(lease);
            return sweep(roots);
        }
        left.into_iter().for_each(|pid| kill(pid, &source));
        wait = AGAIN;
    }
    lease.release().map_err(io::Error::other)?;
    sweep(roots)
}

/// Removes what others left who were killed before they had a guardian.
fn sweep(roots: &Roots) -> io::Result<()> {
    roots.sweep().map(drop).map_err(io::Error::other)
}

/// Becomes a process that has nothing of its caller's, and that the caller cannot reach.
fn settle(kept: &[RawFd]) -> io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    rustix::process::setsid()?;
    let _ = rustix::thread::set_name(c"rcx-guardian");
    rustix::process::chdir("/")?;
    let unlimited = Rlimit { current: None, maximum: None };
    let files = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    for (resource, limit) in [
        (Resource::Cpu, unlimited),
        (Resource::Fsize, unlimited),
        (Resource::Data, unlimited),
        (Resource::As, unlimited),
        (Resource::Nofile, files),
    ] {
        // Without the right to raise them, they stay.
        let _ = rustix::process::setrlimit(resource, limit);
    }
    let _ = rustix::process::setpriority_process(None, 0);
    close_all_but(kept)
}

/// Closes every descriptor but these, and leaves the first three open upon nothing.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: no memory is touched. Whatever owns one of these descriptors belongs to frames below this one that are
            // never returned to: the process exits from here.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            if closed != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1).max(first);
    }
    Ok(())
}

/// Kills a process, if it is the one that is meant.
fn kill(pid: Pid, source: &str) {
    let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The number may have become another's between the listing and the opening.
    if holds(pid, source) {
        let _ = rustix::process::pidfd_send_signal(fd.as_fd(), Signal::KILL);
    }
}

fn holds(pid: Pid, source: &str) -> bool {
    let mark = format!(" - overlay {source} ");
    let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.windows(mark.len()).any(|window| window == mark.as_bytes())
}
