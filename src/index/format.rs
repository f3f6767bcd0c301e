//! The specification of the index file: this text and the constants below.
//!
//! All numbers are little-endian. The file is a header followed by the sections in the order of [`Section`], each padded
//! with zero bytes to a multiple of 8. Only the lengths in the header determine where a section starts.
//!
//! An index is a function of its blob: every build of this version of the format has the same entries and spans, with the same
//! ordinals, hashes and windows. So an entry and a span can be named by their ordinals in other files and on other hosts.
//! (Another release of zstd may compress the windows to other bytes.)
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
//! | 80..112 | diff ID: digest of the tar |
//! | 112..120 | length of the blob |
//! | 120..128 | length of the tar |
//! | 128..136 | length of the seekable file, 0 if the layer has none |
//! | 136..256 | bytes of each section without its padding, 15 × u64 |
//!
//! # Sections
//!
//! **Spans**, [`SPAN_LEN`] bytes each, ascending; together they cover the whole tar without gaps:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | tar offset |
//! | 8..24 | range of the blob: offset u64, length u64 |
//! | 24..28 | CRC-32 of the decoded bytes |
//! | 28 | kind |
//! | 29 | skip bits: bits of the range's first byte that belong to the span before |
//! | 30..32 | ordinal of the window in its group |
//! | 32..36 | window group ([`NO_WINDOW`]: none) |
//! | 36..40 | bits of the block header; kinds 4 and 5: bytes in the seekable file |
//! | 40..48 | position of the block header in the blob, in bits ([`NO_BLOCK`]: none); kinds 4 and 5: offset in the seekable file |
//! | 48..50 | bytes of a stored block before the span |
//! | 50..56 | zero |
//! | 56..88 | BLAKE3 hash of the range of the blob |
//!
//! The kinds are 0 stored, 1 gzip member, 2 deflate, 3 zstd frames, 4 the first span of a long zstd frame, 5 another span of a
//! long zstd frame. [`crate::layer::Checkpoint`] describes how to resume at kinds 0 to 3.
//!
//! # Which bytes of the blob a span needs
//!
//! A span of the kinds 0 to 3 is decoded from its range of the blob and from this file, and from nothing else. Ranges of
//! neighbours overlap by one byte where a deflate stream is cut inside a byte. The header of the deflate block in which a span
//! starts lies in the range of an earlier span, so it is kept in the window group.
//!
//! A span of a long zstd frame is decoded from the ranges of *all* spans of its frame up to its own, in order: a zstd decoder that
//! gets exactly these bytes returns the content of the frame up to the end of the span, or further. The ranges of a frame
//! follow each other without a gap, are cut between two blocks, and may be empty. Whoever has the seekable file needs only
//! that.
//!
//! The hash is over exactly the range, so a range that was fetched can be verified before anything decodes it. No range contains
//! what only separates spans: gzip trailers with padding, the checksums of long zstd frames, some skippable frames. Only the
//! digest of the blob protects these.
//!
//! **Window groups**, [`GROUP_LEN`] bytes each: offset in the window heap u64 · compressed bytes u32 · uncompressed bytes u32.
//! A group is one zstd frame with the windows of neighbouring spans. Uncompressed: the number of windows; for each window
//! the length of the block header in bytes (0 if the span does not start inside a block), the number of runs, and the runs as
//! (gap since the end of the last run, length), all LEB128; then for each window the block header, from the byte with its first
//! bit to the byte with its last, and the bytes of all runs. A window contains only the bytes that its span refers to, about
//! a tenth of the 32 KiB.
//!
//! **Entries**, [`ENTRY_LEN`] bytes each, in the order of the tar: directory u32 · end of the name in the name heap u32
//! (a name starts where the previous one ends) · attributes u32 · offset of the header in the tar, in blocks of 512, u32 ·
//! payload u32.
//!
//! The payload depends on the kind: the size of a regular file whose content follows its header; the ordinal in *extents* of a
//! regular file that is sparse or at least 4 GiB long; the offset of a link's target in the text heap (u16 length, bytes);
//! a device number as the kernel packs it (major in the upper 12 bits, minor in the lower 20); 0 for other kinds.
//!
//! **Attributes**, [`ATTR_LEN`] bytes each, no combination twice: kind u8 · zero u8 · mode u16 · uid u32 · gid u32 ·
//! mtime's nanoseconds u32 · mtime's seconds i64 · ordinal of the xattr set u32 ([`NO_XATTRS`]: none).
//!
//! **Directories**, 4 bytes each: end of the path in the directory heap. Paths are normalized and have no leading slash.
//!
//! **Extents**, [`EXTENT_LEN`] bytes each: size u64 · offset of the content in the tar u64 · first segment u32 · number of
//! segments u32 ([`NOT_SPARSE`]: the content is one piece at that offset).
//! **Segments**, [`SEGMENT_LEN`] bytes each: offset in the file u64 · offset in the tar u64 · length u64. In the tar, the
//! segments of a file follow each other without a gap.
//!
//! **Links**, 8 bytes each, ascending: entry u32 · number of its names within this layer u32. Only entries with several names have a record.
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
//! A zstd frame longer than a span can only be decoded from its start. The content of such a frame is written a second time,
//! at pull, to a file beside the index: one zstd frame for each span, and nothing else. The blob is kept as served, so
//! its digest can be verified at any time; the spans of smaller frames refer to the blob.
//!
//! # Version 2
//!
//! The program reads version 2 as well, so that no image waits for its indexes after an update, and replaces such indexes in the
//! background. Their span records end at byte 56: there is no hash. A span of kind 4 has its range of the seekable file in
//! bytes 8..24, and kind 5 does not exist. Window groups have no block headers and no lengths of them: a reader takes the header
//! from the blob. Indexes of other versions are rebuilt before they are used.

