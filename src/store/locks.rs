//! Locks of the store: on a blob, against `gc`, and on one of the store's own files.
//!
//! All are flock(2) locks (see [`crate::os::lock_named`]). The holder of a blob's lock removes the lock file just before it
//! releases the lock, so `locks/` contains no file for an unlocked blob.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::Store;
use super::dir::Dir;
use super::error::StoreError;
use super::layout::Subdir;
use crate::image::Digest;
use crate::os::{self, NamedLock, Sharing};

/// Longest wait for a change of `index.json` or of the slots, which reads and writes one small file.
const FILE_LOCK_WAIT: Duration = Duration::from_secs(30);
/// The lock that `gc` takes exclusively and each [`GcLease`] shares.
const GC: &str = "gc";

/// A locked file, unlocked when dropped.
#[derive(Debug)]
pub(super) struct Flock {
    pub(super) file: File,
}

impl Flock {
    /// Opens the file `name` in `dir`, creating it if missing, and locks it.
    ///
    /// Returns `None` if the lock is not free within `wait` (`None`: waits without a limit).
    pub(super) fn open(
        dir: &Dir,
        name: &str,
        sharing: Sharing,
        wait: Option<Duration>,
    ) -> Result<Option<Self>, StoreError> {
        // A deadline beyond the range of the clock means no deadline.
        let deadline = wait.and_then(|wait| Instant::now().checked_add(wait));
        let open = || dir.file_with(name, OFlags::RDWR | OFlags::CREATE, 0o600).map(Some);
        match os::lock_named(dir.as_fd(), &dir.path_of(name), sharing, deadline, open)? {
            NamedLock::Locked(file) => Ok(Some(Self { file })),
            NamedLock::Busy | NamedLock::Missing => Ok(None),
        }
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        os::unlock(&self.file);
    }
}

/// The exclusive right to write one blob: no other process or thread downloads it, and no sweep removes it.
///
/// Its clones, and the [`PartialBlob`](super::PartialBlob) opened with it, share the lock. The last of them releases it.
#[derive(Debug, Clone)]
pub struct BlobLock {
    shared: Arc<SharedBlobLock>,
}

#[derive(Debug)]
struct SharedBlobLock {
    digest: Digest,
    dir: Dir,
    /// Whether a `PartialBlob` is open. Two would write to the same file.
    writing: AtomicBool,
    _flock: Flock,
}

impl Drop for SharedBlobLock {
    fn drop(&mut self) {
        // The lock is still held: fields are dropped after this function.
        if let Err(error) = self.dir.remove(&self.digest.hex()) {
            tracing::debug!("cannot remove a lock file: {error}");
        }
    }
}

impl BlobLock {
    /// The digest of the locked blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.shared.digest
    }

    /// Marks the blob's partial file as open; returns false if it is open already.
    pub(super) fn start_writing(&self) -> bool {
        !self.shared.writing.swap(true, Ordering::AcqRel)
    }

    /// Marks the blob's partial file as closed.
    pub(super) fn stop_writing(&self) {
        self.shared.writing.store(false, Ordering::Release);
    }
}

/// A lease that prevents `gc` from removing any blob until the lease is dropped.
///
/// Take the lease before you store the first blob or check whether it is stored, and keep it until an image in `index.json`
/// refers to the blobs.
#[derive(Debug)]
pub struct GcLease {
    _flock: Flock,
}

impl Store {
    /// Locks a blob for writing. Waits for at most `wait` (`None`: without a limit), then fails with [`StoreError::Busy`].
    ///
    /// The caller must hold a [`GcLease`], and must check after this call whether the blob is stored: the previous holder of
    /// the lock has probably stored it.
    pub fn lock_blob(&self, digest: &Digest, wait: Option<Duration>) -> Result<BlobLock, StoreError> {
        self.blob_lock(digest, wait)?.ok_or_else(|| StoreError::Busy {
            holder: format!("another writer of blob {digest}"),
            path: self.path_in(Subdir::Locks, &digest.hex()),
            waited: wait.unwrap_or_default(),
        })
    }

