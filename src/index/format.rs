//! The index file, byte by byte. This text and the constants below are its specification.
//!
//! All numbers are little-endian. The file is a header and then sections, one behind the other in the order of
//! [`Section`], each padded with zero bytes to a multiple of 8. Lengths stand in the header; nothing else tells where a
//! section starts. A reader takes exactly [`VERSION`]: an index is derived data, so one of another version is made anew
//! from the blob and never migrated.
//!
//! # Header, [`HEADER_LEN`] bytes
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..12 | [`VERSION`] |
//! | 12 | codec of the blob: 0 tar, 1 gzip, 2 zstd |
//! | 13..16 | zero |
//! | 16..48 | SHA-256 of the file from byte 48 to its end |
//! | 48..80 | digest of the blob |
//! | 80..112 | diffID: digest of the tar |
//! | 112..120 | length of the blob |
//! | 120..128 | length of the tar |
//! | 128..136 | length of the seekable file, 0 where there is none |
//! | 136..256 | bytes of each section without its padding, 15 × u64 |
//!
//! # Sections
//!
//! **Spans**, [`SPAN_LEN`] bytes each, ascending; together they cover the tar from 0 to its end without gaps:
//! tar offset u64 · offset of the first byte to read u64 · bytes to read u64 · CRC-32 of the decoded bytes u32 ·
//! kind u8 · skip bits u8 · ordinal of the window in its group u16 · window group u32 ([`NO_WINDOW`]: none) ·
//! bits of the block header u32 · position of the block header in the blob, in bits, u64 ([`NO_BLOCK`]: none) ·
//! bytes of a stored block in front of the span u16 · 6 zero bytes.
//!
//! The kinds are 0 stored, 1 gzip member, 2 deflate, 3 zstd frames, 4 a zstd frame of the seekable file. What resuming
//! takes for each is told at [`crate::layer::Checkpoint`].
//!
//! **Window groups**, [`GROUP_LEN`] bytes each: offset in the window heap u64 · bytes there u32 · bytes uncompressed u32.
//! A group is one zstd frame holding the windows of neighbouring spans. Uncompressed: the number of windows, then for each
//! its number of runs and the runs as (gap since the end of the last run, length), all LEB128; then the bytes of all runs of
//! all windows. Only bytes that the span refers to are kept, a tenth of the 32 KiB.
//!
//! **Entries**, [`ENTRY_LEN`] bytes each, in the order of the tar: directory u32 · end of the name in the name heap u32
//! (it starts where the one before ends) · attributes u32 · header's offset in the tar in blocks of 512 u32 · payload u32.
//!
//! The payload is by kind: the size of a regular file whose bytes stand right behind its header; the ordinal in
//! *extents* for one that is sparse or of 4 GiB and more; the offset in the text heap of a link's target (u16 length, bytes);
//! a device number as the kernel packs it (major in the upper 12 bits, minor in the lower 20); 0 for the rest.
//!
//! **Attributes**, [`ATTR_LEN`] bytes each, every combination once: kind u8 · zero u8 · mode u16 · uid u32 · gid u32 ·
//! mtime's nanoseconds u32 · mtime's seconds i64 · ordinal of the xattr set u32 ([`NO_XATTRS`]: none).
//!
//! **Directories**, 4 bytes each: end of the path in the directory heap. Paths are normalised, without a leading slash.
//!
//! **Extents**, [`EXTENT_LEN`] bytes each: size u64 · offset of the content in the tar u64 · first segment u32 · number of
//! segments u32 ([`NOT_SPARSE`]: the content is one piece at that offset).
//! **Segments**, [`SEGMENT_LEN`] bytes each: offset in the file u64 · offset in the tar u64 · length u64. In the tar, those of
//! one file stand one right behind the other.
//!
//! **Links**, 8 bytes each, ascending: entry u32 · number of names that it has within this layer u32, where that is not 1.
//!
//! **Xattr sets**, 4 bytes each: end of the set in the xattr heap. A set is a sequence of name length u16, name, value length
//! u32, value; names ascending.
//!
//! **Markers**, 8 bytes each: offset in the text heap u32 of the path (u16 length, bytes) · 0 whiteout, 1 opaque u32.
//!
//! **Heaps**: names, directory paths, texts, xattrs, windows: bytes that the records above point into.
//!
//! # The seekable file
//!
//! A zstd frame longer than a span can only be decoded from its start. Such a frame's content is written once more, at
//! pull, into a file beside the index: one zstd frame for each span, one behind the other, nothing else. The blob stays as
//! it was served, so its digest can be verified at any time; spans of smaller frames still point into the blob.

