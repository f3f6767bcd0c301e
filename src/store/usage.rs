//! The disk space that the files of a store take.

use std::collections::{BTreeMap, HashSet};

use super::Store;
use super::derived::{INDEX_SUFFIX, SEEKABLE_SUFFIX, TRACE_SUFFIX, TREE_SUFFIX};
use super::dir::Dir;
use super::error::StoreError;
use super::gc::partial_is_due;
use super::layout::Subdir;
use crate::image::Digest;

/// The files of a store, with their sizes in bytes.
#[derive(Debug, Clone, Default)]
pub struct StoreUsage {
    /// All blobs.
    pub blobs: BTreeMap<Digest, u64>,
    /// The files derived from each layer: its index, and its seekable form if it has one.
    pub derived: BTreeMap<Digest, u64>,
    /// The tree images and their traces, by the hex digits of their keys.
    pub trees: BTreeMap<String, u64>,
    /// The plain layers, with the disk space that they take: they have holes.
    pub plain: BTreeMap<Digest, u64>,
    /// Interrupted downloads, and whether `gc` removes each.
    pub downloads: Vec<(u64, bool)>,
    /// All blobs that an image refers to, whether or not the store has them.
    pub referenced: HashSet<Digest>,
    /// The tree images that images may have.
    pub referenced_trees: HashSet<String>,
}

impl Store {
    /// Returns the sizes of all files that belong to images or downloads.
    ///
    /// Takes no lock: while a pull runs, the blobs that it has stored count as unreferenced.
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        let marked = self.mark(&[], &mut Vec::new())?;
        let mut usage =
            StoreUsage { referenced: marked.blobs, referenced_trees: marked.trees, ..StoreUsage::default() };
        if let Some(dir) = self.blobs()? {
            each_file(&dir, |name, size| {
                usage.blobs.extend(Digest::from_hex(name).map(|digest| (digest, size)));
                Ok(())
            })?;
        }
        for (subdir, suffix) in [(Subdir::Indexes, INDEX_SUFFIX), (Subdir::Seekable, SEEKABLE_SUFFIX)] {
            let Some(dir) = self.subdir(subdir)? else { continue };
            each_file(&dir, |name, size| {
                if let Some(layer) = name.strip_suffix(suffix).and_then(Digest::from_hex) {
                    *usage.derived.entry(layer).or_default() += size;
                }
                Ok(())
            })?;
        }
        for (subdir, suffix) in [(Subdir::Trees, TREE_SUFFIX), (Subdir::Traces, TRACE_SUFFIX)] {
            let Some(dir) = self.subdir(subdir)? else { continue };
            each_file(&dir, |name, size| {
                if let Some(key) = name.strip_suffix(suffix) {
                    *usage.trees.entry(key.to_owned()).or_default() += size;
                }
                Ok(())
            })?;
        }
        usage.plain = self.plain_sizes()?;
        if let Some(dir) = self.subdir(Subdir::Partial)? {
            each_file(&dir, |name, size| {
                if let Some(digest) = Digest::from_hex(name) {
                    usage.downloads.push((size, partial_is_due(self, &dir, &digest)?));
                }
                Ok(())
            })?;
        }
        Ok(usage)
    }
}

fn each_file(dir: &Dir, mut each: impl FnMut(&str, u64) -> Result<(), StoreError>) -> Result<(), StoreError> {
    for name in dir.names()? {
        // Another process may have removed the file.
        if let Some(stat) = dir.stat(&name)? {
            each(&name, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
    }
    Ok(())
}
