//! Files derived from blobs: the index of a layer, its seekable form if the blob cannot be decoded from the middle, and the tree
//! image of an image's layers. Beside it is the trace of the runs of such images.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use super::Store;
use super::dir::TempFile;
use super::error::StoreError;
use super::layout::Subdir;
use crate::image::{LayerDigest, TreeKey};
use crate::os::AtPath as _;

/// File name suffix of a layer's index, in `indexes`.
pub(super) const INDEX_SUFFIX: &str = ".idx";
/// File name suffix of a layer's seekable form, in `seekable`.
pub(super) const SEEKABLE_SUFFIX: &str = ".spans";
/// File name suffix of a tree image, in `trees`.
pub(super) const TREE_SUFFIX: &str = ".erofs";
/// File name suffix of a trace, in `traces`.
pub(super) const TRACE_SUFFIX: &str = ".json";
/// The longest trace that is read, in bytes.
const TRACE_MAX: u64 = 4 << 20;

impl Store {
    /// The path of a layer's index, whether or not it exists. Used only in messages.
    #[must_use]
    pub fn index_path(&self, layer: &LayerDigest) -> PathBuf {
        self.path_in(Subdir::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Stores a layer's index, replacing an older one. Processes that have the older one mapped keep it.
    pub fn put_index(&self, layer: &LayerDigest, bytes: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp_file(self.make_subdir(Subdir::Indexes)?, &(layer.hex() + INDEX_SUFFIX))?;
        temp.write_all(bytes).map_err(|error| StoreError::from_write(&temp.path(), error))?;
        temp.commit()
    }

    /// Opens a layer's index; `None` if it is missing and must be built from the blob.
    pub fn index_file(&self, layer: &LayerDigest) -> Result<Option<File>, StoreError> {
        self.derived_file(Subdir::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Removes a layer's index, so that a damaged one can be rebuilt. Returns whether it existed.
    pub fn remove_index(&self, layer: &LayerDigest) -> Result<bool, StoreError> {
        self.remove_derived(Subdir::Indexes, &(layer.hex() + INDEX_SUFFIX))
    }

    /// Creates the file for the seekable form of a layer. [`Store::seekable_file`] returns it once it is committed.
    pub fn create_seekable(&self, layer: &LayerDigest) -> Result<TempFile, StoreError> {
        self.temp_file(self.make_subdir(Subdir::Seekable)?, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    /// Opens the seekable form of a layer; `None` if it is missing.
    pub fn seekable_file(&self, layer: &LayerDigest) -> Result<Option<File>, StoreError> {
        self.derived_file(Subdir::Seekable, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    /// Removes the seekable form of a layer. Returns whether it existed.
    pub fn remove_seekable(&self, layer: &LayerDigest) -> Result<bool, StoreError> {
        self.remove_derived(Subdir::Seekable, &(layer.hex() + SEEKABLE_SUFFIX))
    }

    /// Creates the file for a tree image. [`Store::tree_file`] returns it once it is committed.
    pub fn create_tree(&self, key: &TreeKey) -> Result<TempFile, StoreError> {
        self.temp_file(self.make_subdir(Subdir::Trees)?, &(key.hex() + TREE_SUFFIX))
    }

    /// Opens a tree image; `None` if it is missing.
    pub fn tree_file(&self, key: &TreeKey) -> Result<Option<File>, StoreError> {
        self.derived_file(Subdir::Trees, &(key.hex() + TREE_SUFFIX))
    }

    /// Reads the trace of the images with these layers; `None` if there is none. One that is too long to be ours counts as none.
    pub fn trace(&self, key: &TreeKey) -> Result<Option<Vec<u8>>, StoreError> {
        let name = key.hex() + TRACE_SUFFIX;
        let Some(file) = self.derived_file(Subdir::Traces, &name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(TRACE_MAX + 1).read_to_end(&mut bytes);
        read.at("read", &self.path_in(Subdir::Traces, &name))?;
        Ok((bytes.len() as u64 <= TRACE_MAX).then_some(bytes))
    }

    /// Stores a trace, replacing an older one.
    pub fn put_trace(&self, key: &TreeKey, bytes: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp_file(self.make_subdir(Subdir::Traces)?, &(key.hex() + TRACE_SUFFIX))?;
        temp.write_all(bytes).map_err(|error| StoreError::from_write(&temp.path(), error))?;
        temp.commit()
    }

    fn derived_file(&self, subdir: Subdir, name: &str) -> Result<Option<File>, StoreError> {
        match self.subdir(subdir)? {
            Some(dir) => dir.file(name),
            None => Ok(None),
        }
    }

    fn remove_derived(&self, subdir: Subdir, name: &str) -> Result<bool, StoreError> {
        match self.subdir(subdir)? {
            Some(dir) => dir.remove(name),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
    fn replaced_index_stays_readable_where_it_is_open() {
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
    fn seekable_form_is_visible_only_after_its_commit() {
        let (_dir, store) = new_store();
        let layer = LayerDigest::new(Digest::of(b"layer"));
        store.create_seekable(&layer).unwrap().write_all(b"abandoned").unwrap();
        assert!(store.seekable_file(&layer).unwrap().is_none());
        let mut temp = store.create_seekable(&layer).unwrap();
        temp.write_all(b"spans").unwrap();
        assert!(store.seekable_file(&layer).unwrap().is_none());
        temp.commit().unwrap();
        assert_eq!(bytes(store.seekable_file(&layer).unwrap()).unwrap(), b"spans");
        assert!(store.remove_seekable(&layer).unwrap());
    }

    #[test]
    fn derived_files_can_be_deleted_at_any_time() {
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