/// The first bytes of every index.
pub const MAGIC: [u8; 8] = *b"RCXINDEX";
/// The format version. It changes with this format, *with the meaning of an entry's ordinal* (inode numbers depend on it) or of a
/// span's, and with the data that is taken from a tar.
pub const VERSION: u32 = 3;
/// The oldest version that can be read.
pub const OLDEST_VERSION: u32 = 2;
/// The length of the header in bytes.
pub const HEADER_LEN: usize = 256;
/// The offset at which the checksummed part starts.
pub const CHECKED_FROM: usize = 48;
/// The length of a span record in bytes.
pub const SPAN_LEN: usize = 88;
/// The offset of the hash in a span record, and the length of a span record of version 2, in bytes.
pub const SPAN_HASH_AT: usize = 56;
/// The length of a window group record in bytes.
pub const GROUP_LEN: usize = 16;
/// The length of an entry record in bytes.
pub const ENTRY_LEN: usize = 20;
/// The length of an attribute record in bytes.
pub const ATTR_LEN: usize = 28;
/// The length of an extent record in bytes.
pub const EXTENT_LEN: usize = 24;
/// The length of a segment record in bytes.
pub const SEGMENT_LEN: usize = 24;
/// The window group of a span that does not refer to earlier bytes.
pub const NO_WINDOW: u32 = u32::MAX;
/// The block header position of a span that does not start inside a block.
pub const NO_BLOCK: u64 = u64::MAX;
/// The xattr set of an entry without xattrs.
pub const NO_XATTRS: u32 = u32::MAX;
/// The number of segments of a file that is not sparse.
pub const NOT_SPARSE: u32 = u32::MAX;
/// The unit of an entry's header offset, in bytes (POSIX.1-2017, pax, "ustar Interchange Format").
pub const TAR_BLOCK: u64 = 512;

/// The sections, in the order of the file.
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
    /// Link targets and marker paths, each preceded by its length.
    Texts,
    /// Xattr sets.
    Xattrs,
    /// Compressed window groups.
    Windows,
}

/// The number of sections.
pub const SECTIONS: usize = 15;

/// The kind of an entry in an attribute record.
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
    /// Decodes the first byte of an attribute record.
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
    /// The blob is not compressed.
    Stored,
    /// From the start of a gzip member.
    GzipMember,
    /// From the middle of a deflate stream.
    Deflate,
    /// Whole zstd frames of the blob.
    ZstdFrame,
    /// The first span of a zstd frame that is in the seekable file.
    LongFrame,
    /// Another span of that frame.
    LongFrameRest,
}

impl SpanKind {
    /// Whether the span has a frame in the seekable file.
    #[must_use]
    pub const fn is_seekable(self) -> bool {
        matches!(self, Self::LongFrame | Self::LongFrameRest)
    }

    /// Decodes the kind byte of a span record.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stored,
            1 => Self::GzipMember,
            2 => Self::Deflate,
            3 => Self::ZstdFrame,
            4 => Self::LongFrame,
            5 => Self::LongFrameRest,
            _ => return None,
        })
    }
}

/// Rounds `length` up to the alignment of sections; `None` on overflow.
#[must_use]
pub const fn padded(length: u64) -> Option<u64> {
    match length.checked_add(7) {
        Some(sum) => Some(sum & !7),
        None => None,
    }
}
