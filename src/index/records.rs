//! Reads the fixed-size records of an index file: slicing and little-endian numbers only. `validate.rs` checks their meaning
//! before anything else reads them.

use std::ops::Range;

use super::format::{KindByte, SpanKind};
use crate::layer::Timestamp;

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// Returns record `ordinal` of a section whose records have `length` bytes.
pub(super) fn record(section: &[u8], ordinal: usize, length: usize) -> &[u8] {
    &section[ordinal * length..(ordinal + 1) * length]
}

/// Returns the range of an element of a heap. `end` returns the end of an element.
pub(super) fn between(end: impl Fn(usize) -> u32, ordinal: usize) -> Range<usize> {
    let start = if ordinal == 0 { 0 } else { end(ordinal - 1) };
    start as usize..end(ordinal) as usize
}

/// A decoded span record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanRecord {
    pub(super) tar: u64,
    /// The range of the blob that the span is decoded from; empty for a long zstd frame in an index of version 2.
    pub(super) blob: u64,
    pub(super) blob_len: u64,
    /// The range of the seekable file; empty unless the span is there.
    pub(super) seekable: u64,
    pub(super) seekable_len: u64,
    pub(super) crc: u32,
    pub(super) kind: SpanKind,
    pub(super) skip_bits: u8,
    pub(super) window_ordinal: u16,
    pub(super) window_group: u32,
    pub(super) block_bits: u32,
    pub(super) block_start: u64,
    pub(super) stored_before: u16,
}

impl SpanRecord {
    /// The range that is read to decode the span: in the seekable file if the span is there, otherwise in the blob.
    pub(super) fn data(&self) -> (u64, u64) {
        if self.kind.is_seekable() { (self.seekable, self.seekable_len) } else { (self.blob, self.blob_len) }
    }
}

/// A decoded window group record.
#[derive(Debug, Clone)]
pub(super) struct GroupRecord {
    pub(super) heap: Range<usize>,
    pub(super) raw_len: usize,
}

/// A decoded attribute record.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryAttr {
    pub(super) kind: KindByte,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: u32,
}

pub(super) fn attr_of(bytes: &[u8]) -> Option<EntryAttr> {
    Some(EntryAttr {
        kind: KindByte::of(bytes[0])?,
        mode: u16_at(bytes, 2),
        uid: u32_at(bytes, 4),
        gid: u32_at(bytes, 8),
        mtime: Timestamp { nsec: u32_at(bytes, 12), sec: i64::from_le_bytes(array(bytes, 16)) },
        xattrs: u32_at(bytes, 24),
    })
}
