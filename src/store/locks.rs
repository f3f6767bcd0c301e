//! Locks between processes: flock(2) on files, so that the kernel releases them when the holder dies.
//!
//! A lock belongs to the open file, so it works between threads of one process as well. Waiting polls, from every
//! millisecond to every 50 ms, since a blocking flock knows no deadline; waiters are not served in order.
//!
//! Lock files of blobs are removed by the holder just before it lets go. A waiter that then gets the lock of a file that has
//! no name any more starts over; otherwise two could hold "the" lock, one of the removed file and one of its successor.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use super::dir::{Dir, is_linked, read_bounded};
use super::error::{At as _, StoreError};
use super::layout::{Derived, FILE_MODE};
use crate::image::Digest;

/// How long a change of `index.json` or of the slots may take another process: it reads and writes one small file.
const SHORT: Duration = Duration::from_secs(30);
/// The lock that [`Lease`] shares.
const GC: &str = "gc";
/// The file that a daemon locks and describes itself in.
const DAEMON: &str = "daemon";
/// A daemon that has just taken its lock is given this long to write who it is.
const DAEMON_STARTS: Duration = Duration::from_secs(2);
/// Asking for the daemon takes its lock for some microseconds; who holds it for longer is a daemon.
const ASKING: Duration = Duration::from_millis(200);

/// Whether others may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    Shared,
    Exclusive,
}

/// A locked file, unlocked when dropped.
#[derive(Debug)]
pub(super) struct Flock {
    pub(super) file: File,
}

impl Drop for Flock {
    fn drop(&mut self) {
        // Closing is not enough: a child process that is between fork and exec holds the same open file.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Locks `file`, waiting until `until` (`None`: for ever); gives the file back where the time is over.
fn lock(file: File, sharing: Sharing, until: Option<Instant>) -> io::Result<Result<Flock, File>> {
    let operation = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    let mut pause = Duration::from_millis(1);
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(Ok(Flock { file })),
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(Err(file));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Locks the file `name` in `dir`, made where it is missing; `None` where the time is over.
fn lock_name(
    dir: &Dir,
    name: &str,
    sharing: Sharing,
    wait: Option<Duration>,
) -> Result<Option<Flock>, StoreError> {
    // A wait too long for the clock is one for ever.
    let until = wait.and_then(|wait| Instant::now().checked_add(wait));
    loop {
        let file = dir.file_with(name, OFlags::RDWR | OFlags::CREATE, 0o600)?;
        match lock(file, sharing, until).at("lock", &dir.path_of(name))? {
            Err(_) => return Ok(None),
            Ok(flock) if is_linked(dir, name, &flock.file)? => return Ok(Some(flock)),
            Ok(_removed_by_the_former_holder) => {}
        }
    }
}

/// The right to write one blob: no other process or thread downloads it meanwhile, and no sweep removes it.
///
/// Clones and the [`Partial`](super::Partial) made from it hold the same lock; it is released with the last.
#[derive(Debug, Clone)]
pub struct BlobLock {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    digest: Digest,
    dir: Dir,
    /// Whether a `Partial` is open; there is at most one, since two would write into the same file.
    writing: AtomicBool,
    _flock: Flock,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the unlock, which the field's own drop does after this.
        if let Err(error) = self.dir.remove(&self.digest.hex()) {
            tracing::debug!("lock file is left: {error}");
        }
    }
}

impl BlobLock {
    /// The blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.held.digest
    }

    /// Marks that its partial file is open; false where it was already.
    pub(super) fn start_writing(&self) -> bool {
        !self.held.writing.swap(true, Ordering::AcqRel)
    }

    /// The partial file is closed.
    pub(super) fn stop_writing(&self) {
        self.held.writing.store(false, Ordering::Release);
    }
}

/// Keeps `gc` from removing anything that is in the store or put there, until dropped.
///
/// Taken before the first blob is put or found to be there, and kept until a tag refers to it.
#[derive(Debug)]
pub struct Lease {
    _flock: Flock,
}

/// Who serves a store: written by the daemon into its lock file, for other commands to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Its process.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
    /// Where the images are mounted.
    pub mountpoint: PathBuf,
}

