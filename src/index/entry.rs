//! One entry of a layer, as its index tells it.

use super::format::TAR_BLOCK;
use super::records::{EntryAttr, u16_at, u32_at};
use crate::layer::{TarOffset, Timestamp};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexedKind<'a> {
    /// Directory.
    Directory,
    /// Regular file.
    Regular {
        /// Its length in bytes.
        size: u64,
    },
    /// Symbolic link.
    Symlink {
        /// What it points to, as it stands in the tar.
        target: &'a [u8],
    },
    /// One more name for another entry.
    Hardlink {
        /// Normalised path of the other name.
        target: &'a [u8],
    },
    /// Character device.
    CharDevice {
        /// Driver number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Driver number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

/// One entry of a layer, as its index tells it.
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
    /// Path of the directory it stands in, normalised; empty for the root.
    #[must_use]
    pub fn dir(&self) -> &'a [u8] {
        self.dir
    }

    /// Last component of its path; empty for the root directory itself.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Its whole path, normalised.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        if self.dir.is_empty() { self.name.to_vec() } else { [self.dir, b"/", self.name].concat() }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> IndexedKind<'a> {
        self.kind
    }

    /// Permission bits with set-uid, set-gid and sticky: 0 to 07777.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.attr.mode
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.attr.uid
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.attr.gid
    }

    /// Time of the last change of content.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.attr.mtime
    }

    /// Extended attributes as (name, value), names ascending.
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

    /// Where its header starts in the tar (the last one, behind PAX and GNU extension headers).
    #[must_use]
    pub fn offset(&self) -> TarOffset {
        TarOffset::new(self.header)
    }

    /// Where its content starts in the tar, if it is in one piece right behind the header.
    pub(super) fn content_start(&self) -> u64 {
        self.header + TAR_BLOCK
    }

    /// Ordinal of its extent record, where it has one.
    pub(super) fn extent(&self) -> Option<u32> {
        self.extent
    }
}
