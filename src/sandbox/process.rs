//! Processes of a run: blocked signals, fork into a PID namespace, and the exit status of a child.
//!
//! The process must have a single thread.

#![expect(
    unsafe_code,
    reason = "rustix has no fork, no signal masks and no close_range(2); all are used only in this file"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::os::{Forked, fork};

/// The signals that end a run: they are forwarded to the sandbox, and the run is cleaned up.
const END_SIGNALS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Signals that are blocked and received one by one.
///
/// A signal that was ignored when the process started, as by `nohup`, stays ignored.
#[derive(Clone, Copy)]
pub(super) struct HeldSignals {
    held: libc::sigset_t,
    previous: libc::sigset_t,
}

impl std::fmt::Debug for HeldSignals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldSignals").finish_non_exhaustive()
    }
}

/// A signal that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalEvent {
    /// A child may have ended.
    Child,
    /// The run must end.
    End(Signal),
    /// The caller's terminal has another size.
    Resized,
}

impl HeldSignals {
    /// Blocks the signals that end a run, SIGCHLD and SIGWINCH.
    pub(super) fn hold() -> io::Result<Self> {
        let mut held = empty_set();
        let mut previous = empty_set();
        // SAFETY: sigaction writes the disposition to a valid struct, the set functions write to valid sets, and no handler
        // is installed. SIGCHLD is reset to its default disposition: if it were ignored, the kernel would reap children before
        // this process can wait for them.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::sigaddset(&mut held, libc::SIGCHLD);
            libc::sigaddset(&mut held, libc::SIGWINCH);
            for signal in END_SIGNALS {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed();
                if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if action.assume_init().sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&mut held, signal);
                }
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &held, &mut previous) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { held, previous })
    }

    /// Waits for the next signal.
    pub(super) fn wait(&self) -> io::Result<SignalEvent> {
        loop {
            // SAFETY: the set is initialised. With a null pointer for details, the kernel writes nothing.
            let number = unsafe { libc::sigwaitinfo(&self.held, ptr::null_mut()) };
            if let Some(event) = signal_event(number)? {
                return Ok(event);
            }
        }
    }

    /// Waits for a signal that ends the run, for at most `timeout`.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> io::Result<Option<Signal>> {
        let deadline = Instant::now() + timeout;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let remaining = libc::timespec {
                tv_sec: i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(remaining.subsec_nanos()),
            };
            // SAFETY: as for sigwaitinfo above; the kernel only reads the timeout.
            let number = unsafe { libc::sigtimedwait(&self.held, ptr::null_mut(), &remaining) };
            if number < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
                return Ok(None);
            }
            if let Some(SignalEvent::End(signal)) = signal_event(number)? {
                return Ok(Some(signal));
            }
        }
    }

    /// Restores the signal mask, in a child before it executes a program.
    pub(super) fn release(&self) {
        // SAFETY: the set is the one that sigprocmask returned. The call fails only for an invalid request.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.previous, ptr::null_mut()) };
    }
}

/// Ends this process by a signal, as another process was ended by it. If that is impossible, exits as shells do.
pub(super) fn end_by_signal(signals: &HeldSignals, signal: i32) -> ! {
    // The other process has dumped its core, if any.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    signals.release();
    // SAFETY: no handler is installed; the runtime's own, for stack overflows, is removed.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Converts a signal number to an event; `None` if the wait was interrupted. A negative number is an error of the wait.
fn signal_event(number: i32) -> io::Result<Option<SignalEvent>> {
    match number {
        libc::SIGCHLD => Ok(Some(SignalEvent::Child)),
        libc::SIGWINCH => Ok(Some(SignalEvent::Resized)),
        number if number < 0 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
        number => Ok(Signal::from_named_raw(number).map(SignalEvent::End)),
    }
}

/// Makes every descriptor from 3 up close at the next execve(2), also those that this process inherited.
///
/// Descriptors of the caller must not reach a sandbox: a program could read and write whatever they refer to.
pub(super) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory and, with this flag, closes nothing in this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forks a child that is the first process of a new PID namespace. When it ends, the kernel kills all others in it.
pub(super) fn fork_first_process() -> io::Result<Forked> {
    let own = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: a new PID namespace affects only future children, not the memory or descriptors of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID)? };
    let forked = fork();
    if !matches!(forked, Ok(Forked::Child)) {
        // Later children are again in the namespace of this process.
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    }
    forked
}

