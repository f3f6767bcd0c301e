//! A layer's tar as a stream of entries: ustar, PAX, GNU and sparse files, read by our own parser.
//!
//! Where existing tar readers disagree, this one follows Go's `archive/tar`, because the tools that apply layers are written
//! in Go. Where following it would require guessing, the layer is refused. The decisions:
//!
//! - Links, directories, devices and FIFOs have no data, whatever size they declare.
//! - A PAX `size` applies to the next entry and never to another extension header.
//! - GNU long names take precedence over PAX `path` and `linkpath`. If several PAX headers precede an entry, the last applies.
//! - PAX global headers set `mtime`, `uid` and `gid` of all later entries (POSIX; Go leaves this to its caller). A global
//!   name, size, sparse map or xattr makes no sense and is refused.
//! - `7` (contiguous) is a regular file, `D` (GNU dumpdir) a directory with data. `V` (volume label) is ignored. A continued
//!   volume (`M`) and unknown types are refused, as in the Go tools, except for markers and leftovers, whose type is ignored. A
//!   hidden member that would be refused for any reason but its name or length is dropped.
//! - An old-style (`\0`) file whose name ends in `/` is a directory without data. So is one of type `0` or `7`, but only if
//!   its size is 0, because GNU tar and Go disagree about its data.
//! - The segments of a sparse file are stored consecutively, without padding between them.
//! - xattrs are sorted by name. Those that Linux cannot store are left out: `user.*` on anything but files and directories,
//!   ACLs on symlinks, namespaces of other systems (`com.apple.provenance`).
//! - An ACL sets the permission bits. It is dropped if it is equivalent to them, as in the kernel.
//! - A symlink's mode is 0777, whatever its header declares: Linux supports no other mode.
//! - One zero block ends the tar if it is followed by nothing or by another zero block. So does the end of the stream between
//!   two entries.
//!
//! The files in order of dependency: `error`, `header`, `entry_values`, `xattr`, `pax_values`, `pax`, `sparse`, `walk`.

mod entry_values;
mod error;
mod header;
mod pax;
mod pax_values;
mod sparse;
#[cfg(test)]
mod tests;
mod walk;
mod xattr;

use super::TarOffset;
use super::name::{LayerPath, MemberName};

pub use error::{TarError, TarFault};
pub(crate) use pax::pax_records;
pub use walk::TarWalk;

/// Size of a tar block, in bytes. A header is one block; data is padded to whole blocks.
pub(crate) const BLOCK: usize = 512;

/// Longest PAX header, in bytes: the limit of Go's `archive/tar`, so no layer written with it has a longer one.
pub const MAX_PAX: u64 = 1 << 20;

/// Longest GNU long name or long link, in bytes. A path has at most 4095; before normalisation it may be longer.
pub const MAX_LONG_NAME: u64 = 64 << 10;

/// Maximum number of extension headers before one entry. Writers use up to three. Without a limit, a layer could consist of
/// nothing else.
pub const MAX_EXTENSIONS: u32 = 32;

/// Maximum number of segments of a sparse file (24 bytes of memory each; adjacent segments count as one).
pub const MAX_SEGMENTS: usize = 1_000_000;

/// Longest symlink target, in bytes (`PATH_MAX` without the NUL, linux/limits.h).
pub const MAX_TARGET: usize = 4095;

/// Longest name of an xattr, in bytes (`XATTR_NAME_MAX`, linux/limits.h).
pub const MAX_XATTR_NAME: usize = 255;
/// Longest value of an xattr, in bytes (`XATTR_SIZE_MAX`, linux/limits.h).
pub const MAX_XATTR_VALUE: usize = 64 << 10;
/// Maximum number of bytes of all xattr names of one file, each with a NUL (`XATTR_LIST_MAX`, linux/limits.h).
pub const MAX_XATTR_LIST: usize = 64 << 10;

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, rounded down.
    pub sec: i64,
    /// Additional nanoseconds, below 10^9.
    pub nsec: u32,
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// One member of a layer's tar: an entry or a marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The meaning of the member's name; never [`MemberName::Dropped`]. If the member is a marker, the other fields have no
    /// meaning.
    pub member: MemberName,
    /// The type of the entry. For a marker, which may be of any type: an empty file.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky bits: 0 to 0o7777; 0o777 for a symlink.
    pub mode: u16,
    /// Owner; never `u32::MAX`, which is not a valid owner.
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name, without duplicates. Excludes those that overlayfs would interpret and those that
    /// Linux cannot store.
    pub xattrs: Xattrs,
    /// Position of the entry's header, which follows its extension headers.
    pub offset: TarOffset,
}

/// The type of an entry, with the data specific to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length in bytes, including holes.
        size: u64,
        /// Where the file's bytes are.
        content: FileContent,
    },
    /// A symbolic link.
    Symlink {
        /// The target, unchanged: 1 to [`MAX_TARGET`] bytes without NUL.
        target: Box<[u8]>,
    },
    /// A hard link to a file that exists at this point, in this layer or in a lower one.
    Hardlink {
        /// The path of that file. It may be the root or a directory, which the merge refuses.
        target: LayerPath,
    },
    /// A character device; never 0:0, which overlayfs treats as a whiteout.
    CharDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a regular file's bytes are in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// Consecutive, from this position on.
    Contiguous(TarOffset),
    /// In segments, ascending, not adjacent, and within the file's size. All other bytes are zero. Empty if the whole file
    /// is a hole.
    Sparse(Vec<Segment>),
}

/// One segment of a sparse file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Start in the file.
    pub logical: u64,
    /// Start in the tar.
    pub tar: TarOffset,
    /// Length in bytes; never 0.
    pub len: u64,
}
