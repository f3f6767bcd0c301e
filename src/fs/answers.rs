//! The filesystem's answers other than attributes and bytes.

use super::{CacheCounters, InodeAttr};

/// The result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The name exists. The attributes hold until the name is invalidated.
    Found(InodeAttr),
    /// The name does not exist.
    Absent {
        /// Whether the kernel may cache this answer. Inside an image it may, because no name ever appears there. In the
        /// namespace, a pull may add the name at any time.
        cacheable: bool,
    },
}

/// One entry of a directory listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The offset at which the listing continues after this entry.
    pub next: u64,
    /// The attributes. Only `ino` and `kind` are valid unless `attr_complete` is set.
    pub attr: InodeAttr,
    /// Whether all of `attr` is valid, and holds until the name is invalidated.
    pub attr_complete: bool,
}

/// Totals for statfs(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Decoded bytes of all open layers.
    pub bytes: u64,
    /// Entries of all open layers.
    pub files: u64,
}

/// The state of the filesystem, as `status` prints it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct FsStatus {
    /// Number of images that have a name.
    pub published: usize,
    /// Paths of the open images in the mount; `None` for an image that has lost its last name.
    pub open: Vec<Option<String>>,
    /// Images that cannot be opened, with the reason.
    pub failed: Vec<String>,
    /// Number of open layers.
    pub layers: usize,
    /// The cache of decoded spans.
    pub cache: CacheCounters,
}
