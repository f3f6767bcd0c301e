//! Stores and reads blobs: files named by the digest of their content, which is checked before a blob is stored.

use std::fs::File;
use std::io::{Read as _, Write as _};

use sha2::Digest as _;

use super::Store;
use super::dir::{TempFile, read_bounded};
use super::error::StoreError;
use super::locks::BlobLock;
use crate::image::Digest;
use crate::os::AtPath as _;

impl Store {
    /// Whether the store has a blob. Fails with [`StoreError::Damaged`] if its file does not have the expected `size`.
    ///
    /// Does not read the content; [`Store::verify_blob`] does.
    pub fn has_blob(&self, digest: &Digest, size: Option<u64>) -> Result<bool, StoreError> {
        match self.open_blob(digest) {
            Err(StoreError::NoBlob { .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(file) => {
                let path = self.blob_path(digest);
                let actual = file.metadata().at("stat", &path)?.len();
                match size {
                    Some(expected) if expected != actual => {
                        let reason = format!("the file has {actual} bytes, expected {expected}");
                        Err(StoreError::Damaged { digest: *digest, path, reason })
                    }
                    _ => Ok(true),
                }
            }
        }
    }

    /// Opens a blob for reading. Fails with [`StoreError::NoBlob`] if it is missing.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let file = match self.blobs()? {
            Some(blobs) => blobs.file(&digest.hex())?,
            None => None,
        };
        file.ok_or(StoreError::NoBlob { digest: *digest })
    }

    /// The size of a blob's file in bytes.
    pub fn blob_size(&self, digest: &Digest) -> Result<u64, StoreError> {
        let metadata = self.open_blob(digest)?.metadata();
        Ok(metadata.at("stat", &self.blob_path(digest))?.len())
    }

    /// Reads a blob of at most `limit` bytes and checks its digest.
    pub fn read_small(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = read_bounded(&self.open_blob(digest)?, &path, limit)?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(damaged(digest, path, &actual)),
        }
    }

    /// Stores a small blob after checking its digest. Does nothing if the store has an undamaged copy.
    ///
    /// The caller must hold a [`GcLease`](super::GcLease), but needs no [`BlobLock`].
    pub fn put_small(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(StoreError::DigestMismatch { expected: *digest, actual });
        }
        match self.read_small(digest, bytes.len() as u64) {
            Ok(_) => return Ok(()),
            // The write below adds a missing blob and repairs a damaged one. Any other problem makes it fail, too.
            Err(error) => tracing::trace!("storing {digest}: {error}"),
        }
        let mut temp = self.temp_file(self.make_blobs()?, &digest.hex())?;
        temp.write_all(bytes).map_err(|error| StoreError::from_write(&temp.path(), error))?;
        temp.commit()
    }

    /// Creates the file of a blob whose digest is not known before it is written. [`Store::commit_blob`] makes it a blob.
    ///
    /// The caller must hold a [`GcLease`](super::GcLease).
    pub fn create_blob(&self) -> Result<TempFile, StoreError> {
        self.temp_file(self.make_blobs()?, "new-blob")
    }

    /// Makes a file of [`Store::create_blob`] the locked blob. The caller has computed the digest of all bytes that it wrote.
    pub fn commit_blob(&self, mut file: TempFile, lock: &BlobLock) -> Result<(), StoreError> {
        file.rename_to(&lock.digest().hex());
        file.commit()
    }

    /// Reads a whole blob and checks its digest. Calls `progress` with the number of bytes of each read.
    pub fn verify_blob(&self, digest: &Digest, mut progress: impl FnMut(u64)) -> Result<(), StoreError> {
        let mut file = self.open_blob(digest)?;
        let path = self.blob_path(digest);
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).at("read", &path)? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    progress(count as u64);
                }
            }
        }
        match Digest::new(hash.finalize().into()) {
            actual if actual == *digest => Ok(()),
            actual => Err(damaged(digest, path, &actual)),
        }
    }

    /// Removes the locked blob, so that a damaged one can be fetched again. Returns whether it existed.
    pub fn discard_blob(&self, lock: &BlobLock) -> Result<bool, StoreError> {
        let Some(blobs) = self.blobs()? else { return Ok(false) };
        let removed = blobs.remove(&lock.digest().hex())?;
        blobs.sync()?;
        Ok(removed)
    }
}

fn damaged(digest: &Digest, path: std::path::PathBuf, actual: &Digest) -> StoreError {
    StoreError::Damaged { digest: *digest, path, reason: format!("its content has digest {actual}") }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tests::new_store;

    #[test]
    fn sixteen_threads_can_store_the_same_blob() {
        let (_dir, store) = new_store();
        let bytes = vec![7; 100_000];
        let digest = Digest::of(&bytes);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| store.put_small(&digest, &bytes))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        assert_eq!(store.read_small(&digest, 100_000).unwrap(), bytes);
        assert_eq!(fs::read_dir(store.path().join("rcx-imagefs/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn content_with_the_wrong_digest_is_not_stored() {
        let (_dir, store) = new_store();
        let expected = Digest::of(b"one");
        let error = store.put_small(&expected, b"two").unwrap_err();
        assert!(matches!(error, StoreError::DigestMismatch { actual, .. } if actual == Digest::of(b"two")));
        assert!(!store.has_blob(&expected, None).unwrap());
        assert!(matches!(store.open_blob(&expected), Err(StoreError::NoBlob { .. })));
    }

    #[test]
    fn damaged_blob_is_not_reported_as_missing_and_put_small_repairs_it() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        store.put_small(&digest, b"content").unwrap();
        assert!(store.has_blob(&digest, Some(7)).unwrap());
        fs::write(store.blob_path(&digest), b"contenT").unwrap();
        assert!(store.has_blob(&digest, Some(7)).unwrap());
        assert!(matches!(store.read_small(&digest, 100), Err(StoreError::Damaged { .. })));
        assert!(matches!(store.verify_blob(&digest, |_| ()), Err(StoreError::Damaged { .. })));
        fs::write(store.blob_path(&digest), b"cont").unwrap();
        assert!(matches!(store.has_blob(&digest, Some(7)), Err(StoreError::Damaged { .. })));
        store.put_small(&digest, b"content").unwrap();
        let mut read = 0;
        store.verify_blob(&digest, |more| read += more).unwrap();
        assert_eq!(read, 7);
    }

    #[test]
    fn damaged_blob_can_be_discarded() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        store.put_small(&digest, b"content").unwrap();
        let lock = store.lock_blob(&digest, None).unwrap();
        assert!(store.discard_blob(&lock).unwrap());
        assert!(!store.discard_blob(&lock).unwrap());
        assert!(!store.has_blob(&digest, None).unwrap());
    }

    #[test]
    fn blob_larger_than_the_limit_is_not_read() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        store.put_small(&digest, b"content").unwrap();
        assert!(matches!(store.read_small(&digest, 6), Err(StoreError::TooLarge { size: 7, limit: 6, .. })));
    }

    #[test]
    fn symlink_is_not_accepted_as_a_blob() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        std::os::unix::fs::symlink("/dev/zero", store.blob_path(&digest)).unwrap();
        assert!(matches!(store.open_blob(&digest), Err(StoreError::WrongFileType { .. })));
    }
}
