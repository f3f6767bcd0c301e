//! One layer's blob: its codec, positions at which decoding can resume, and the entries of its tar.
//!
//! A blob is read once, front to back, as a sequence of *spans*: parts of the tar that can later be decoded on their own.
//! The tar walk reads the bytes of the spans as one stream.
//!
//! The files in order of dependency (each uses only those above it):
//!
//! | file | what it does |
//! |---|---|
//! | [`name`] | validates the names of tar members |
//! | [`tar`] | walks over a tar and returns its entries |
//! | `error` | the errors of a blob |
//! | `input` | reads a blob and tracks the position in it |
//! | `bits`, `huffman`, `deflate` | walk over deflate data without decoding it |
//! | `inflate` | decodes deflate data with zlib-rs |
//! | `window` | finds and restores the bytes before a checkpoint |
//! | `gzip_member` | reads headers and trailers of gzip members |
//! | `zstd_blocks` | follows the blocks of a zstd frame without decoding them |
//! | `gzip`, `zstd` | decode a gzip or zstd blob into spans |
//! | `spans` | decodes any blob into spans |
//! | `write` | writes the members of a new tar |
//! | `resume` | decodes a span again |

mod bits;
mod deflate;
mod error;
mod gzip;
mod gzip_member;
mod huffman;
mod inflate;
mod input;
pub mod name;
mod resume;
mod spans;
pub mod tar;
mod window;
mod write;
mod zstd;
mod zstd_blocks;

use std::fmt;

pub use error::LayerError;
pub use name::{LayerPath, MemberName, NameError, Printable, is_leftover};
pub use resume::decode_span;
pub use spans::SpanDecoder;
pub use tar::{EntryKind, FileContent, Segment, TarEntry, TarError, TarFault, TarWalk, Timestamp, Xattrs};
pub(crate) use write::{DataRanges, MemberWriter, NewMember};

/// Declares a type for byte positions in one kind of data, which must not be mixed up with positions in other data.
macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// The position `bytes` bytes after the start.
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
    /// A position in a layer's blob as served (compressed, unless the codec is [`Codec::Tar`]).
    BlobOffset
}
offset! {
    /// A position in a layer's uncompressed tar.
    TarOffset
}

/// The compression of a blob, recognised by the blob's first bytes. Media types are not trusted.
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
    /// Number of bytes that are read ahead to recognise the compression, unless the blob is shorter.
    pub const SNIFF_LEN: usize = 10;

    /// Recognises the codec by a blob's first bytes. A blob without a known magic number is a plain tar.
    #[must_use]
    pub fn sniff(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A blob may start with a skippable frame: magic 0x184D2A50 to 0x184D2A5F, little-endian.
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

/// The length of spans, in bytes of the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLimits {
    /// Target length. A span ends at the first suitable position after three quarters of it.
    pub target: usize,
    /// Maximum length.
    pub max: usize,
}

impl SpanLimits {
    /// The limits for layers in a store. A random read decodes a whole span, so shorter spans make reads faster and the
    /// index larger.
    pub const PRODUCTION: Self = Self { target: 256 << 10, max: 320 << 10 };
}

/// The bytes before a checkpoint that the deflate stream refers to after the checkpoint.
///
/// Deflate refers back at most 32 KiB. Only about 10 % of these bytes are ever used, so the others are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// The used parts as (start, length), ascending and not adjacent. `start` counts from 32 KiB before the checkpoint: if a
    /// member has only 100 bytes before the checkpoint, its first byte is at 32668.
    pub runs: Vec<(u16, u16)>,
    /// The bytes of all runs, concatenated.
    pub bytes: Vec<u8>,
}

/// The state needed to resume decoding at the start of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// The blob is not compressed.
    Stored,
    /// A gzip member starts here.
    GzipMember,
    /// A position inside a deflate stream.
    Deflate {
        /// Number of bits of the span's first blob byte that belong to the previous span, 0 to 7.
        skip_bits: u8,
        /// If the span starts inside a block: the block's header, which must be decoded first.
        block: Option<BlockHeader>,
        /// The earlier bytes that the span refers to.
        window: Window,
    },
    /// A zstd frame (or a skippable frame) starts here. The span consists of whole frames.
    ZstdFrame,
}

/// Header of the deflate block in which a span starts (RFC 1951, 3.2.3): from BFINAL to the last bit of the Huffman
/// code lengths. Decoding needs its tables before the first symbol of the span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Position in the blob, in bits: 8 for each byte, and within a byte from the least significant bit.
    pub start_bit: u64,
    /// Length in bits. The header of a stored block extends to the end of NLEN.
    pub bits: u32,
    /// For a stored block: how many of its bytes are before the span, so that LEN can be reduced to the rest. Zero for
    /// other block types.
    pub stored_before: u16,
}

impl BlockHeader {
    /// The bytes of the blob that contain the header, from the byte with its first bit to the byte with its last.
    #[must_use]
    pub fn bytes(&self) -> std::ops::Range<u64> {
        self.start_bit / 8..(self.start_bit + u64::from(self.bits)).div_ceil(8)
    }
}

/// A span, decoded for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedSpan {
    /// How to decode the span again. `None` if that is impossible, because the span is part of a zstd frame longer than the
    /// limit. The caller must then store the bytes in another form.
    pub checkpoint: Option<Checkpoint>,
    /// The bytes of the blob needed to decode the span again, from the byte with its first bit to the byte with its last.
    /// Consecutive spans of a deflate stream may share a byte. Bytes without content may lie between two spans: gzip
    /// trailers, skippable frames, many empty blocks.
    ///
    /// Without a checkpoint: the whole blocks of the zstd frame that the span needs and no earlier span of the frame does. The
    /// first such range starts with the frame's header, and each of the others where the one before it ends. A range is empty
    /// if the span lies in the last block of the span before it.
    pub blob: std::ops::Range<u64>,
    /// Without a checkpoint: whether this is another span of the same zstd frame as the span before it.
    pub continues_frame: bool,
    /// The span's bytes of the tar. Never empty.
    pub bytes: Vec<u8>,
}
