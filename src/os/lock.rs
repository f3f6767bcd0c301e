//! Locks between processes: flock(2), which the kernel releases when the last holder dies.
//!
//! A lock belongs to the open file description: it also works between threads of one process, and a forked process shares
//! it. Waiting polls, since a blocking flock(2) takes no deadline; waiters are not served in order.
//!
//! The holder of a lock may remove the locked file or directory. A waiter that then acquires the lock of the removed file
//! must start over. Otherwise, one process could hold the lock of the removed file while another holds the lock of a new file
//! with the same name. [`lock_named`] does this, and is the only correct way to lock something by its name.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::beneath::is_linked;
use super::path_error::{AtPath as _, PathError};

/// Shortest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Whether others may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of holders.
    Shared,
    /// One holder.
    Exclusive,
}

/// The result of [`lock_named`].
#[derive(Debug)]
pub enum NamedLock<F> {
    /// The file, locked.
    Locked(F),
    /// Another process or thread held the lock until the deadline.
    Busy,
    /// No file has this name.
    Missing,
}

/// Takes a lock unless a conflicting one is held; returns whether the lock was taken.
///
/// # Errors
///
/// The errors of flock(2), except `EWOULDBLOCK` and `EINTR`.
pub fn try_lock(file: impl AsFd, sharing: Sharing) -> Result<bool, Errno> {
    let operation = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes a lock, waiting until `deadline` (`None`: without a limit); returns whether the lock was taken.
///
/// # Errors
///
/// The errors of flock(2), except `EWOULDBLOCK` and `EINTR`.
pub fn lock_until(file: impl AsFd, sharing: Sharing, deadline: Option<Instant>) -> Result<bool, Errno> {
    let mut pause = PAUSE_MIN;
    loop {
        if try_lock(&file, sharing)? {
            return Ok(true);
        }
        let remaining =
            deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        if remaining.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(remaining));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Releases a lock at once.
///
/// Closing the file is not enough while a child process between fork and exec has the same open file.
pub fn unlock(file: impl AsFd) {
    // flock(2) fails here only if `file` is not an open file.
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// Opens and locks the file or directory at `path`, waiting until `deadline` (`None`: without a limit).
///
/// `dir` is the directory that contains `path`. `open` opens the file and may create it; it returns `None` if the file does
/// not exist. It is called again if the holder of the lock removed or renamed the file in the meantime. The lock lasts until
/// [`unlock`], or until the last copy of the descriptor is closed.
///
/// # Errors
///
/// The errors of `open`, and of flock(2) and stat(2) on `path`.
///
/// # Panics
///
/// If `path` does not end in a file name.
pub fn lock_named<F: AsFd, E: From<PathError>>(
    dir: BorrowedFd<'_>,
    path: &Path,
    sharing: Sharing,
    deadline: Option<Instant>,
    mut open: impl FnMut() -> Result<Option<F>, E>,
) -> Result<NamedLock<F>, E> {
    let name = path.file_name().expect("the path of a lock ends in a file name");
    loop {
        let Some(file) = open()? else { return Ok(NamedLock::Missing) };
        if !lock_until(&file, sharing, deadline).at("lock", path)? {
            return Ok(NamedLock::Busy);
        }
        if is_linked(dir, name, &file).at("stat", path)? {
            return Ok(NamedLock::Locked(file));
        }
        unlock(&file);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn open(path: &Path, create: bool) -> Result<Option<File>, PathError> {
        match File::options().read(true).write(true).create(create).truncate(false).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PathError::new("open", path, error)),
        }
    }

    #[test]
    fn shared_locks_exclude_only_exclusive_locks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let files: Vec<File> = (0..3).map(|_| open(&path, true).unwrap().unwrap()).collect();
        assert!(try_lock(&files[0], Sharing::Shared).unwrap());
        assert!(try_lock(&files[1], Sharing::Shared).unwrap());
        assert!(!try_lock(&files[2], Sharing::Exclusive).unwrap());
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert!(!lock_until(&files[2], Sharing::Exclusive, soon).unwrap());
        unlock(&files[0]);
        unlock(&files[1]);
        assert!(lock_until(&files[2], Sharing::Exclusive, soon).unwrap());
    }

    #[test]
    fn missing_file_is_not_reported_as_busy() {
        let dir = tempfile::tempdir().unwrap();
        let handle = File::open(dir.path()).unwrap();
        let path = dir.path().join("lock");
        let lock = |create| {
            let now = Some(Instant::now());
            lock_named(handle.as_fd(), &path, Sharing::Exclusive, now, || open(&path, create)).unwrap()
        };
        assert!(matches!(lock(false), NamedLock::Missing));
        let held = lock(true);
        assert!(matches!(held, NamedLock::Locked(_)));
        assert!(matches!(lock(true), NamedLock::Busy));
        drop(held);
        assert!(matches!(lock(false), NamedLock::Locked(_)));
    }

    #[test]
    fn named_lock_has_one_holder_even_if_holders_remove_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let handle = File::open(dir.path()).unwrap();
        let path = dir.path().join("lock");
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let open = || open(&path, true);
                        let lock = lock_named(handle.as_fd(), &path, Sharing::Exclusive, None, open);
                        let NamedLock::Locked(file) = lock.unwrap() else {
                            panic!("the lock must be taken without a deadline")
                        };
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        inside.store(false, Ordering::SeqCst);
                        fs::remove_file(&path).unwrap();
                        unlock(&file);
                    }
                });
            }
        });
    }
}
