//! What is derived from one layer's blob: its index, and its spans where the blob itself cannot be read in the middle.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use super::Store;
use super::dir::Temp;
use super::error::StoreError;
use super::layout::Derived;
use crate::image::LayerDigest;

/// Name of a layer's index below `indexes`.
pub(super) const INDEX_SUFFIX: &str = ".idx";
/// Name of a layer's spans below `seekable`.
pub(super) const SEEKABLE_SUFFIX: &str = ".spans";

impl Store {
    /// Where a layer's index is, or would be: for messages.
    #[must_use]
    pub fn index_path(&self, layer: &LayerDigest) -> PathBuf {
        self.derived_path(Derived::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Puts a layer's index, in place of a former one. Processes that have that one mapped keep it.
    pub fn put_index(&self, layer: &LayerDigest, bytes: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp(self.derived(Derived::Indexes)?, &(layer.hex() + INDEX_SUFFIX))?;
        temp.write_all(bytes).map_err(|error| StoreError::from_write(&temp.path(), error))?;
        temp.commit()
    }

    /// Opens a layer's index; `None` where it has none, so that it has to be built from the blob.
    pub fn index_file(&self, layer: &LayerDigest) -> Result<Option<File>, StoreError> {
        self.derived_file(Derived::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Removes a layer's index: what to do with a damaged one. Tells whether it was there.
    pub fn remove_index(&self, layer: &LayerDigest) -> Result<bool, StoreError> {
        self.remove_derived(Derived::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Starts the seekable form of a layer; it is there once committed.
    pub fn create_seekable(&self, layer: &LayerDigest) -> Result<Temp, StoreError> {
        self.temp(self.derived(Derived::Seekable)?, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    /// Opens the seekable form of a layer; `None` where it has none.
    pub fn seekable_file(&self, layer: &LayerDigest) -> Result<Option<File>, StoreError> {
        self.derived_file(Derived::Seekable, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    /// Removes the seekable form of a layer. Tells whether it was there.
    pub fn remove_seekable(&self, layer: &LayerDigest) -> Result<bool, StoreError> {
        self.remove_derived(Derived::Seekable, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    fn derived_file(&self, derived: Derived, name: &str) -> Result<Option<File>, StoreError> {
        match self.existing(derived)? {
            Some(dir) => dir.file(name),
            None => Ok(None),
        }
    }

    fn remove_derived(&self, derived: Derived, name: &str) -> Result<bool, StoreError> {
        match self.existing(derived)? {
            Some(dir) => dir.remove(name),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;
    use crate::image::Digest;
    use crate::store::tests::new_store;

    fn bytes(file: Option<File>) -> Option<Vec<u8>> {
        file.map(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }

    #[test]
    fn an_index_is_replaced_whole_and_open_ones_stay_readable() {
        let (_dir, store) = new_store();
        let layer = LayerDigest::new(Digest::of(b"layer"));
        assert!(store.index_file(&layer).unwrap().is_none());
        store.put_index(&layer, b"first").unwrap();
        let old = store.index_file(&layer).unwrap();
        store.put_index(&layer, b"second").unwrap();
        assert_eq!(bytes(old).unwrap(), b"first");
        assert_eq!(fs::read(store.index_path(&layer)).unwrap(), b"second");
        assert!(store.remove_index(&layer).unwrap());
        assert!(!store.remove_index(&layer).unwrap());
    }

    #[test]
    fn a_seekable_form_appears_with_its_commit_only() {
        let (_dir, store) = new_store();
        let layer = LayerDigest::new(Digest::of(b"layer"));
        store.create_seekable(&layer).unwrap().write_all(b"given up").unwrap();
        assert!(store.seekable_file(&layer).unwrap().is_none());
        let mut temp = store.create_seekable(&layer).unwrap();
        temp.write_all(b"spans").unwrap();
        assert!(store.seekable_file(&layer).unwrap().is_none());
        temp.commit().unwrap();
        assert_eq!(bytes(store.seekable_file(&layer).unwrap()).unwrap(), b"spans");
        assert!(store.remove_seekable(&layer).unwrap());
    }

    #[test]
    fn the_derived_directory_can_be_deleted_at_any_time() {
        let (_dir, store) = new_store();
        let layer = LayerDigest::new(Digest::of(b"layer"));
        store.put_index(&layer, b"first").unwrap();
        fs::remove_dir_all(store.path().join("rcx-imagefs")).unwrap();
        assert!(store.index_file(&layer).unwrap().is_none());
        assert!(!store.remove_index(&layer).unwrap());
        store.put_index(&layer, b"second").unwrap();
        assert!(store.index_file(&layer).unwrap().is_some());
        Store::open(store.path()).unwrap();
    }
}
