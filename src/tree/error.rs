//! Errors from merging the layers of an image.

use super::LayerNo;
use crate::error::ErrorCode;
use crate::image::LayerDigest;
use crate::layer::{Printable, TarOffset};

/// Maximum number of symlinks in one path (`MAXSYMLINKS`, linux/namei.h).
pub const MAX_LINKS: usize = 40;

/// Longest name in bytes (`NAME_MAX`). The tar walk has checked the names of entries, but not the
/// components of symlink targets.
pub(super) const MAX_NAME: usize = 255;

/// The reason why the layers of an image cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "layer {layer}: {} `{}`: {fault} (in {digest}{})",
    if *.marker { "marker for" } else { "entry" },
    Printable(.path),
    .at.map_or(String::new(), |at| format!(", at byte {at} of the tar"))
)]
pub struct MergeError {
    /// The layer that cannot be applied.
    pub layer: LayerNo,
    /// The digest of its blob.
    pub digest: LayerDigest,
    /// The offset of the entry's header; `None` for markers, for which the index does not record it.
    pub at: Option<TarOffset>,
    /// The path of the entry, or the path that the marker hides.
    pub path: Box<[u8]>,
    /// Whether `path` belongs to a marker.
    pub marker: bool,
    /// The rule that the entry or marker violates.
    pub fault: MergeFault,
}

impl MergeError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self.fault {
            MergeFault::Loop
            | MergeFault::NotADirectory
            | MergeFault::LongName(_)
            | MergeFault::NoTarget(_)
            | MergeFault::DirectoryTarget(_) => ErrorCode::Merge,
            MergeFault::TooMany(_) => ErrorCode::LayerLimit,
        }
    }
}

/// The reason why an entry or marker cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeFault {
    /// The path leads through more than [`MAX_LINKS`] symlinks, or into a symlink loop.
    #[error("too many symbolic links in its path")]
    Loop,
    /// A component before the last is neither a directory nor a symlink to one.
    #[error("its parent is not a directory")]
    NotADirectory,
    /// The target of a symlink is missing and cannot be created, because one of its components is too long.
    #[error("a symbolic link in its path has a component of {0} bytes (at most {MAX_NAME})")]
    LongName(usize),
    /// The target of a hard link is missing, comes later, was removed by this layer, or is the link itself.
    #[error("hard link to `{}`, which does not exist", Printable(.0))]
    NoTarget(Box<[u8]>),
    /// The target of a hard link is a directory.
    #[error("hard link to `{}`, which is a directory", Printable(.0))]
    DirectoryTarget(Box<[u8]>),
    /// The image has more layers, nodes or names than the limit.
    #[error("too many {0}")]
    TooMany(&'static str),
}
