//! Blobs: files named by the digest of their content, put only when that has been checked.

use std::fs::File;
use std::io::{Read as _, Write as _};

use sha2::Digest as _;

use super::Store;
use super::dir::read_bounded;
use super::error::{At as _, StoreError};
use super::locks::BlobLock;
use crate::image::Digest;

impl Store {
    /// Whether a blob is there. Where `size` is given and the file has another one, it is [`StoreError::Damaged`].
    ///
    /// The content is not read: [`Store::verify_blob`] does that.
    pub fn has_blob(&self, digest: &Digest, size: Option<u64>) -> Result<bool, StoreError> {
        match self.open_blob(digest) {
            Err(StoreError::NoBlob { .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(file) => {
                let path = self.blob_path(digest);
                let got = file.metadata().at("stat", &path)?.len();
                match size {
                    Some(wanted) if wanted != got => {
                        let reason = format!("it has {got} bytes instead of {wanted}");
                        Err(StoreError::Damaged { digest: *digest, path, reason })
                    }
                    _ => Ok(true),
                }
            }
        }
    }

    /// Opens a blob for reading; [`StoreError::NoBlob`] where it is missing.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let file = match self.blobs()? {
            Some(blobs) => blobs.file(&digest.hex())?,
            None => None,
        };
        file.ok_or(StoreError::NoBlob { digest: *digest })
    }

    /// Length of a blob's file in bytes.
    pub fn blob_size(&self, digest: &Digest) -> Result<u64, StoreError> {
        let metadata = self.open_blob(digest)?.metadata();
        Ok(metadata.at("stat", &self.blob_path(digest))?.len())
    }

    /// Reads a document of at most `limit` bytes, and checks its digest.
    pub fn read_small(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = read_bounded(&self.open_blob(digest)?, &path, limit)?;
        match Digest::of(&bytes) {
            got if got == *digest => Ok(bytes),
            got => Err(damaged(digest, path, &got)),
        }
    }

    /// Puts a document that is in memory, after checking its digest. Does nothing where it is there already, whole.
    ///
    /// The caller holds a [`Lease`](super::Lease); a [`BlobLock`] is not needed.
    pub fn put_small(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let got = Digest::of(bytes);
        if got != *digest {
            return Err(StoreError::DigestMismatch { wanted: *digest, got });
        }
        match self.read_small(digest, bytes.len() as u64) {
            Ok(_) => return Ok(()),
            // A damaged file is put right; any other trouble comes up again below.
            Err(error) => tracing::trace!("{digest} is put: {error}"),
        }
        let mut temp = self.temp(self.make_blobs()?, &digest.hex())?;
        temp.write_all(bytes).map_err(|error| StoreError::from_write(&temp.path(), error))?;
        temp.commit()
    }

    /// Reads a whole blob and compares its digest; `progress` is told how many more bytes were read.
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
            got if got == *digest => Ok(()),
            got => Err(damaged(digest, path, &got)),
        }
    }

    /// Removes the locked blob, so that it can be fetched anew: what to do with a damaged one. Tells whether it was there.
    pub fn discard_blob(&self, lock: &BlobLock) -> Result<bool, StoreError> {
        let Some(blobs) = self.blobs()? else { return Ok(false) };
        let removed = blobs.remove(&lock.digest().hex())?;
        blobs.sync()?;
        Ok(removed)
    }
}

fn damaged(digest: &Digest, path: std::path::PathBuf, got: &Digest) -> StoreError {
    StoreError::Damaged { digest: *digest, path, reason: format!("its content has digest {got}") }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tests::new_store;

    #[test]
    fn sixteen_threads_put_one_blob_at_once() {
        let (_dir, store) = new_store();
        let bytes = vec![7; 100_000];
        let digest = Digest::of(&bytes);
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..16).map(|_| scope.spawn(|| store.put_small(&digest, &bytes))).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert_eq!(store.read_small(&digest, 100_000).unwrap(), bytes);
        assert_eq!(fs::read_dir(store.path().join("rcx-imagefs/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn bytes_of_another_digest_are_not_put() {
        let (_dir, store) = new_store();
        let wanted = Digest::of(b"one");
        let error = store.put_small(&wanted, b"two").unwrap_err();
        assert!(matches!(error, StoreError::DigestMismatch { got, .. } if got == Digest::of(b"two")));
        assert!(!store.has_blob(&wanted, None).unwrap());
        assert!(matches!(store.open_blob(&wanted), Err(StoreError::NoBlob { .. })));
    }

    #[test]
    fn damage_is_told_apart_from_absence_and_put_right() {
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
    fn a_damaged_blob_can_be_discarded() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        store.put_small(&digest, b"content").unwrap();
        let lock = store.lock_blob(&digest, None).unwrap();
        assert!(store.discard_blob(&lock).unwrap());
        assert!(!store.discard_blob(&lock).unwrap());
        assert!(!store.has_blob(&digest, None).unwrap());
    }

    #[test]
    fn a_document_beyond_the_limit_is_not_read() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        store.put_small(&digest, b"content").unwrap();
        assert!(matches!(store.read_small(&digest, 6), Err(StoreError::TooLarge { size: 7, limit: 6, .. })));
    }

    #[test]
    fn a_symlink_is_not_a_blob() {
        let (_dir, store) = new_store();
        let digest = Digest::of(b"content");
        std::os::unix::fs::symlink("/dev/zero", store.blob_path(&digest)).unwrap();
        assert!(matches!(store.open_blob(&digest), Err(StoreError::NotPlain { .. })));
    }
}
