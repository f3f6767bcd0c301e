//! Detects the death of an overlay: the moment when no mount and no descriptor in any namespace uses it any more.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::PrivateRoot;

/// A watch for the death of one root.
///
/// inotify(7) reports `IN_UNMOUNT` when the kernel shuts down the filesystem of a watched directory, and a watch does not
/// keep the filesystem alive. A forked process can read a watch that its parent made.
#[derive(Debug)]
pub struct RootWatch {
    queue: OwnedFd,
    dead: AtomicBool,
}

impl RootWatch {
    /// Makes a watch without a root.
    ///
    /// # Errors
    ///
    /// inotify_init1(2) fails, for example at the user's limit `/proc/sys/fs/inotify/max_user_instances`.
    pub fn new() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { queue, dead: AtomicBool::new(false) })
    }

    /// Watches a root. Must be called only once.
    ///
    /// # Errors
    ///
    /// inotify_add_watch(2) fails.
    pub fn add(&self, root: &PrivateRoot) -> io::Result<()> {
        self.add_directory(root.fd())
    }

    pub(crate) fn add_directory(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        let path = format!("/proc/self/fd/{}", root.as_raw_fd());
        // inotify requires an event besides IN_UNMOUNT. The root directory of a filesystem is never deleted.
        inotify::add_watch(&self.queue, path, WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR)?;
        Ok(())
    }

    /// A descriptor to poll: it is readable when [`RootWatch::dead`] may return true.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// Returns whether the root is dead; waits for its death for at most `timeout`.
    ///
    /// # Errors
    ///
    /// read(2) or poll(2) fails.
    pub fn dead(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if self.dead.load(Ordering::Relaxed) || self.read_events()? {
                self.dead.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if remaining.is_some_and(|remaining| remaining.is_zero()) {
                return Ok(false);
            }
            let timeout = remaining.and_then(|remaining| Timespec::try_from(remaining).ok());
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads all pending events; returns whether one was `IN_UNMOUNT`.
    fn read_events(&self) -> io::Result<bool> {
        // Large enough for an event with the longest name.
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut unmounted = false;
        loop {
            match reader.next() {
                Ok(event) => unmounted |= event.events().contains(ReadFlags::UNMOUNT),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(unmounted),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
