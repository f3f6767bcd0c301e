//! The parts of the EROFS on-disk format that the writer uses.
//!
//! Source: `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst` of Linux. All numbers are little-endian. Field names
//! in comments are those of the kernel.

/// The offset of the superblock (`EROFS_SUPER_OFFSET`). The bytes before it are unused.
pub const SUPER_OFFSET: u64 = 1024;
/// The length of the superblock (`struct erofs_super_block`).
pub const SUPER_LEN: usize = 128;
/// The first bytes of the superblock (`EROFS_SUPER_MAGIC_V1`, include/uapi/linux/magic.h).
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// The block size, 512 bytes, as a shift (`blkszbits`): the content of a file starts in a tar at a multiple of 512, so it is
/// addressed in place.
pub const BLOCK_BITS: u8 = 9;
/// The block size in bytes.
pub const BLOCK: u64 = 1 << BLOCK_BITS;
/// Inodes have times (`EROFS_FEATURE_COMPAT_MTIME`).
pub const COMPAT_MTIME: u32 = 0x2;
/// Inodes with xattrs have a filter of their names (`EROFS_FEATURE_COMPAT_XATTR_FILTER`).
pub const COMPAT_XATTR_FILTER: u32 = 0x4;
/// Some inodes are chunk-based (`EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`).
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// The filesystem has a device table (`EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`).
pub const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// The length of a record of the device table (`struct erofs_deviceslot`).
pub const DEVICE_LEN: usize = 128;
/// The unit of inode numbers in bytes: inode N is at byte 32 N (`islotbits`).
pub const SLOT: u64 = 32;
/// The length of a compact inode (`struct erofs_inode_compact`): 16-bit owner, 32-bit size, the time of the superblock.
pub const COMPACT_LEN: usize = 32;
/// The length of an extended inode (`struct erofs_inode_extended`).
pub const EXTENDED_LEN: usize = 64;
/// The bit of `i_format` that marks an extended inode.
pub const EXTENDED: u16 = 1;

/// Where the content of an inode is (`datalayout` in `i_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum DataLayout {
    /// In consecutive blocks (`EROFS_INODE_FLAT_PLAIN`).
    Plain = 0,
    /// As [`DataLayout::Plain`], but the last, partial block follows the inode and its xattrs, inside one block
    /// (`EROFS_INODE_FLAT_INLINE`).
    Inline = 2,
    /// In chunks of equal size, each with a record (`EROFS_INODE_CHUNK_BASED`).
    Chunks = 4,
}

/// The greatest shift of a chunk's size over the block size (`EROFS_CHUNK_FORMAT_BLKBITS_MASK`).
pub const CHUNK_BITS_MAX: u8 = 31;
/// The records of chunks have a device number (`EROFS_CHUNK_FORMAT_INDEXES`), 8 bytes each; otherwise 4 bytes each.
pub const CHUNK_INDEXES: u16 = 0x20;
/// The block address of a hole (`EROFS_NULL_ADDR`).
pub const HOLE: u32 = u32::MAX;

/// The length of a directory entry without its name (`struct erofs_dirent`).
pub const DIRENT_LEN: usize = 12;

/// The header of the xattrs beside an inode (`struct erofs_xattr_ibody_header`).
pub const XATTR_HEADER_LEN: usize = 12;
/// The longest xattr area beside an inode: `i_xattr_icount` has 16 bits and counts 4 bytes, from 1 after the header.
pub const XATTR_AREA_MAX: usize = XATTR_HEADER_LEN + 4 * (u16::MAX as usize - 1);
/// The most shared xattrs of an inode (`h_shared_count` has 8 bits).
pub const SHARED_XATTRS_MAX: usize = u8::MAX as usize;
/// The seed of the xattr name filter, to which the namespace's number is added (`EROFS_XATTR_FILTER_SEED`).
pub const XATTR_FILTER_SEED: u32 = 0x25bb_e08f;

/// The kinds of files in directory entries (`FT_*` in include/linux/fs_types.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileTypeByte {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    CharDevice = 3,
    /// Block device.
    BlockDevice = 4,
    /// Named pipe.
    Fifo = 5,
    /// Symbolic link.
    Symlink = 7,
}

impl FileTypeByte {
    /// The bits of `i_mode` that give the type (`S_IFMT`).
    #[must_use]
    pub const fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// A device number as the kernel stores it (`new_encode_dev` in include/linux/kdev_t.h).
#[must_use]
pub const fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
