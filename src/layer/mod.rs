//! One layer's blob: how it is compressed, where decoding can resume, and which entries its tar holds.
//!
//! A blob is read once, front to back, as a sequence of *spans*: stretches of the tar that can later be
//! decoded on their own. The tar walk reads the spans' bytes as one stream.

mod deflate;
mod gzip;
mod huffman;
mod inflate;
mod member;
pub mod name;
mod resume;
mod spans;
pub mod tar;
mod window;
mod zstd;

use std::{fmt, io};

pub use name::{LayerPath, MemberName, NameError, Printable};
pub use resume::decode_span;
pub use spans::SpanDecoder;
pub use tar::{EntryKind, FileContent, Segment, TarEntry, TarError, TarFault, TarWalk, Timestamp, Xattrs};

/// Declares a 64-bit position, in bytes, that must not be mixed with positions in something else.
macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// The position `bytes` behind the start.
            #[must_use]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Bytes from the start.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

offset! {
    /// A position in a layer's blob as served (compressed, if it is).
    BlobOffset
}
offset! {
    /// A position in a layer's tar, uncompressed.
    TarOffset
}

/// How a blob is compressed. What its first bytes are decides, not what a media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not compressed.
    Tar,
    /// gzip, one or more members (RFC 1952).
    Gzip,
    /// zstd, one or more frames (RFC 8878).
    Zstd,
}

impl Codec {
    /// Bytes of a blob that [`Codec::sniff`] wants to see (fewer where the blob is shorter).
    pub const SNIFF_LEN: usize = 4;

    /// Tells the codec from a blob's first bytes; everything without a known magic number is a plain tar.
    #[must_use]
    pub fn sniff(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A blob may open with a skippable frame: magic 0x184D2A50 to 0x184D2A5F, little-endian.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Tar,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tar => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// How long spans are, in bytes of tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLimits {
    /// What a span should be: it ends at the first good place once three quarters of this are in it.
    pub target: usize,
    /// What no span exceeds.
    pub max: usize,
}

impl SpanLimits {
    /// What layers are indexed with: a scattered read decodes a whole span, so finer is faster and larger on
    /// disk.
    pub const PRODUCTION: Self = Self { target: 256 << 10, max: 320 << 10 };
}

/// The bytes in front of a checkpoint that the deflate stream behind it refers to.
///
/// Deflate refers back at most 32 KiB, and of those only some 10 % are ever used, so the others are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Used stretches as (start, length), ascending and apart; start counts from 32 KiB before the checkpoint
    /// (so a member with 100 bytes before the checkpoint uses starts from 32668 on).
    pub runs: Vec<(u16, u16)>,
    /// The bytes of all runs, one behind the other.
    pub bytes: Vec<u8>,
}

/// What decoding needs in order to resume at the start of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// The blob's bytes are the tar's bytes.
    Stored,
    /// A gzip member's header starts here.
    GzipMember,
    /// Inside a deflate stream.
    Deflate {
        /// Bits of the span's first blob byte that belong to the span before, 0 to 7.
        skip_bits: u8,
        /// Where the span starts inside a block: the block's header, which has to be read first.
        block: Option<BlockHeader>,
        /// What the span refers to of the bytes before it.
        window: Window,
    },
    /// A zstd frame (or a skippable frame) starts here; the span is made of whole frames.
    ZstdFrame,
}

/// Header of the deflate block that a span starts in the middle of (RFC 1951, 3.2.3): from BFINAL to the last
/// bit of the Huffman code lengths, so that the tables can be built before the first symbol of the span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Position in the blob, in bits (8 for each byte; within a byte from the least significant bit on).
    pub start_bit: u64,
    /// Length in bits. For a stored block this goes to the end of NLEN.
    pub bits: u32,
    /// Where the block is a stored one: how many of its bytes stand before the span, so that LEN can be read
    /// as what is left. Zero for the other block types.
    pub stored_before: u16,
}