/// The right to serve a store; released when dropped or when the process dies.
#[derive(Debug)]
pub struct DaemonLock {
    flock: Flock,
}

impl Drop for DaemonLock {
    fn drop(&mut self) {
        // The file itself stays: removing it would let two daemons lock two files of the same name.
        let _ = self.flock.file.set_len(0);
    }
}

impl Store {
    /// Waits for the right to write a blob, for at most `wait` (`None`: for ever).
    ///
    /// The caller holds a [`Lease`], and looks again whether the blob is there once it has the lock: the former holder
    /// probably put it.
    pub fn lock_blob(&self, digest: &Digest, wait: Option<Duration>) -> Result<BlobLock, StoreError> {
        self.blob_lock(digest, wait)?.ok_or_else(|| StoreError::Busy {
            what: format!("blob {digest}"),
            path: self.derived_path(Derived::Locks, &digest.hex()),
            waited: wait.unwrap_or_default(),
        })
    }

    /// Takes the right to write a blob where nobody has it.
    pub fn try_lock_blob(&self, digest: &Digest) -> Result<Option<BlobLock>, StoreError> {
        self.blob_lock(digest, Some(Duration::ZERO))
    }

    fn blob_lock(&self, digest: &Digest, wait: Option<Duration>) -> Result<Option<BlobLock>, StoreError> {
        let dir = self.derived(Derived::Locks)?;
        let flock = lock_name(&dir, &digest.hex(), Sharing::Exclusive, wait)?;
        Ok(flock.map(|flock| BlobLock {
            held: Arc::new(Held { digest: *digest, dir, writing: AtomicBool::new(false), _flock: flock }),
        }))
    }

    /// Keeps `gc` away, waiting for one that runs for at most `wait` (`None`: for ever). Any number may be held.
    pub fn lease(&self, wait: Option<Duration>) -> Result<Lease, StoreError> {
        let flock = self.named_lock(GC, "gc", Sharing::Shared, wait)?;
        Ok(Lease { _flock: flock })
    }

    /// Keeps leases away: for `gc` itself.
    pub(super) fn no_leases(&self, wait: Duration) -> Result<Flock, StoreError> {
        self.named_lock(GC, "a pull or a load", Sharing::Exclusive, Some(wait))
    }

    /// The lock of one of the store's own files, `name`.
    pub(super) fn file_lock(&self, name: &'static str) -> Result<Flock, StoreError> {
        self.named_lock(name, name, Sharing::Exclusive, Some(SHORT))
    }

    fn named_lock(
        &self,
        name: &str,
        what: &str,
        sharing: Sharing,
        wait: Option<Duration>,
    ) -> Result<Flock, StoreError> {
        let dir = self.derived(Derived::Locks)?;
        lock_name(&dir, name, sharing, wait)?.ok_or_else(|| StoreError::Busy {
            what: what.to_owned(),
            path: dir.path_of(name),
            waited: wait.unwrap_or_default(),
        })
    }

    /// Takes the right to serve this store and tells others about it.
    pub fn lock_daemon(&self, info: &DaemonInfo) -> Result<DaemonLock, StoreError> {
        let top = self.top()?;
        let path = top.path_of(DAEMON);
        // Readable by all, since whoever lists images may want to ask the daemon.
        let file = top.file_with(DAEMON, OFlags::RDWR | OFlags::CREATE, FILE_MODE)?;
        let until = Some(Instant::now() + ASKING);
        let mut flock = match lock(file, Sharing::Exclusive, until).at("lock", &path)? {
            Ok(flock) => flock,
            Err(file) => {
                let first = read_info(&file, &path)?;
                return Err(StoreError::DaemonRuns { pid: first.pid, mountpoint: first.mountpoint });
            }
        };
        let text =
            serde_json::to_vec(info).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        flock.file.set_len(0).at("write", &path)?;
        flock.file.rewind().at("write", &path)?;
        flock.file.write_all(&text).at("write", &path)?;
        Ok(DaemonLock { flock })
    }

