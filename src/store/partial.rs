//! Downloads: bytes gather in `partial/` and become a blob through one verified step.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::Store;
use super::dir::Dir;
use super::error::{At as _, StoreError};
use super::layout::{Derived, FILE_MODE};
use super::locks::BlobLock;
use crate::image::Digest;

/// Bytes after which writing them to disk is begun, so that the sync at the end of a large layer has little left to do.
const WRITEBACK_STEP: u64 = 8 << 20;

/// A blob that is being written, after what an interrupted download left of it.
///
/// Dropped, the bytes stay for the next attempt; only [`Partial::commit`] makes a blob of them.
#[derive(Debug)]
pub struct Partial {
    lock: BlobLock,
    /// Opened for appending.
    file: File,
    dir: Dir,
    name: String,
    path: PathBuf,
    len: u64,
    /// The bytes before this are on their way to the disk.
    writeback_from: u64,
    store: Store,
}

impl Store {
    /// Opens the partial file of the locked blob, behind what an earlier attempt left.
    ///
    /// The caller hashes what is there ([`Partial::reader`]) before it goes on, or [restarts](Partial::restart).
    /// [`StoreError::Busy`] where the lock has one open already.
    pub fn partial(&self, lock: &BlobLock) -> Result<Partial, StoreError> {
        let dir = self.derived(Derived::Partial)?;
        let name = lock.digest().hex();
        let path = dir.path_of(&name);
        if !lock.start_writing() {
            let what = format!("blob {}", lock.digest());
            return Err(StoreError::Busy { what, path, waited: std::time::Duration::ZERO });
        }
        let open = || {
            let file = dir.file_with(&name, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND, FILE_MODE)?;
            let len = file.metadata().at("stat", &path)?.len();
            Ok((file, len))
        };
        match open() {
            Ok((file, len)) => {
                let (lock, store) = (lock.clone(), self.clone());
                Ok(Partial { lock, file, dir, name, path, len, writeback_from: len, store })
            }
            Err(error) => {
                lock.stop_writing();
                Err(error)
            }
        }
    }
}

impl Partial {
    /// Bytes that are there.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a length in bytes, of which callers ask only how far it is"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A file of its own to read what is there (and what is appended later) from the start.
    pub fn reader(&self) -> Result<File, StoreError> {
        self.dir.file_with(&self.name, OFlags::RDONLY, 0)
    }

    /// Forgets the bytes that are there.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).at("truncate", &self.path)?;
        self.len = 0;
        self.writeback_from = 0;
        Ok(())
    }

    /// Makes the blob of the bytes, durably. `computed` is the digest of *all* of them, those of earlier attempts
    /// included, and `size` how many the caller has hashed.
    ///
    /// With another digest than the lock's, or another length, the partial file is removed: resuming would never help.
    pub fn commit(self, computed: Digest, size: u64) -> Result<(), StoreError> {
        let wanted = self.lock.digest();
        let len = self.file.metadata().at("stat", &self.path)?.len();
        let refused = if computed != wanted {
            Some(StoreError::DigestMismatch { wanted, got: computed })
        } else if size != len {
            Some(StoreError::SizeMismatch { digest: wanted, wanted: size, got: len })
        } else {
            None
        };
        if let Some(error) = refused {
            self.dir.remove(&self.name)?;
            return Err(error);
        }
        self.file.sync_all().at("sync", &self.path)?;
        let blobs = self.store.make_blobs()?;
        self.dir.rename(&self.name, &blobs, &self.name)?;
        blobs.sync()
    }

    /// Starts writing to disk what has gathered, without waiting for it.
    fn begin_writeback(&mut self) {
        if self.len - self.writeback_from >= WRITEBACK_STEP {
            start_writeback(&self.file, self.writeback_from..self.len);
            self.writeback_from = self.len;
        }
    }
}

impl Write for Partial {
    /// An error is a [`StoreError`] inside ([`StoreError::from_write`] takes it out).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        let count = written.at("write", &self.path).map_err(StoreError::into_io)?;
        self.len += count as u64;
        self.begin_writeback();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.lock.stop_writing();
    }
}

