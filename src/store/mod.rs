//! The store on disk: an OCI image layout, and beside it what is derived from its blobs.
//!
//! ```text
//! DIR/oci-layout  DIR/index.json  DIR/blobs/sha256/HEX     the layout: skopeo, umoci and buildah read it as it is
//! DIR/rcx-imagefs/version           format of this directory
//!                 indexes/HEX.idx   index of a layer       seekable/HEX.spans  spans of a layer that its blob lacks
//!                 slots             numbers of layers and images, for inode numbers
//!                 daemon            which daemon serves the store (locked while it lives)
//!                 partial/HEX       downloads begun        tmp/  files being written        locks/  lock files
//! ```
//!
//! Everything below `rcx-imagefs` can be deleted while no process uses the store: it is made again when it is needed.
//!
//! **Crashes.** Each change is one rename or link of a file that is on disk already (`dir.rs`), so every moment's state is
//! one that the next command takes. Only `slots` grows in place, and says itself which of its lines are whole.
//!
//! **Processes.** All locks are flock(2) locks on files below `locks/`: the kernel lets them go when the holder dies.
//! Order, where several are held: a [`Lease`], then a [`BlobLock`], then the lock of `index.json` or of `slots` (which
//! functions of this module take and let go within one call). A thread that waits for a [`BlobLock`] holds no other: two
//! images may name the same layers in opposite orders. Everything here blocks; async code calls it from a blocking thread.
//!
//! **Permissions.** Directories are 0755 and files 0644 (less the umask), as other tools make layouts; `tmp`, `partial` and
//! `locks` are 0700: what is in the first two is not verified yet, and who can open a lock file can block others.
//! Reading needs no write permission.

mod blobs;
mod derived;
mod dir;
mod error;
mod gc;
mod index_json;
mod layout;
mod locks;
mod partial;
mod refs;
mod slots;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use dir::Temp;
pub use error::StoreError;
pub use gc::GcReport;
pub use locks::{BlobLock, DaemonInfo, DaemonLock, Lease};
pub use partial::Partial;
pub use refs::{ImageRecord, Refs, Untagged};
pub use slots::Slot;

use crate::image::Digest;
use crate::index::LayerLimits;

/// A store. Cheap to clone; clones share what has been read of the slots.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// What layers may come to that are decoded into this store, first or once more.
    layer_limits: LayerLimits,
}

#[derive(Debug)]
struct Inner {
    /// Absolute, so that a later change of the working directory does not matter.
    path: PathBuf,
    /// Taken before the lock of the `slots` file.
    slots: Mutex<slots::Table>,
}

impl Store {
    /// The store's directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The same store with other limits for layers. They hold where a layer is decoded for its index, not for layers that
    /// have one.
    #[must_use]
    pub fn with_layer_limits(self, layer_limits: LayerLimits) -> Self {
        Self { layer_limits, ..self }
    }

    /// What layers may come to.
    #[must_use]
    pub fn layer_limits(&self) -> LayerLimits {
        self.layer_limits
    }

    /// The file whose replacement tells that images or tags have changed.
    ///
    /// Each change renames a new file over it, so it is the directory that has to be watched, for names that move in.
    #[must_use]
    pub fn index_json_path(&self) -> PathBuf {
        self.path().join(layout::INDEX_JSON)
    }

    /// Where a blob's file is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join(layout::BLOBS).join(layout::SHA256).join(digest.hex())
    }

    /// Bytes that may still be written to the store's file system by an unprivileged process.
    pub fn free_space(&self) -> Result<u64, StoreError> {
        use error::At as _;
        let stat = rustix::fs::statvfs(self.path()).at("ask for free space", self.path())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Asks for `needed` free bytes: called before a download, so that a full disk is told before and not after it.
    pub fn require_space(&self, needed: u64) -> Result<(), StoreError> {
        match self.free_space()? {
            free if free < needed => Err(StoreError::NoSpace { path: self.path().to_owned(), needed, free }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new store in a directory that goes away with the first part.
    pub(super) fn new_store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn missing_space_is_told_with_both_numbers() {
        let (_dir, store) = new_store();
        store.require_space(1).unwrap();
        let error = store.require_space(u64::MAX).unwrap_err();
        assert!(matches!(error, StoreError::NoSpace { needed: u64::MAX, free, .. } if free > 0));
    }
}
