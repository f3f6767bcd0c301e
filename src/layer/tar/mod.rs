//! A layer's tar as a stream of entries: ustar, PAX, GNU and sparse files, read by a parser of our own.
//!
//! Where the readers of the world disagree, this one does what Go's `archive/tar` does, since the tools that apply
//! layers are written in Go; where following it would mean guessing, the layer is refused. The decisions:
//!
//! - Links, directories, devices and fifos have no data, whatever size they declare.
//! - A PAX `size` belongs to the entry behind it and never to another extension header.
//! - GNU long names win over PAX `path` and `linkpath`; of several PAX headers before one entry the last counts.
//! - PAX global headers set `mtime`, `uid` and `gid` of what follows (POSIX; Go leaves that to its caller). A global name,
//!   size, sparse map or xattr makes no sense and is refused.
//! - `7` (contiguous) is a regular file, `D` (GNU dumpdir) a directory with data, `V` (volume label) nothing; a
//!   continued volume (`M`) and types unknown here are refused, as the Go tools do, except for markers and leftovers,
//!   whose type says nothing.
//! - A name with a trailing slash makes an old-style (`\0`) file a directory without data; a `0` or `7` too, but only
//!   if it has no data, because there GNU tar and Go disagree.
//! - Stretches of a sparse file lie one behind the other without padding between them.
//! - xattrs come in the order of their names. Those that Linux has no place for are left out: `user.*` on anything but a file
//!   or directory, ACLs on symlinks, namespaces of other systems (`com.apple.provenance`).
//! - An ACL sets the permission bits, and is dropped where it says no more than they do, as the kernel does it.
//! - A symlink's mode is 0777, whatever its header says: Linux knows no other.
//! - One zero block ends the tar if nothing or another zero block follows; so does the end of the stream at an entry boundary.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod walk;
mod xattr;

use std::io;

use super::TarOffset;
use super::name::{LayerPath, MemberName, NameError, Printable};

pub use walk::TarWalk;

/// Bytes of a tar block; headers are one block, data is padded to whole ones.
pub(crate) const BLOCK: usize = 512;

/// What one PAX header may hold, in bytes: the limit of Go's `archive/tar`, so no layer made with it needs more.
pub const MAX_PAX: u64 = 1 << 20;

/// What a GNU long name or long link may hold, in bytes. A path has 4095 at most; unnormalised it may be longer.
pub const MAX_LONG_NAME: u64 = 64 << 10;

/// How many extension headers may stand before one entry. Writers use three; without a bound they could be the whole layer.
pub const MAX_EXTENSIONS: u32 = 32;

/// How many stretches of data one sparse file may have (24 bytes of memory each; neighbours count as one).
pub const MAX_SEGMENTS: usize = 1_000_000;

/// What a symlink's target may have, in bytes (`PATH_MAX` without the NUL, linux/limits.h).
pub const MAX_TARGET: usize = 4095;

/// What Linux takes, in bytes: an xattr's name, its value, and all names of one file with a NUL behind each
/// (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`, linux/limits.h).
pub const MAX_XATTR_NAME: usize = 255;
/// See [`MAX_XATTR_NAME`].
pub const MAX_XATTR_VALUE: usize = 64 << 10;
/// See [`MAX_XATTR_NAME`].
pub const MAX_XATTR_LIST: usize = 64 << 10;

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, rounded down.
    pub sec: i64,
    /// Nanoseconds on top of them, below 10^9.
    pub nsec: u32,
}

/// Names and values.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// One member of a layer's tar that means something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// What its name says; never [`MemberName::Dropped`]. For a marker nothing else here has a meaning.
    pub member: MemberName,
    /// What it is. A marker, which may be of any type, has an empty file here.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777; 0o777 for a symlink.
    pub mode: u16,
    /// Owner; never `u32::MAX`, which is nobody.
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Extended attributes in the order of their names, no name twice; those that overlayfs would act on are left out, and
    /// those that Linux has no place for.
    pub xattrs: Xattrs,
    /// Where its own header stands (extension headers are before it).
    pub offset: TarOffset,
}

