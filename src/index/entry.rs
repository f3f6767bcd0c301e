//! The entries of a layer, as read from its index.

use super::format::TAR_BLOCK;
use super::records::{EntryAttr, u16_at, u32_at};
use crate::layer::{TarOffset, Timestamp};

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexedKind<'a> {
    /// Directory.
    Directory,
    /// Regular file.
    Regular {
        /// The length in bytes.
        size: u64,
    },
    /// Symbolic link.
    Symlink {
        /// The target, unchanged from the tar.
        target: &'a [u8],
    },
    /// Hard link to an earlier entry.
    Hardlink {
        /// The normalized path of the earlier entry.
        target: &'a [u8],
    },
    /// Character device.
    CharDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

/// An entry of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub(super) dir: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) kind: IndexedKind<'a>,
    pub(super) attr: EntryAttr,
    pub(super) set: &'a [u8],
    pub(super) header: u64,
    pub(super) extent: Option<u32>,
}

impl<'a> Entry<'a> {
    /// The normalized path of the parent directory; empty for the root.
    #[must_use]
    pub fn dir(&self) -> &'a [u8] {
        self.dir
    }

    /// The last component of the path; empty for the root directory itself.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// The whole path, normalized.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        if self.dir.is_empty() { self.name.to_vec() } else { [self.dir, b"/", self.name].concat() }
    }

    /// The kind of the entry.
    #[must_use]
    pub fn kind(&self) -> IndexedKind<'a> {
        self.kind
    }

    /// The permission bits with set-uid, set-gid and sticky: 0 to 07777.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.attr.mode
    }

    /// The user ID of the owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.attr.uid
    }

    /// The group ID.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.attr.gid
    }

    /// The time of the last modification.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.attr.mtime
    }

    /// Extended attributes as (name, value), sorted by name.
    #[must_use = "iterators are lazy"]
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.set;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(2)?;
            let (name, tail) = tail.split_at(u16_at(head, 0).into());
            let (head, tail) = tail.split_at(4);
            let (value, tail) = tail.split_at(u32_at(head, 0) as usize);
            rest = tail;
            Some((name, value))
        })
    }

    /// The offset of the entry's header in the tar (the last header, after PAX and GNU extension headers).
    #[must_use]
    pub fn offset(&self) -> TarOffset {
        TarOffset::new(self.header)
    }

    /// The offset of the entry's content in the tar, if the content is in one piece right after the header.
    pub(super) fn content_start(&self) -> u64 {
        self.header + TAR_BLOCK
    }

    /// The ordinal of the entry's extent record, if it has one.
    pub(super) fn extent(&self) -> Option<u32> {
        self.extent
    }
}