    /// Locks a blob for writing; `None` if its lock is not free.
    pub fn try_lock_blob(&self, digest: &Digest) -> Result<Option<BlobLock>, StoreError> {
        self.blob_lock(digest, Some(Duration::ZERO))
    }

    fn blob_lock(&self, digest: &Digest, wait: Option<Duration>) -> Result<Option<BlobLock>, StoreError> {
        let dir = self.make_subdir(Subdir::Locks)?;
        let Some(flock) = Flock::open(&dir, &digest.hex(), Sharing::Exclusive, wait)? else {
            return Ok(None);
        };
        let writing = AtomicBool::new(false);
        Ok(Some(BlobLock {
            shared: Arc::new(SharedBlobLock { digest: *digest, dir, writing, _flock: flock }),
        }))
    }

    /// Keeps `gc` from running. Waits for a running one for at most `wait` (`None`: without a limit).
    ///
    /// Any number of leases can be held at the same time.
    pub fn lease(&self, wait: Option<Duration>) -> Result<GcLease, StoreError> {
        let flock = self.lock_file(GC, "a running gc", Sharing::Shared, wait)?;
        Ok(GcLease { _flock: flock })
    }

    /// Waits until no [`GcLease`] is held, and prevents new ones until the result is dropped.
    pub(super) fn exclude_leases(&self, wait: Duration) -> Result<Flock, StoreError> {
        self.lock_file(GC, "a running pull or load", Sharing::Exclusive, Some(wait))
    }

    /// Takes the write lock of the store's own file `name`.
    pub(super) fn lock_for_update(&self, name: &str) -> Result<Flock, StoreError> {
        self.lock_file(name, &format!("another writer of `{name}`"), Sharing::Exclusive, Some(FILE_LOCK_WAIT))
    }

    fn lock_file(
        &self,
        name: &str,
        holder: &str,
        sharing: Sharing,
        wait: Option<Duration>,
    ) -> Result<Flock, StoreError> {
        let dir = self.make_subdir(Subdir::Locks)?;
        Flock::open(&dir, name, sharing, wait)?.ok_or_else(|| StoreError::Busy {
            holder: holder.to_owned(),
            path: dir.path_of(name),
            waited: wait.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::store::tests::new_store;

    /// Starts a process (flock of util-linux) that holds the lock of `path` until its input is closed.
    fn lock_in_another_process(path: &Path) -> Child {
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
    fn blob_lock_of_another_process_ends_with_that_process() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"x");
        drop(store.lock_blob(&digest, None).unwrap());
        let locks = store.make_subdir(Subdir::Locks).unwrap();
        let mut other = lock_in_another_process(&locks.path_of(&digest.hex()));
        assert!(store.try_lock_blob(&digest).unwrap().is_none());
        let error = store.lock_blob(&digest, Some(Duration::from_millis(20))).unwrap_err();
        assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
        // `flock` and its child `sh` share the open file. Closing the input ends both.
        drop(other.stdin.take());
        other.wait().unwrap();
        store.lock_blob(&digest, Some(Duration::from_secs(10))).unwrap();
    }

    #[test]
    fn blob_lock_has_one_holder_although_lock_files_are_removed() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"x");
        let locked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = store.lock_blob(&digest, None).unwrap();
                        assert!(!locked.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        locked.store(false, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(store.make_subdir(Subdir::Locks).unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn leases_are_shared_and_exclude_gc() {
        let (_dir, store) = new_store();
        let first = store.lease(None).unwrap();
        let second = store.lease(Some(Duration::ZERO)).unwrap();
        drop(first);
        assert!(matches!(store.exclude_leases(Duration::ZERO), Err(StoreError::Busy { .. })));
        drop(second);
        let _gc = store.exclude_leases(Duration::ZERO).unwrap();
        assert!(matches!(store.lease(Some(Duration::ZERO)), Err(StoreError::Busy { .. })));
    }
}