/// What an entry is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length in bytes, holes included.
        size: u64,
        /// Where the bytes are.
        content: FileContent,
    },
    /// A symbolic link.
    Symlink {
        /// As the tar has it: 1 to [`MAX_TARGET`] bytes without NUL.
        target: Box<[u8]>,
    },
    /// Another name of a file that this layer or one below has by then.
    Hardlink {
        /// The other name; may be the root or a directory, which the merge refuses.
        target: LayerPath,
    },
    /// A character device; never 0:0, which overlayfs takes for a whiteout.
    CharDevice {
        /// 12 bits.
        major: u32,
        /// 20 bits.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// 12 bits.
        major: u32,
        /// 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// All in one piece.
    Contiguous(TarOffset),
    /// In stretches, ascending, apart and within the size; zeros between and behind them. Empty for a file that is one hole.
    Sparse(Vec<Segment>),
}

/// One stretch of a sparse file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file.
    pub logical: u64,
    /// Where it starts in the tar.
    pub tar: TarOffset,
    /// Its length in bytes; never 0.
    pub len: u64,
}

/// A tar that cannot be a layer, with the place.
#[derive(Debug, thiserror::Error)]
#[error("tar offset {offset}{}: {fault}", shown(path))]
pub struct TarError {
    /// The header block in question, or how far the stream went.
    pub offset: TarOffset,
    /// The entry's name as the tar has it, where one was read by then.
    pub path: Option<Box<[u8]>>,
    /// What is wrong.
    pub fault: TarFault,
}

fn shown(path: &Option<Box<[u8]>>) -> String {
    path.as_ref().map(|path| format!(", entry `{}`", Printable(path))).unwrap_or_default()
}

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// The stream itself failed.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("tar is truncated")]
    Truncated,
    /// Neither a header nor an end block.
    #[error("header checksum does not match")]
    Checksum,
    /// A zero block with something other than a zero block behind it.
    #[error("entry behind a lone end block")]
    LoneEndBlock,
    /// A number that cannot be read.
    #[error("malformed {0} in header")]
    HeaderNumber(&'static str),
    /// A number that is well-formed but makes no sense or does not fit.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// The name is refused.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name that a hard link leads to is refused.
    #[error("hard link target: {0}")]
    LinkName(#[source] NameError),
    /// A symlink with an empty target, a NUL in it, or more than [`MAX_TARGET`] bytes.
    #[error("symlink target is empty, too long or has a NUL byte")]
    SymlinkTarget,
    /// A type that no image tool unpacks.
    #[error("unsupported entry type `{}`", std::ascii::escape_default(*.0))]
    Type(u8),
    /// A regular file with data and a trailing slash in its name.
    #[error("regular file with data has a directory's name")]
    FileWithSlash,
    /// The root is not a directory.
    #[error("entry for the root is not a directory")]
    RootKind,
    /// A character device 0:0, which overlayfs would take for a whiteout.
    #[error("character device 0:0")]
    WhiteoutDevice,
    /// An extension header over its limit.
    #[error("extension header of {0} bytes")]
    LongExtension(u64),
    /// More than [`MAX_EXTENSIONS`] of them before one entry.
    #[error("more than {MAX_EXTENSIONS} extension headers before one entry")]
    ManyExtensions,
    /// The tar ends behind an extension header.
    #[error("extension header without an entry")]
    LoneExtension,
    /// A PAX record that cannot be read.
    #[error("malformed PAX record{}", if .0.is_empty() { String::new() } else { format!(" `{}`", Printable(.0)) })]
    PaxRecord(Box<[u8]>),
    /// A PAX record that has no meaning for all entries alike.
    #[error("PAX record `{}` in a global header", Printable(.0))]
    GlobalRecord(Box<[u8]>),
    /// An xattr that Linux cannot hold.
    #[error("xattr `{}` is too long or has a malformed name", Printable(.0))]
    Xattr(Box<[u8]>),
    /// An ACL or a capability that the kernel would not set.
    #[error("xattr `{}` has a malformed value", Printable(.0))]
    XattrValue(Box<[u8]>),
    /// A sparse map that contradicts itself, the file's size or the data.
    #[error("malformed sparse map")]
    SparseMap,
    /// More than [`MAX_SEGMENTS`].
    #[error("sparse map with more than {MAX_SEGMENTS} segments")]
    ManySegments,
    /// Asked on behind an error.
    #[error("the tar failed before")]
    Failed,
}
