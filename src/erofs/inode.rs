//! The inode of a node: its attributes, and the size of its record.

use super::format::{BLOCK, COMPACT_LEN, DataLayout, EXTENDED, EXTENDED_LEN, FileTypeByte, device_number};
use crate::index::{Entry, Index, IndexedKind};
use crate::layer::Timestamp;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME, NodeId, NodeSource, Tree};

/// The attributes of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeAttr<'a> {
    pub(super) file_type: FileTypeByte,
    mode: u16,
    uid: u32,
    gid: u32,
    pub(super) mtime: Timestamp,
    nlink: u32,
    /// The size of a regular file, or the length of a link's target. The size of a directory is that of its blocks.
    pub(super) size: u64,
    /// The target of a symlink.
    pub(super) target: &'a [u8],
    device: u32,
}

impl<'a> NodeAttr<'a> {
    pub(super) fn of<D: AsRef<[u8]>>(tree: &Tree, layers: &[&'a Index<D>], node: NodeId) -> Self {
        let nlink = tree.nlink(node);
        let implied = Self {
            file_type: FileTypeByte::Directory,
            mode: IMPLIED_MODE,
            uid: 0,
            gid: 0,
            mtime: IMPLIED_MTIME,
            nlink,
            size: 0,
            target: b"",
            device: 0,
        };
        let Some(entry) = entry_of(tree, layers, node) else { return implied };
        let mut attr =
            Self { mode: entry.mode(), uid: entry.uid(), gid: entry.gid(), mtime: entry.mtime(), ..implied };
        attr.file_type = match entry.kind() {
            IndexedKind::Directory => FileTypeByte::Directory,
            IndexedKind::Regular { size } => {
                attr.size = size;
                FileTypeByte::Regular
            }
            IndexedKind::Symlink { target } => {
                attr.size = target.len() as u64;
                attr.target = target;
                FileTypeByte::Symlink
            }
            IndexedKind::CharDevice { major, minor } => {
                attr.device = device_number(major, minor);
                FileTypeByte::CharDevice
            }
            IndexedKind::BlockDevice { major, minor } => {
                attr.device = device_number(major, minor);
                FileTypeByte::BlockDevice
            }
            IndexedKind::Fifo => FileTypeByte::Fifo,
            IndexedKind::Hardlink { .. } => unreachable!("a node is never a hard link"),
        };
        attr
    }

    /// Whether a compact inode can express the attributes, apart from the time.
    pub(super) fn is_small(&self) -> bool {
        let short = u32::from(u16::MAX);
        self.uid <= short && self.gid <= short && self.nlink <= short && u32::try_from(self.size).is_ok()
    }

    /// The first word of the inode's union `i_u` for devices.
    pub(super) fn device(&self) -> u32 {
        self.device
    }
}

/// The entry of a node; `None` for a directory that exists only because a path leads through it.
pub(super) fn entry_of<'a, D: AsRef<[u8]>>(
    tree: &Tree,
    layers: &[&'a Index<D>],
    node: NodeId,
) -> Option<Entry<'a>> {
    match tree.source(node) {
        NodeSource::Entry { layer, entry } => Some(layers[layer.index()].entry(entry)),
        NodeSource::Implied => None,
    }
}

/// An inode, ready to be written.
#[derive(Debug)]
pub(super) struct InodeRecord<'a> {
    pub(super) attr: &'a NodeAttr<'a>,
    /// The size of the content, that of directories included.
    pub(super) size: u64,
    /// Whether the inode has [`COMPACT_LEN`] bytes.
    pub(super) compact: bool,
    pub(super) layout: DataLayout,
    /// The union `i_u`: the first block, the device number, or the format of the chunks.
    pub(super) union: u32,
    /// The length of the xattr area.
    pub(super) xattrs_len: usize,
    /// The number of the inode.
    pub(super) number: u64,
}

impl InodeRecord<'_> {
    /// Appends the record to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let attr = self.attr;
        let format = (self.layout as u16) << 1 | if self.compact { 0 } else { EXTENDED };
        // Counts 4 bytes each, and 1 for the header of 12 bytes.
        let xattr_count = match self.xattrs_len {
            0 => 0,
            len => u16::try_from((len - 12) / 4 + 1).expect("the xattr area was limited"),
        };
        let mode = attr.file_type.mode_bits() | attr.mode;
        // Only 32-bit programs would see this number; the kernel takes the position instead.
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let number = self.number as u32;
        for word in [format, xattr_count, mode] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        if self.compact {
            let half = |value: u32| u16::try_from(value).expect("`is_small` was checked").to_le_bytes();
            out.extend_from_slice(&half(attr.nlink));
            out.extend_from_slice(&u32::try_from(self.size).expect("`is_small` was checked").to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&half(attr.uid));
            out.extend_from_slice(&half(attr.gid));
            out.extend_from_slice(&[0; 4]);
        } else {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&attr.uid.to_le_bytes());
            out.extend_from_slice(&attr.gid.to_le_bytes());
            out.extend_from_slice(&attr.mtime.sec.to_le_bytes());
            out.extend_from_slice(&attr.mtime.nsec.to_le_bytes());
            out.extend_from_slice(&attr.nlink.to_le_bytes());
            out.extend_from_slice(&[0; 16]);
        }
    }
}

/// The length of an inode without its xattrs.
pub(super) const fn inode_len(compact: bool) -> u64 {
    if compact { COMPACT_LEN as u64 } else { EXTENDED_LEN as u64 }
}

/// Where the content of a directory or a symlink goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaContent {
    /// The inode's position.
    pub(super) position: u64,
    /// The bytes that follow the inode and its xattrs.
    pub(super) tail: u64,
    /// The blocks in the data area.
    pub(super) blocks: u64,
}

impl MetaContent {
    /// Places an inode of `head` bytes (xattrs included) with `size` bytes of content at or after `position`.
    ///
    /// The tail of the content goes behind the inode where that costs less than a block of its own: it must not cross the
    /// border of a block (fs/erofs/data.c, `erofs_map_blocks`), so the inode may have to move.
    pub(super) fn place(position: u64, head: u64, size: u64, slot: u64) -> Self {
        let (full, tail) = (size / BLOCK, size % BLOCK);
        if tail != 0 {
            let mut at = position;
            while at - position + tail <= BLOCK {
                if (at + head) % BLOCK + tail <= BLOCK {
                    return Self { position: at, tail, blocks: full };
                }
                at += slot;
            }
        }
        Self { position, tail: 0, blocks: size.div_ceil(BLOCK) }
    }
}
