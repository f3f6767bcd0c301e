//! The attributes of a file, whether it is on disk or in an image.

use crate::index::IndexedKind;
use crate::layer::Timestamp;
use crate::pipeline::OpenImage;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME, NodeId};

/// The kind of a file, with what only this kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootFileKind {
    Directory,
    Regular { size: u64 },
    Symlink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// A file without its name and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RootFile {
    pub(super) kind: RootFileKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// Sorted by name, without those that are never part of a layer ([`is_kept`]).
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Returns whether layers have extended attributes of this name. Overlayfs keeps its state in some, and the kernel sets the label of
/// SELinux by itself.
pub(super) fn is_kept(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && name != b"security.selinux"
}

impl RootFile {
    /// The attributes of a directory that no layer has an entry for.
    pub(super) fn implied() -> Self {
        let (kind, mode, mtime) = (RootFileKind::Directory, IMPLIED_MODE, IMPLIED_MTIME);
        Self { kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
    }

    /// Returns the attributes of a node of an image.
    pub(super) fn of_node(image: &OpenImage, node: NodeId) -> Self {
        let Some(entry) = image.entry(node) else { return Self::implied() };
        let kind = match entry.kind() {
            IndexedKind::Directory => RootFileKind::Directory,
            IndexedKind::Regular { size } => RootFileKind::Regular { size },
            IndexedKind::Symlink { target } => RootFileKind::Symlink { target: target.to_vec() },
            IndexedKind::CharDevice { major, minor } => RootFileKind::CharDevice { major, minor },
            IndexedKind::BlockDevice { major, minor } => RootFileKind::BlockDevice { major, minor },
            IndexedKind::Fifo => RootFileKind::Fifo,
            IndexedKind::Hardlink { .. } => unreachable!("the source of a node is never a hard link"),
        };
        let xattrs = entry.xattrs().filter(|(name, _)| is_kept(name));
        let mut xattrs: Vec<_> = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        xattrs.sort_unstable();
        let (mode, uid, gid, mtime) = (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        Self { kind, mode, uid, gid, mtime, xattrs }
    }

    /// Returns the parts in which two files differ, except for contents of the same length:
    /// those of [`PathDifference`](crate::unpack::PathDifference).
    pub(super) fn different_parts(&self, other: &Self) -> Vec<&'static str> {
        use RootFileKind as K;
        if std::mem::discriminant(&self.kind) != std::mem::discriminant(&other.kind) {
            return vec!["type"];
        }
        let mut parts = Vec::new();
        // A symlink has no mode of its own.
        if self.mode != other.mode && !matches!(self.kind, K::Symlink { .. }) {
            parts.push("mode");
        }
        if (self.uid, self.gid) != (other.uid, other.gid) {
            parts.push("owner");
        }
        if self.kind != other.kind {
            parts.push(match self.kind {
                K::Symlink { .. } => "target",
                K::CharDevice { .. } | K::BlockDevice { .. } => "device",
                _ => "content",
            });
        }
        if self.xattrs != other.xattrs {
            parts.push("xattrs");
        }
        if self.mtime != other.mtime {
            parts.push("time");
        }
        parts
    }
}