/// Starts writing a range of a file to disk. Only a matter of speed, so errors are left to the sync that follows.
#[expect(unsafe_code, reason = "no safe wrapper of sync_file_range(2) among the dependencies")]
fn start_writeback(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(count)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    // SAFETY: passes integers only; the descriptor is open for as long as `file` is borrowed. Whatever the numbers are,
    // the kernel touches no memory of this process.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, count, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::store::tests::new_store;

    fn content(reader: &mut File) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_interrupted_download_is_resumed_and_committed() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"one two");
        {
            let lock = store.lock_blob(&digest, None).unwrap();
            store.partial(&lock).unwrap().write_all(b"one").unwrap();
        }
        let lock = store.lock_blob(&digest, None).unwrap();
        let mut partial = store.partial(&lock).unwrap();
        assert_eq!(partial.len(), 3);
        let mut reader = partial.reader().unwrap();
        assert_eq!(content(&mut reader), b"one");
        partial.write_all(b" two").unwrap();
        assert_eq!(content(&mut reader), b" two");
        partial.commit(Digest::of(b"one two"), 7).unwrap();
        assert_eq!(store.read_small(&digest, 100).unwrap(), b"one two");
        assert_eq!(store.partial(&lock).unwrap().len(), 0);
    }

    #[test]
    fn a_mismatch_makes_no_blob_and_leaves_nothing_to_resume() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"good");
        let lock = store.lock_blob(&digest, None).unwrap();
        let mut partial = store.partial(&lock).unwrap();
        partial.write_all(b"evil").unwrap();
        let error = partial.commit(Digest::of(b"evil"), 4).unwrap_err();
        assert!(
            matches!(error, StoreError::DigestMismatch { wanted, got } if wanted == digest && got != digest)
        );
        assert!(!store.has_blob(&digest, None).unwrap());

        let mut partial = store.partial(&lock).unwrap();
        assert_eq!(partial.len(), 0);
        partial.write_all(b"good and more").unwrap();
        let error = partial.commit(digest, 4).unwrap_err();
        assert!(matches!(error, StoreError::SizeMismatch { wanted: 4, got: 13, .. }));
        assert!(!store.has_blob(&digest, None).unwrap());
    }

    #[test]
    fn restarting_forgets_what_was_there() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"good");
        let lock = store.lock_blob(&digest, None).unwrap();
        let mut partial = store.partial(&lock).unwrap();
        partial.write_all(b"stale bytes").unwrap();
        partial.restart().unwrap();
        partial.write_all(b"good").unwrap();
        partial.commit(digest, 4).unwrap();
        assert!(store.has_blob(&digest, Some(4)).unwrap());
    }

    #[test]
    fn one_lock_has_one_writer() {
        let (_dir, store) = new_store();
        let lock = store.lock_blob(&Digest::of(b"x"), None).unwrap();
        let first = store.partial(&lock).unwrap();
        assert!(matches!(store.partial(&lock), Err(StoreError::Busy { .. })));
        drop(first);
        store.partial(&lock).unwrap();
    }

    #[test]
    fn the_lock_is_held_for_as_long_as_the_writer_lives() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"x");
        let lock = store.lock_blob(&digest, None).unwrap();
        let partial = store.partial(&lock).unwrap();
        drop(lock);
        assert!(store.try_lock_blob(&digest).unwrap().is_none());
        drop(partial);
        assert!(store.try_lock_blob(&digest).unwrap().is_some());
    }

    #[test]
    fn writeback_on_the_way_changes_no_bytes() {
        let (_dir, store) = new_store();
        let bytes = vec![9; usize::try_from(WRITEBACK_STEP).unwrap() * 2 + 17];
        let digest = Digest::of(&bytes);
        let lock = store.lock_blob(&digest, None).unwrap();
        let mut partial = store.partial(&lock).unwrap();
        for chunk in bytes.chunks(1 << 20) {
            partial.write_all(chunk).unwrap();
        }
        assert!(partial.writeback_from >= WRITEBACK_STEP);
        partial.commit(digest, bytes.len() as u64).unwrap();
        store.verify_blob(&digest, |_| ()).unwrap();
    }
}
