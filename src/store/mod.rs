//! The store on disk: an OCI image layout, with the data derived from its blobs beside it.
//!
//! ```text
//! DIR/oci-layout  DIR/index.json  DIR/blobs/sha256/HEX     the layout: skopeo, umoci and buildah can read it
//! DIR/rcx-imagefs/version           format version of this directory
//!                 indexes/HEX.idx   index of a layer       seekable/HEX.spans  spans of a layer with no seekable blob
//!                 plain/HEX.plain   decoded layers, which the kernel reads without the daemon
//!                 slots             numbers of layers and images, for inode numbers
//!                 daemon            describes the daemon that serves the store
//!                 partial/HEX       unfinished downloads   tmp/  unfinished files           locks/  lock files
//! ```
//!
//! Everything below `rcx-imagefs` can be deleted while no process uses the store. It is rebuilt on demand.
//!
//! **Crashes.** Each change is one rename or link of a file that is already synced to disk (`dir.rs`), so a crash at any
//! moment leaves a valid store. Only `slots` grows in place; each of its lines has a checksum.
//!
//! **Locks.** All locks between processes are flock(2) locks, most of them on files below `locks/`. The kernel releases them
//! when the holder dies. Lock order: a [`GcLease`], then a [`BlobLock`], then the lock of `index.json` or of `slots` (taken and
//! released within one call of this module). A thread must not wait for a [`BlobLock`] while it holds another one: two images
//! may list the same layers in opposite orders. The holder of a [`PlainLock`] may wait for a [`BlobLock`], so the holder of a
//! [`BlobLock`] must not wait for a [`PlainLock`]. All functions here block; async code must call them from a blocking thread.
//!
//! **Permissions.** Only its owner may read a store, and perhaps a group (`access.rs`): the mode of the store's directory
//! decides that. Below it, directories are 0755 and files 0644, whatever the umask. `tmp` and `partial` are 0700 because their
//! content is not verified yet, `plain` because
//! its files hold what upper layers hide, and `locks` because any process that can open a lock file can block others. Reading needs
//! no write permission. A store is opened once and used through descriptors (`dir.rs`).

mod access;
mod blobs;
mod daemon;
mod derived;
mod dir;
mod error;
mod gc;
mod index_json;
mod layout;
mod locks;
mod mark;
mod partial;
mod plain;
mod refs;
mod reserve;
mod slots;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use access::ModeChange;
pub use daemon::{DaemonInfo, DaemonLock};
pub use dir::TempFile;
pub use error::StoreError;
pub use gc::{GcOptions, GcReport};
pub use locks::{BlobLock, GcLease};
pub use partial::PartialBlob;
pub use plain::{PlainDraft, PlainLock, PlainRoom};
pub use refs::{ImageRecord, Refs, UntagResult};
pub use slots::Slot;
pub use usage::StoreUsage;

use crate::image::Digest;
use crate::index::LayerLimits;
use crate::os::AtPath as _;

/// A store. Cheap to clone; clones share the slots read so far.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<SharedStore>,
    /// Limits for each layer that is decoded to build or rebuild its index.
    layer_limits: LayerLimits,
    /// The disk space for plain layers, in bytes; `None` for the default.
    plain_budget: Option<u64>,
}

#[derive(Debug)]
struct SharedStore {
    /// Absolute, so that a later change of the working directory has no effect. Used for messages and by other modules.
    path: PathBuf,
    root: dir::Dir,
    /// Lock order: before the lock of the `slots` file.
    slots: Mutex<slots::SlotTable>,
}

impl Store {
    /// The store at an absolute path that has been opened and checked.
    fn at(path: PathBuf, root: dir::Dir) -> Self {
        let shared = SharedStore { path, root, slots: Mutex::default() };
        Self { shared: Arc::new(shared), layer_limits: LayerLimits::default(), plain_budget: None }
    }

    /// The format of stores that this program reads and writes.
    pub const FORMAT: &str = layout::VERSION;

    /// The store's directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Returns the same store with other limits for layers. They apply when a layer is decoded to build its index, not to layers
    /// that have an index already.
    #[must_use]
    pub fn with_layer_limits(self, layer_limits: LayerLimits) -> Self {
        Self { layer_limits, ..self }
    }

    /// Returns the same store with another limit for the disk space of all plain layers, in bytes.
    #[must_use]
    pub fn with_plain_budget(self, plain_budget: Option<u64>) -> Self {
        Self { plain_budget, ..self }
    }

    /// The limits for layers that are decoded into this store.
    #[must_use]
    pub fn layer_limits(&self) -> LayerLimits {
        self.layer_limits
    }

    /// The path of `index.json`, which is replaced whenever images or tags change.
    ///
    /// Each change renames a new file over the old one, so a watcher must watch the directory for `IN_MOVED_TO`.
    #[must_use]
    pub fn index_json_path(&self) -> PathBuf {
        self.path().join(layout::INDEX_JSON)
    }

    /// The path of a blob's file, whether or not it exists.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join(layout::BLOBS).join(layout::SHA256).join(digest.hex())
    }

    /// Bytes that an unprivileged process can still write to the store's filesystem.
    pub fn free_space(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::fstatvfs(self.root()).at("determine the free space of", self.path())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Fails if less than `needed` bytes are free. Call it before a download, so that a full disk is reported early.
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

    /// A new store in a temporary directory, which is removed when the first value is dropped.
    pub(super) fn new_store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn lack_of_space_is_reported_with_needed_and_free_bytes() {
        let (_dir, store) = new_store();
        store.require_space(1).unwrap();
        let error = store.require_space(u64::MAX).unwrap_err();
        assert!(matches!(error, StoreError::NoSpace { needed: u64::MAX, free, .. } if free > 0));
    }
}