/// One span as the blob is first decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedSpan {
    /// How to decode it again; `None` where that is not possible from the blob (a zstd frame longer than the
    /// limit), so that it has to be kept in a form of its own.
    pub checkpoint: Option<Checkpoint>,
    /// The blob's bytes that decoding it again takes: from the byte that holds its first bit to the byte
    /// behind its last. Neighbouring spans of one deflate stream share a byte. Bytes that hold nothing of the
    /// tar (gzip trailers, skippable frames, empty blocks in great number) may stand between two spans.
    /// Without a checkpoint it is empty, and stands where the zstd frame starts.
    pub blob: std::ops::Range<u64>,
    /// Its bytes of the tar. Never empty.
    pub bytes: Vec<u8>,
}

/// Why a layer's blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A blob of no bytes, or one that is made of skippable frames only.
    #[error("the blob holds nothing")]
    Empty,
    /// The reader that delivers the blob failed.
    #[error("read the blob at byte {at}")]
    Read {
        /// Where the next byte was wanted.
        at: BlobOffset,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// The blob is shorter than what it began.
    #[error("{codec}: the blob ends at byte {at}, in the middle of a {part}")]
    Truncated {
        /// The blob's format.
        codec: Codec,
        /// What was not complete.
        part: &'static str,
        /// Length of the blob.
        at: BlobOffset,
    },
    /// Bytes that are no further member or frame.
    #[error("{codec}: bytes behind the end of the data, at byte {at}")]
    TrailingGarbage {
        /// The blob's format.
        codec: Codec,
        /// The first of them.
        at: BlobOffset,
    },
    /// A gzip member header that RFC 1952 does not allow, or that is unreasonable.
    #[error("gzip: member header at byte {at}: {problem}")]
    GzipHeader {
        /// The first byte of the header.
        at: BlobOffset,
        /// What is wrong.
        problem: &'static str,
    },
    /// Bytes that are not deflate data.
    #[error("gzip: deflate data at byte {at}: {problem}")]
    Deflate {
        /// Near where it went wrong.
        at: BlobOffset,
        /// What is wrong.
        problem: String,
    },
    /// A gzip member does not hold the bytes that were compressed.
    #[error("gzip: member at byte {at}: checksum is {found:08x}, not {expected:08x} as its trailer says")]
    GzipChecksum {
        /// The first byte of the member.
        at: BlobOffset,
        /// CRC-32 of what was decoded.
        found: u32,
        /// CRC-32 in the trailer.
        expected: u32,
    },
    /// A gzip member does not hold as many bytes as were compressed.
    #[error(
        "gzip: member at byte {at}: length is {found}, not {expected} as its trailer says (modulo 4 GiB)"
    )]
    GzipLength {
        /// The first byte of the member.
        at: BlobOffset,
        /// Bytes decoded, modulo 2^32.
        found: u32,
        /// ISIZE in the trailer.
        expected: u32,
    },
    /// A zstd frame that is damaged.
    #[error("zstd: frame at byte {frame}, near byte {at}: {problem}")]
    Zstd {
        /// The first byte of the frame.
        frame: BlobOffset,
        /// Near where it went wrong.
        at: BlobOffset,
        /// What is wrong.
        problem: &'static str,
    },
    /// A zstd frame that needs more memory to decode than is given to any blob.
    #[error("zstd: frame at byte {at}: its window of {size} bytes is beyond the limit of {limit} bytes")]
    ZstdWindow {
        /// The first byte of the frame.
        at: BlobOffset,
        /// Window that the frame asks for.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A zstd frame that was made with a dictionary, which a layer cannot carry.
    #[error("zstd: frame at byte {at}: it needs dictionary {id}")]
    ZstdDictionary {
        /// The first byte of the frame.
        at: BlobOffset,
        /// The dictionary's number.
        id: u32,
    },
    /// A span's part of the blob does not decode to the span's bytes: the blob or the index is damaged.
    #[error("a span does not decode: {problem}")]
    Span {
        /// What is wrong.
        problem: &'static str,
    },
    /// A tar that cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The decoder was asked to go on after an error.
    #[error("the blob was given up after an earlier error")]
    GivenUp,
}
