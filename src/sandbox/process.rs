//! Processes of a run: signals that wait, a fork into a process namespace of its own, and how a child ended.
//!
//! All of it needs a process with a single thread: whoever starts a run has no other.

#![expect(unsafe_code, reason = "rustix has neither fork nor signal masks; both are here and nowhere else")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

/// The signals that end a run in good order when its first process gets them.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Signals that are held back, to be taken one by one.
///
/// A signal that the caller has ignored, as `nohup` does, stays ignored.
#[derive(Clone, Copy)]
pub(super) struct HeldSignals {
    held: libc::sigset_t,
    before: libc::sigset_t,
}

impl std::fmt::Debug for HeldSignals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldSignals").finish_non_exhaustive()
    }
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalEvent {
    /// A child may have ended.
    Child,
    /// Somebody wants the run to end.
    End(Signal),
}

impl HeldSignals {
    /// Holds back the signals that end a run, and those about children.
    pub(super) fn hold() -> io::Result<Self> {
        let mut held = empty_set();
        let mut before = empty_set();
        // SAFETY: sigaction only reads the disposition into a struct that is there, the set functions write to sets that
        // are, and no handler is installed: SIGCHLD gets its default, since a caller that ignores it would have the
        // kernel reap the children whose end is waited for.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::sigaddset(&mut held, libc::SIGCHLD);
            for signal in ENDING {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed();
                if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if action.assume_init().sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&mut held, signal);
                }
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &held, &mut before) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { held, before })
    }

    /// Waits for the next one.
    pub(super) fn wait(&self) -> io::Result<SignalEvent> {
        loop {
            // SAFETY: the set is initialised, and the kernel writes nothing where there is no place for details.
            let number = unsafe { libc::sigwaitinfo(&self.held, ptr::null_mut()) };
            if let Some(arrived) = arrived(number)? {
                return Ok(arrived);
            }
        }
    }

    /// A wish to end that has arrived before, if one has.
    pub(super) fn end_wanted(&self) -> io::Result<Option<Signal>> {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            // SAFETY: as above; the time is read only.
            let number = unsafe { libc::sigtimedwait(&self.held, ptr::null_mut(), &now) };
            if number < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
                return Ok(None);
            }
            if let Some(SignalEvent::End(signal)) = arrived(number)? {
                return Ok(Some(signal));
            }
        }
    }

    /// Lets the signals through again, as they were: in a child before it executes a program.
    pub(super) fn release(&self) {
        // SAFETY: the set is the one that sigprocmask gave; the call cannot fail with a valid request.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn arrived(number: i32) -> io::Result<Option<SignalEvent>> {
    match number {
        libc::SIGCHLD => Ok(Some(SignalEvent::Child)),
        number if number < 0 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
        number => Ok(Signal::from_named_raw(number).map(SignalEvent::End)),
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub(super) enum Forked {
    Parent(Pid),
    Child,
}

/// Forks. The child leaves with [`std::process::exit`] or by executing a program, and never returns to its caller's caller.
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so that the child's memory is whole: no lock is held by a thread that is not there.
    // Who starts a run has no other thread; if one were there, the child could hang, which its parent's death ends.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(Forked::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Forks a child that is the first process of a process namespace: when it ends, the kernel kills all others in there.
pub(super) fn fork_first_process() -> io::Result<Forked> {
    let own = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: a new process namespace concerns future children only, no memory or descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID)? };
    let forked = fork();
    if !matches!(forked, Ok(Forked::Child)) {
        // Later children belong to this process's own again.
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    }
    forked
}

/// A place to come back to: the mount namespace, the root directory and the working directory of this process.
#[derive(Debug)]
pub(super) struct SavedLocation {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl SavedLocation {
    /// Where this process is.
    pub(super) fn here() -> io::Result<Self> {
        let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            namespace: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH | OFlags::DIRECTORY)?,
            directory: open(".", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// Comes back, out of a mount namespace that then lives only as long as the processes left in it.
    pub(super) fn back(&self) -> io::Result<()> {
        // This takes the process to the root of the namespace, which need not be where it was.
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")?;
        Ok(rustix::process::fchdir(&self.directory)?)
    }
}

/// How a child ended, and what it and all it had waited for used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChildExit {
    /// As wait(2) gives it.
    status: i32,
    /// Processor time, in microseconds.
    pub(super) cpu_us: u64,
    /// The largest resident set, in KiB.
    pub(super) max_rss_kib: u64,
    pub(super) switches_voluntary: u64,
    pub(super) switches_forced: u64,
}

impl ChildExit {
    /// Its exit code, where it exited.
    pub(super) fn code(self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    /// The signal that killed it, where one did.
    pub(super) fn signal(self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

/// Reaps any child that has ended; none where none has.
pub(super) fn reap() -> io::Result<Option<(Pid, ChildExit)>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both places are there to be written, and all-zero bytes are an rusage.
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
        let ended = ChildExit {
            status,
            cpu_us: time(usage.ru_utime) + time(usage.ru_stime),
            max_rss_kib: count(usage.ru_maxrss),
            switches_voluntary: count(usage.ru_nvcsw),
            switches_forced: count(usage.ru_nivcsw),
        };
        (pid, ended)
    }))
}

/// Waits for a child, reaps others meanwhile, and hands on to it what wants the run to end.
///
/// Also tells whether there was such a signal.
pub(super) fn attend(child: Pid, signals: &HeldSignals) -> io::Result<(ChildExit, bool)> {
    let mut told_to_end = false;
    loop {
        while let Some((pid, ended)) = reap()? {
            if pid == child {
                return Ok((ended, told_to_end));
            }
        }
        if let SignalEvent::End(signal) = signals.wait()? {
            // It may have ended just now: it is not reaped yet, so that the number is still its own.
            let _ = rustix::process::kill_process(child, signal);
            told_to_end = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_a_child_is_taken_apart() {
        let ended = |status| ChildExit {
            status,
            cpu_us: 0,
            max_rss_kib: 0,
            switches_voluntary: 0,
            switches_forced: 0,
        };
        assert_eq!((ended(3 << 8).code(), ended(3 << 8).signal()), (Some(3), None));
        assert_eq!((ended(9).code(), ended(9).signal()), (None, Some(9)));
    }
}
