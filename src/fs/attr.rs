//! Attributes of inodes.

use super::Ino;
use crate::index::{Entry, IndexedKind};
use crate::layer::Timestamp;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME};

/// The attributes of an inode, as stat(2) shows them. Access and change time equal the modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeAttr {
    /// Inode number.
    pub ino: Ino,
    /// File type.
    pub kind: FileKind,
    /// Permission bits including set-uid, set-gid and sticky: 0 to 07777.
    pub mode: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; for a symlink, the length of its target.
    pub size: u64,
    /// Allocated blocks of 512 bytes. Holes are not counted.
    pub blocks: u64,
    /// Device number in the kernel's 32-bit form; 0 if this is not a device.
    pub rdev: u32,
    /// Modification time.
    pub mtime: Timestamp,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Directory.
    Directory,
    /// Regular file.
    Regular,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

/// 1970-01-01, for inodes whose time no layer defines.
pub(super) const NO_TIME: Timestamp = Timestamp { sec: 0, nsec: 0 };

/// Size of every directory, equal to that of a small directory on ext4.
const DIRECTORY_SIZE: u64 = 4096;
const BLOCK: u64 = 512;

impl InodeAttr {
    /// Attributes of a namespace directory, which is not writable.
    pub(super) fn directory(ino: Ino, nlink: u32, mtime: Timestamp) -> Self {
        Self {
            ino,
            kind: FileKind::Directory,
            mode: 0o555,
            nlink,
            uid: 0,
            gid: 0,
            size: DIRECTORY_SIZE,
            blocks: DIRECTORY_SIZE / BLOCK,
            rdev: 0,
            mtime,
        }
    }

    /// Attributes of a directory that has entries below it but no entry of its own in any layer.
    pub(super) fn implied(ino: Ino, nlink: u32) -> Self {
        Self { mode: IMPLIED_MODE, ..Self::directory(ino, nlink, IMPLIED_MTIME) }
    }

    /// Attributes from a layer's entry; `None` for a hard link, which is only another name of its target.
    ///
    /// `stored` returns the number of bytes of a regular file that are not in holes. It is called for regular files only.
    pub(super) fn of_entry(
        ino: Ino,
        nlink: u32,
        entry: &Entry<'_>,
        stored: impl Fn() -> u64,
    ) -> Option<Self> {
        let (kind, size, blocks, rdev) = match entry.kind() {
            IndexedKind::Directory => (FileKind::Directory, DIRECTORY_SIZE, DIRECTORY_SIZE / BLOCK, 0),
            IndexedKind::Regular { size } => (FileKind::Regular, size, stored().div_ceil(BLOCK), 0),
            IndexedKind::Symlink { target } => (FileKind::Symlink, target.len() as u64, 0, 0),
            IndexedKind::CharDevice { major, minor } => {
                (FileKind::CharDevice, 0, 0, device_number(major, minor))
            }
            IndexedKind::BlockDevice { major, minor } => {
                (FileKind::BlockDevice, 0, 0, device_number(major, minor))
            }
            IndexedKind::Fifo => (FileKind::Fifo, 0, 0, 0),
            IndexedKind::Hardlink { .. } => return None,
        };
        let (mode, uid, gid, mtime) = (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        Some(Self { ino, kind, mode, nlink, uid, gid, size, blocks, rdev, mtime })
    }
}

/// The kernel's 32-bit device number: 12 bits of major, 20 of minor (`new_encode_dev`, include/linux/kdev_t.h).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_the_kernel_unpacks_them() {
        // `new_decode_dev`, include/linux/kdev_t.h.
        let unpack = |dev: u32| ((dev & 0xf_ff00) >> 8, (dev & 0xff) | (dev >> 12 & 0xf_ff00));
        for numbers in [(0, 0), (1, 3), (8, 17), (4095, 0xf_ffff), (259, 300)] {
            assert_eq!(unpack(device_number(numbers.0, numbers.1)), numbers);
        }
    }
}
