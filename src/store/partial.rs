//! Partial downloads: their bytes are collected in `partial/` and become a blob in one verified step.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::OFlags;

use super::Store;
use super::dir::Dir;
use super::error::StoreError;
use super::layout::{FILE_MODE, Subdir};
use super::locks::BlobLock;
use crate::image::Digest;
use crate::os::{AtPath as _, PathError};

/// Writeback to disk starts after every this many bytes, so that the final sync of a large layer is short.
pub(super) const WRITEBACK_STEP: u64 = 8 << 20;

/// A blob that is being downloaded, including the bytes of interrupted downloads.
///
/// Dropping it keeps the bytes for the next attempt. Only [`PartialBlob::commit`] turns them into a blob.
#[derive(Debug)]
pub struct PartialBlob {
    lock: BlobLock,
    /// Opened for appending.
    file: File,
    dir: Dir,
    name: String,
    path: PathBuf,
    len: u64,
    /// Writeback of the bytes before this offset has started.
    writeback_from: u64,
    store: Store,
}

impl Store {
    /// Opens the partial file of the locked blob, for appending to the bytes of an earlier attempt.
    ///
    /// The caller must first hash those bytes ([`PartialBlob::reader`]) or discard them ([`PartialBlob::restart`]). Fails
    /// with [`StoreError::Busy`] if the partial file is open already.
    pub fn partial(&self, lock: &BlobLock) -> Result<PartialBlob, StoreError> {
        let dir = self.make_subdir(Subdir::Partial)?;
        let name = lock.digest().hex();
        let path = dir.path_of(&name);
        if !lock.start_writing() {
            let holder = format!("another writer of blob {}", lock.digest());
            return Err(StoreError::Busy { holder, path, waited: Duration::ZERO });
        }
        let open = || {
            let file = dir.file_with(&name, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND, FILE_MODE)?;
            let len = file.metadata().at("stat", &path)?.len();
            Ok((file, len))
        };
        match open() {
            Ok((file, len)) => {
                let (lock, store) = (lock.clone(), self.clone());
                Ok(PartialBlob { lock, file, dir, name, path, len, writeback_from: len, store })
            }
            Err(error) => {
                lock.stop_writing();
                Err(error)
            }
        }
    }
}

impl PartialBlob {
    /// The number of bytes downloaded so far.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the progress of a download in bytes; callers never need to know whether it is 0"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Opens a separate handle that reads the bytes from the start, including those appended later.
    pub fn reader(&self) -> Result<File, StoreError> {
        self.dir.file_with(&self.name, OFlags::RDONLY, 0)
    }

    /// Discards all bytes.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).at("truncate", &self.path)?;
        self.len = 0;
        self.writeback_from = 0;
        Ok(())
    }

    /// Turns the bytes into the blob and syncs it to disk.
    ///
    /// `computed` is the digest of *all* bytes, including those of earlier attempts, and `size` the number of bytes that the
    /// caller has hashed. If the digest is not the blob's, or `size` is not the file's size, this fails and removes the
    /// partial file, since no resumed download could ever succeed.
    pub fn commit(self, computed: Digest, size: u64) -> Result<(), StoreError> {
        let expected = self.lock.digest();
        let len = self.file.metadata().at("stat", &self.path)?.len();
        let mismatch = if computed != expected {
            Some(StoreError::DigestMismatch { expected, actual: computed })
        } else if size != len {
            Some(StoreError::SizeMismatch { digest: expected, expected: size, actual: len })
        } else {
            None
        };
        if let Some(error) = mismatch {
            self.dir.remove(&self.name)?;
            return Err(error);
        }
        self.file.sync_all().at("sync", &self.path)?;
        let blobs = self.store.make_blobs()?;
        self.dir.rename(&self.name, &blobs, &self.name)?;
        blobs.sync()
    }

    /// Starts writeback of the bytes written so far, without waiting for it.
    fn begin_writeback(&mut self) {
        if self.len - self.writeback_from >= WRITEBACK_STEP {
            start_writeback(&self.file, self.writeback_from..self.len);
            self.writeback_from = self.len;
        }
    }
}

impl Write for PartialBlob {
    /// Wraps a [`StoreError`] into the error; [`StoreError::from_write`] unwraps it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self
            .file
            .write(bytes)
            .map_err(|error| StoreError::from(PathError::new("write", &self.path, error)).into_io())?;
        self.len += count as u64;
        self.begin_writeback();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.lock.stop_writing();
    }
}

/// Starts writing a range of a file to disk. Ignores errors, since this only saves time: the final sync reports them.
#[expect(unsafe_code, reason = "no dependency has a safe wrapper for sync_file_range(2)")]
pub(super) fn start_writeback(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(count)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    // SAFETY: The arguments are integers and the descriptor stays open while `file` is borrowed. With any values, the kernel
    // accesses no memory of this process.
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
    fn interrupted_download_is_resumed_and_committed() {
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
    fn mismatch_creates_no_blob_and_removes_the_partial_file() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"good");
        let lock = store.lock_blob(&digest, None).unwrap();
        let mut partial = store.partial(&lock).unwrap();
        partial.write_all(b"evil").unwrap();
        let error = partial.commit(Digest::of(b"evil"), 4).unwrap_err();
        assert!(
            matches!(error, StoreError::DigestMismatch { expected, actual } if expected == digest && actual != digest)
        );
        assert!(!store.has_blob(&digest, None).unwrap());

        let mut partial = store.partial(&lock).unwrap();
        assert_eq!(partial.len(), 0);
        partial.write_all(b"good and more").unwrap();
        let error = partial.commit(digest, 4).unwrap_err();
        assert!(matches!(error, StoreError::SizeMismatch { expected: 4, actual: 13, .. }));
        assert!(!store.has_blob(&digest, None).unwrap());
    }

    #[test]
    fn restart_discards_earlier_bytes() {
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
    fn blob_lock_allows_one_writer_at_a_time() {
        let (_dir, store) = new_store();
        let lock = store.lock_blob(&Digest::of(b"x"), None).unwrap();
        let first = store.partial(&lock).unwrap();
        assert!(matches!(store.partial(&lock), Err(StoreError::Busy { .. })));
        drop(first);
        store.partial(&lock).unwrap();
    }

    #[test]
    fn partial_blob_keeps_the_lock_after_the_lock_handle_is_dropped() {
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
    fn early_writeback_does_not_change_the_content() {
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
