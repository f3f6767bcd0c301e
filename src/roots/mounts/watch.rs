//! Learns when an overlay is dead: not only unmounted here, but out of use in every namespace.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::roots::PrivateRoot;

/// A watch for the death of one root.
///
/// inotify(7) tells of a watched directory's filesystem being taken down (`IN_UNMOUNT`), and watching does not keep it up. The
/// watch may be made in one process and read in another that was forked from it.
#[derive(Debug)]
pub struct RootWatch {
    queue: OwnedFd,
    dead: AtomicBool,
}

impl RootWatch {
    /// A watch of nothing yet.
    ///
    /// # Errors
    ///
    /// The user has as many as the kernel allows (`/proc/sys/fs/inotify/max_user_instances`).
    pub fn new() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { queue, dead: AtomicBool::new(false) })
    }

    /// Watches a root; one for each watch.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn add(&self, root: &PrivateRoot) -> io::Result<()> {
        self.add_directory(root.fd())
    }

    pub(crate) fn add_directory(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        let path = format!("/proc/self/fd/{}", root.as_raw_fd());
        // Something has to be asked for; what is asked for here never happens to a filesystem's own directory.
        inotify::add_watch(&self.queue, path, WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR)?;
        Ok(())
    }

    /// To wait for with other descriptors: readable when [`RootWatch::dead`] has something to tell.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// Whether the root is dead, waiting for that for at most `wait`.
    ///
    /// # Errors
    ///
    /// What reading gave.
    pub fn dead(&self, wait: Duration) -> io::Result<bool> {
        let until = Instant::now().checked_add(wait);
        loop {
            if self.dead.load(Ordering::Relaxed) || self.drain()? {
                self.dead.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes all events there are; whether one was the end.
    fn drain(&self) -> io::Result<bool> {
        // Room for an event with the longest name.
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut dead = false;
        loop {
            match reader.next() {
                Ok(event) => dead |= event.events().contains(ReadFlags::UNMOUNT),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(dead),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
