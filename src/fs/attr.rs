//! Attributes of inodes.

use super::Ino;
use crate::index::{Entry, Kind};
use crate::layer::Timestamp;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME};

/// What `stat` shows of an inode. Access and change time are those of modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeAttr {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-uid, set-gid and sticky: 0 to 07777.
    pub mode: u16,
    /// How many names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content; of a symlink, of its target.
    pub size: u64,
    /// Blocks of 512 bytes that are stored: less than the size where a file has holes.
    pub blocks: u64,
    /// Device number in the kernel's 32-bit form; 0 unless this is a device.
    pub rdev: u32,
    /// When the content changed last.
    pub mtime: Timestamp,
}

/// What an inode is.
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

/// 1970-01-01: for what no layer gives a time.
pub(super) const NO_TIME: Timestamp = Timestamp { sec: 0, nsec: 0 };

/// Size that every directory shows, as on ext4 for a directory with few names.
const DIRECTORY_SIZE: u64 = 4096;
const BLOCK: u64 = 512;

impl InodeAttr {
    /// A directory of the namespace: nobody's to write.
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

    /// A directory that no layer has an entry for, but entries below it.
    pub(super) fn implied(ino: Ino, nlink: u32) -> Self {
        Self { mode: IMPLIED_MODE, ..Self::directory(ino, nlink, IMPLIED_MTIME) }
    }

    /// What a layer's entry says; `None` for a hardlink, which is only a name of another entry. `stored` gives the bytes of
    /// a regular file that are not holes.
    pub(super) fn of_entry(
        ino: Ino,
        nlink: u32,
        entry: &Entry<'_>,
        stored: impl Fn() -> u64,
    ) -> Option<Self> {
        let (kind, size, blocks, rdev) = match entry.kind() {
            Kind::Directory => (FileKind::Directory, DIRECTORY_SIZE, DIRECTORY_SIZE / BLOCK, 0),
            Kind::Regular { size } => (FileKind::Regular, size, stored().div_ceil(BLOCK), 0),
            Kind::Symlink { target } => (FileKind::Symlink, target.len() as u64, 0, 0),
            Kind::CharDevice { major, minor } => (FileKind::CharDevice, 0, 0, device_number(major, minor)),
            Kind::BlockDevice { major, minor } => (FileKind::BlockDevice, 0, 0, device_number(major, minor)),
            Kind::Fifo => (FileKind::Fifo, 0, 0, 0),
            Kind::Hardlink { .. } => return None,
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
        // new_decode_dev
        let unpack = |dev: u32| ((dev & 0xf_ff00) >> 8, (dev & 0xff) | (dev >> 12 & 0xf_ff00));
        for numbers in [(0, 0), (1, 3), (8, 17), (4095, 0xf_ffff), (259, 300)] {
            assert_eq!(unpack(device_number(numbers.0, numbers.1)), numbers);
        }
    }
}