/// First bytes of every index.
pub const MAGIC: [u8; 8] = *b"RCXINDEX";
/// Changes with every change of this format, *of what an entry's ordinal means* (inode numbers follow from it), or of what is
/// taken from a tar.
pub const VERSION: u32 = 2;
/// Bytes of the header.
pub const HEADER_LEN: usize = 256;
/// Where the checksummed part starts.
pub const CHECKED_FROM: usize = 48;
/// Bytes of a span record.
pub const SPAN_LEN: usize = 56;
/// Bytes of a window group record.
pub const GROUP_LEN: usize = 16;
/// Bytes of an entry record.
pub const ENTRY_LEN: usize = 20;
/// Bytes of an attribute record.
pub const ATTR_LEN: usize = 28;
/// Bytes of an extent record.
pub const EXTENT_LEN: usize = 24;
/// Bytes of a segment record.
pub const SEGMENT_LEN: usize = 24;
/// Window group of a span that refers to nothing before it.
pub const NO_WINDOW: u32 = u32::MAX;
/// Block header position of a span that does not start inside a block.
pub const NO_BLOCK: u64 = u64::MAX;
/// Xattr set of an entry without xattrs.
pub const NO_XATTRS: u32 = u32::MAX;
/// Number of segments of a file that is not sparse.
pub const NOT_SPARSE: u32 = u32::MAX;
/// Unit of an entry's header offset (POSIX.1-2017, pax, "ustar Interchange Format").
pub const TAR_BLOCK: u64 = 512;

/// The sections, in the order in which they stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// Span records.
    Spans,
    /// Window group records.
    Groups,
    /// Entry records.
    Entries,
    /// Attribute records.
    Attrs,
    /// Directory records.
    Dirs,
    /// Extent records.
    Extents,
    /// Segment records.
    Segments,
    /// Link counts.
    Links,
    /// Xattr set records.
    XattrSets,
    /// Marker records.
    Markers,
    /// Names of entries, without separators.
    Names,
    /// Directory paths, without separators between them.
    Paths,
    /// Link targets and marker paths, each with its length in front.
    Texts,
    /// Xattr sets.
    Xattrs,
    /// Compressed window groups.
    Windows,
}

/// How many sections there are.
pub const SECTIONS: usize = 15;

/// What an attribute record says an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum KindByte {
    /// Directory.
    Directory,
    /// Regular file below 4 GiB in one piece.
    Regular,
    /// Regular file with an extent record.
    Extended,
    /// Symbolic link.
    Symlink,
    /// Hard link.
    Hardlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

impl KindByte {
    /// The kind of an attribute record's first byte.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Directory,
            1 => Self::Regular,
            2 => Self::Extended,
            3 => Self::Symlink,
            4 => Self::Hardlink,
            5 => Self::CharDevice,
            6 => Self::BlockDevice,
            7 => Self::Fifo,
            _ => return None,
        })
    }
}

/// How a span is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SpanKind {
    /// The blob's bytes are the tar's.
    Stored,
    /// From the start of a gzip member.
    GzipMember,
    /// From inside a deflate stream.
    Deflate,
    /// Whole zstd frames of the blob.
    ZstdFrame,
    /// One zstd frame of the seekable file.
    Seekable,
}

impl SpanKind {
    /// The kind of a span record's kind byte.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stored,
            1 => Self::GzipMember,
            2 => Self::Deflate,
            3 => Self::ZstdFrame,
            4 => Self::Seekable,
            _ => return None,
        })
    }
}

/// `length` rounded up to the alignment of sections.
#[must_use]
pub const fn padded(length: u64) -> Option<u64> {
    match length.checked_add(7) {
        Some(sum) => Some(sum & !7),
        None => None,
    }
}
