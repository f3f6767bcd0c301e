//! What the filesystem answers, but for attributes and bytes.

use super::{CacheCounters, InodeAttr};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// This, for as long as the name is not invalidated.
    Found(InodeAttr),
    /// Nothing. `lasting`: it will never be anything, so that the answer may be cached.
    Absent {
        /// Whether the answer may be cached.
        lasting: bool,
    },
}

/// One name of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Where the listing goes on behind this name.
    pub next: u64,
    /// What it stands for. Unless `attr_lasts`, number and kind are right and the others made up.
    pub attr: InodeAttr,
    /// Whether `attr` holds for as long as the name is not invalidated.
    pub attr_lasts: bool,
}

/// Figures for `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes of all layers that are open, decoded.
    pub bytes: u64,
    /// Entries of all layers that are open.
    pub files: u64,
}

/// What the filesystem holds, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FsStatus {
    /// Images that have a name.
    pub published: usize,
    /// Images that are open, by their paths in the mount (`None`: their last name has gone).
    pub open: Vec<Option<String>>,
    /// Images that could not be opened, with the reason.
    pub failed: Vec<String>,
    /// Layers that are open.
    pub layers: usize,
    /// The cache of decoded spans.
    pub cache: CacheCounters,
}