/// The mount namespace, root directory and working directory of this process, to return to.
#[derive(Debug)]
pub(super) struct SavedLocation {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl SavedLocation {
    /// Saves the current location.
    pub(super) fn save() -> io::Result<Self> {
        let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            namespace: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH | OFlags::DIRECTORY)?,
            directory: open(".", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// Returns to the saved location. The mount namespace that this process leaves survives only if another process is in it.
    pub(super) fn restore(&self) -> io::Result<()> {
        // setns(2) moves the process to the root of the namespace, which may differ from the saved root.
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")?;
        Ok(rustix::process::fchdir(&self.directory)?)
    }
}

/// How a child ended, and the resources that it and its reaped children used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChildExit {
    /// The status of wait(2).
    status: i32,
    /// Processor time, in microseconds.
    pub(super) cpu_us: u64,
    /// The largest resident set, in KiB.
    pub(super) max_rss_kib: u64,
    pub(super) switches_voluntary: u64,
    pub(super) switches_forced: u64,
}

impl ChildExit {
    /// The exit code, if the child exited.
    pub(super) fn code(self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    /// The signal that killed the child, if one did.
    pub(super) fn signal(self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

/// Reaps one child that has ended. Returns `None` if no child has ended.
pub(super) fn reap() -> io::Result<Option<(Pid, ChildExit)>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for writing, and all-zero bytes are a valid rusage.
    let (pid, usage) = unsafe {
        let pid = libc::wait4(-1, &mut status, libc::WNOHANG, usage.as_mut_ptr());
        (pid, usage.assume_init())
    };
    if pid < 0 {
        return match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        };
    }
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    let time = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
    Ok(Pid::from_raw(pid).map(|pid| {
        let exit = ChildExit {
            status,
            cpu_us: time(usage.ru_utime) + time(usage.ru_stime),
            max_rss_kib: count(usage.ru_maxrss),
            switches_voluntary: count(usage.ru_nvcsw),
            switches_forced: count(usage.ru_nivcsw),
        };
        (pid, exit)
    }))
}

/// Waits for a child to end. Meanwhile reaps other children, and forwards signals that end the run to the child.
///
/// Calls `on_resize` when the caller's terminal has another size. Also returns the first signal that ends the run.
pub(super) fn wait_for(
    child: Pid,
    signals: &HeldSignals,
    on_resize: &dyn Fn(),
) -> io::Result<(ChildExit, Option<i32>)> {
    let mut interrupted = None;
    loop {
        while let Some((pid, exit)) = reap()? {
            if pid == child {
                return Ok((exit, interrupted));
            }
        }
        match signals.wait()? {
            SignalEvent::Child => {}
            SignalEvent::Resized => on_resize(),
            SignalEvent::End(signal) => {
                // The child may have ended, but it is not reaped yet, so its PID cannot belong to another process.
                let _ = rustix::process::kill_process(child, signal);
                interrupted = interrupted.or(Some(signal.as_raw()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_has_either_a_code_or_a_signal() {
        let exit = |status| ChildExit {
            status,
            cpu_us: 0,
            max_rss_kib: 0,
            switches_voluntary: 0,
            switches_forced: 0,
        };
        assert_eq!((exit(3 << 8).code(), exit(3 << 8).signal()), (Some(3), None));
        assert_eq!((exit(9).code(), exit(9).signal()), (None, Some(9)));
    }
}