    /// The daemon that serves this store now.
    pub fn running_daemon(&self) -> Result<Option<DaemonInfo>, StoreError> {
        let Some(top) = self.existing_top()? else { return Ok(None) };
        let path = top.path_of(DAEMON);
        let Some(file) = top.file(DAEMON)? else { return Ok(None) };
        match lock(file, Sharing::Shared, Some(Instant::now())).at("lock", &path)? {
            Ok(_nobody_had_it) => Ok(None),
            Err(file) => read_info(&file, &path).map(Some),
        }
    }
}

/// Reads what the daemon that holds the lock wrote about itself, or is about to write.
fn read_info(file: &File, path: &Path) -> Result<DaemonInfo, StoreError> {
    let until = Instant::now() + DAEMON_STARTS;
    let mut file = file;
    loop {
        file.rewind().at("read", path)?;
        let bytes = read_bounded(file, path, 64 << 10)?;
        match serde_json::from_slice(&bytes) {
            Ok(info) => return Ok(info),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(StoreError::Json { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::store::tests::new_store;

    /// Another process (flock of util-linux) that holds the lock of `path` until it is killed.
    fn other_process_locks(path: &Path) -> Child {
        let mut child = Command::new("flock")
            .arg(path)
            .args(["sh", "-c", "echo locked; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        child
    }

    #[test]
    fn a_blob_is_locked_against_other_processes_until_they_die() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"x");
        drop(store.lock_blob(&digest, None).unwrap());
        let locks = store.derived(Derived::Locks).unwrap();
        let mut other = other_process_locks(&locks.path_of(&digest.hex()));
        assert!(store.try_lock_blob(&digest).unwrap().is_none());
        let error = store.lock_blob(&digest, Some(Duration::from_millis(20))).unwrap_err();
        assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
        // `flock` runs `sh` as a child with the same open file: closing its input ends both.
        drop(other.stdin.take());
        other.wait().unwrap();
        store.lock_blob(&digest, Some(Duration::from_secs(10))).unwrap();
    }

    #[test]
    fn only_one_thread_at_a_time_has_a_blob_although_lock_files_are_removed() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"x");
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = store.lock_blob(&digest, None).unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        inside.store(false, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(store.derived(Derived::Locks).unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn leases_are_shared_and_keep_gc_away() {
        let (_dir, store) = new_store();
        let first = store.lease(None).unwrap();
        let second = store.lease(Some(Duration::ZERO)).unwrap();
        drop(first);
        assert!(matches!(store.no_leases(Duration::ZERO), Err(StoreError::Busy { .. })));
        drop(second);
        let _gc = store.no_leases(Duration::ZERO).unwrap();
        assert!(matches!(store.lease(Some(Duration::ZERO)), Err(StoreError::Busy { .. })));
    }

    #[test]
    fn a_second_daemon_is_told_about_the_first() {
        let (_dir, store) = new_store();
        assert_eq!(store.running_daemon().unwrap(), None);
        let info = DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into() };
        let lock = store.lock_daemon(&info).unwrap();
        assert_eq!(store.running_daemon().unwrap(), Some(info.clone()));
        let error = store.lock_daemon(&DaemonInfo { pid: 1, ..info.clone() }).unwrap_err();
        assert!(
            matches!(&error, StoreError::DaemonRuns { pid: 4711, mountpoint } if mountpoint == Path::new("/images"))
        );
        drop(lock);
        assert_eq!(store.running_daemon().unwrap(), None);
    }

    #[test]
    fn what_a_killed_daemon_wrote_is_not_taken_for_a_daemon() {
        let (_dir, store) = new_store();
        let info = DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into() };
        drop(store.lock_daemon(&info).unwrap());
        std::fs::write(store.top().unwrap().path_of(DAEMON), serde_json::to_vec(&info).unwrap()).unwrap();
        assert_eq!(store.running_daemon().unwrap(), None);
        store.lock_daemon(&DaemonInfo { pid: 1, ..info }).unwrap();
    }
}
