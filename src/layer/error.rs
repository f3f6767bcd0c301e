//! Errors from reading a layer's blob.

use std::io;

use super::{BlobOffset, Codec, TarError};
use crate::error::ErrorCode;

/// A layer's blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is compressed with a program that layers of images must not use.
    #[error("the layer is compressed with {0}, which is not supported (only gzip and zstd are)")]
    Compression(&'static str),
    /// The reader of the blob failed.
    #[error("cannot read the blob at byte {at}")]
    Read {
        /// Position of the next byte to read.
        at: BlobOffset,
        /// The reader's error.
        #[source]
        source: io::Error,
    },
    /// The blob ends inside a member or frame.
    #[error("{codec}: the blob ends at byte {at}, in the middle of a {part}")]
    Truncated {
        /// The blob's codec.
        codec: Codec,
        /// The incomplete part.
        part: &'static str,
        /// Length of the blob.
        at: BlobOffset,
    },
    /// The last member or frame is followed by bytes that do not start another one.
    #[error("{codec}: unexpected data after the end, at byte {at}")]
    TrailingGarbage {
        /// The blob's codec.
        codec: Codec,
        /// The first unexpected byte.
        at: BlobOffset,
    },
    /// The header of a gzip member violates RFC 1952 or exceeds a limit.
    #[error("gzip: member header at byte {at}: {problem}")]
    GzipHeader {
        /// The first byte of the header.
        at: BlobOffset,
        /// The violated rule.
        problem: &'static str,
    },
    /// The content of a gzip member is not valid deflate data.
    #[error("gzip: invalid deflate data at byte {at}: {problem}")]
    Deflate {
        /// Approximate position of the invalid data.
        at: BlobOffset,
        /// The decoder's message.
        problem: String,
    },
    /// The decoded content of a gzip member does not match the checksum in its trailer.
    #[error("gzip: member at byte {at}: checksum is {actual:08x}, but the trailer declares {expected:08x}")]
    GzipChecksum {
        /// The first byte of the member.
        at: BlobOffset,
        /// CRC-32 of the decoded content.
        actual: u32,
        /// CRC-32 in the trailer.
        expected: u32,
    },
    /// The decoded content of a gzip member does not have the length in its trailer.
    #[error(
        "gzip: member at byte {at}: length is {actual}, but the trailer declares {expected} (modulo 4 GiB)"
    )]
    GzipLength {
        /// The first byte of the member.
        at: BlobOffset,
        /// Length of the decoded content, modulo 2^32.
        actual: u32,
        /// ISIZE in the trailer.
        expected: u32,
    },
    /// A zstd frame is damaged.
    #[error("zstd: frame at byte {frame}, near byte {at}: {problem}")]
    Zstd {
        /// The first byte of the frame.
        frame: BlobOffset,
        /// Approximate position of the damage.
        at: BlobOffset,
        /// The decoder's message.
        problem: &'static str,
    },
    /// Decoding a zstd frame needs more memory than the limit.
    #[error("zstd: frame at byte {at}: window of {size} bytes exceeds the limit of {limit} bytes")]
    ZstdWindow {
        /// The first byte of the frame.
        at: BlobOffset,
        /// Window size of the frame.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A zstd frame was compressed with a dictionary. A layer cannot carry one.
    #[error("zstd: frame at byte {at}: requires dictionary {id}, and dictionaries are not supported")]
    ZstdDictionary {
        /// The first byte of the frame.
        at: BlobOffset,
        /// The dictionary's ID.
        id: u32,
    },
    /// Part of a stored blob does not decode to the expected span: the blob or the index is damaged.
    #[error("cannot decode the span: {problem}")]
    Span {
        /// The reason.
        problem: &'static str,
    },
    /// The tar in the blob is invalid.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The decoder was called again after it had returned an error.
    #[error("decoding has already failed")]
    AlreadyFailed,
}

impl LayerError {
    /// The bytes of the blob end before the span does.
    pub(super) const SPAN_TOO_SHORT: Self = Self::Span { problem: "the blob ends before the span does" };

    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Read { source, .. } => ErrorCode::of_io(source),
            Self::Compression(_) => ErrorCode::UnsupportedImage,
            Self::Truncated { .. }
            | Self::TrailingGarbage { .. }
            | Self::GzipHeader { .. }
            | Self::Deflate { .. }
            | Self::GzipChecksum { .. }
            | Self::GzipLength { .. }
            | Self::Zstd { .. }
            | Self::ZstdDictionary { .. } => ErrorCode::Layer,
            Self::ZstdWindow { .. } => ErrorCode::LayerLimit,
            Self::Span { .. } => ErrorCode::Damaged,
            Self::Tar(error) => error.code(),
            Self::AlreadyFailed => ErrorCode::Internal,
        }
    }
}
