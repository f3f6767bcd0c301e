//! The bytes of a blob that a span is decoded from, and their hashes.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::format::{SPAN_HASH_AT, SPAN_LEN, Section, SpanKind};
use super::records::{array, record};
use super::{Index, SpanId};

/// Bytes of a range that are read at once. Few spans are longer.
const STEP: usize = 1 << 20;

/// A blob of which any range can be read.
pub trait ReadBlob {
    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    /// The blob cannot be read, or ends before.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadBlob for File {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, out, offset)
    }
}

impl ReadBlob for [u8] {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(start..start.saturating_add(out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// The BLAKE3 hash of a range of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeHash([u8; 32]);

impl RangeHash {
    /// The hash of the bytes of a whole range.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RangeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from_bytes(self.0).to_hex().fmt(f)
    }
}

/// The bytes of the blob that a span is decoded from. [`format`](mod@super::format) specifies how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRange {
    /// The range.
    pub bytes: Range<u64>,
    /// The hash of exactly these bytes.
    pub hash: RangeHash,
    /// How the span is decoded from them.
    pub kind: RangeKind,
}

/// How a span is decoded from its range of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// From its checkpoint, with these bytes alone.
    Checkpoint,
    /// As the start of a zstd frame.
    FrameStart,
    /// As more of the zstd frame that the range of the span before belongs to. Needs all ranges from [`RangeKind::FrameStart`] on.
    FrameRest,
}

impl<D: AsRef<[u8]>> Index<D> {
    /// The bytes of the blob that a span is decoded from; `None` if the index is outdated and lacks hashes.
    ///
    /// # Panics
    /// `id` is not a span of this layer.
    pub fn blob_range(&self, id: SpanId) -> Option<BlobRange> {
        if self.is_outdated() {
            return None;
        }
        let span = self.span_record(id.index());
        let bytes = record(self.section(Section::Spans), id.index(), SPAN_LEN);
        Some(BlobRange {
            bytes: span.blob..span.blob + span.blob_len,
            hash: RangeHash(array(bytes, SPAN_HASH_AT)),
            kind: match span.kind {
                SpanKind::LongFrame => RangeKind::FrameStart,
                SpanKind::LongFrameRest => RangeKind::FrameRest,
                SpanKind::Stored | SpanKind::GzipMember | SpanKind::Deflate | SpanKind::ZstdFrame => {
                    RangeKind::Checkpoint
                }
            },
        })
    }
}

/// Hashes a range of a blob in bounded memory.
pub(super) fn hash_range(blob: &(impl ReadBlob + ?Sized), range: &Range<u64>) -> io::Result<RangeHash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        buffer.resize(usize::try_from(range.end - at).unwrap_or(STEP).min(STEP), 0);
        blob.read_exact_at(&mut buffer, at)?;
        hasher.update(&buffer);
        at += buffer.len() as u64;
    }
    Ok(RangeHash(*hasher.finalize().as_bytes()))
}
