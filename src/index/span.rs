//! The spans of an index.

use std::ops::Range;

use super::format::{NO_BLOCK, SPAN_HASH_AT, SPAN_LEN, Section, SpanKind};
use super::records::{SpanRecord, record, u16_at, u32_at, u64_at};
use super::{Index, SpanId};
use crate::layer::TarOffset;

impl<D: AsRef<[u8]>> Index<D> {
    /// The number of spans.
    pub fn span_count(&self) -> usize {
        self.count(Section::Spans, self.span_len())
    }

    /// All spans, in the order of the tar.
    pub fn spans(&self) -> impl Iterator<Item = SpanId> + use<D> {
        let count = u32::try_from(self.span_count()).expect("ordinals were validated at open");
        (0..count).map(SpanId::new)
    }

    /// The span that contains a byte of the tar; `None` after the end of the tar.
    pub fn span_at(&self, at: TarOffset) -> Option<SpanId> {
        if at.get() >= self.tar_size() {
            return None;
        }
        let (mut low, mut high) = (0, self.span_count());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.span_start(middle) <= at.get() {
                low = middle;
            } else {
                high = middle;
            }
        }
        u32::try_from(low).ok().map(SpanId::new)
    }

    /// The range of the tar that a span contains.
    ///
    /// # Panics
    /// `id` is not a span of this layer.
    pub fn span_range(&self, id: SpanId) -> Range<u64> {
        let end = match id.index() + 1 < self.span_count() {
            true => self.span_start(id.index() + 1),
            false => self.tar_size(),
        };
        self.span_start(id.index())..end
    }

    pub(super) fn span_record(&self, ordinal: usize) -> SpanRecord {
        let bytes = record(self.section(Section::Spans), ordinal, self.span_len());
        let mut span = SpanRecord {
            tar: u64_at(bytes, 0),
            blob: u64_at(bytes, 8),
            blob_len: u64_at(bytes, 16),
            seekable: 0,
            seekable_len: 0,
            crc: u32_at(bytes, 24),
            kind: SpanKind::of(bytes[28]).unwrap_or(SpanKind::Stored),
            skip_bits: bytes[29],
            window_ordinal: u16_at(bytes, 30),
            window_group: u32_at(bytes, 32),
            block_bits: u32_at(bytes, 36),
            block_start: u64_at(bytes, 40),
            stored_before: u16_at(bytes, 48),
        };
        if span.kind.is_seekable() {
            (span.seekable, span.seekable_len) = match self.is_outdated() {
                true => (std::mem::take(&mut span.blob), std::mem::take(&mut span.blob_len)),
                false => (span.block_start, span.block_bits.into()),
            };
            (span.block_start, span.block_bits) = (NO_BLOCK, 0);
        }
        span
    }

    /// The length of a span record in bytes.
    pub(super) fn span_len(&self) -> usize {
        if self.is_outdated() { SPAN_HASH_AT } else { SPAN_LEN }
    }

    /// The offset in the tar at which a span starts.
    fn span_start(&self, ordinal: usize) -> u64 {
        u64_at(record(self.section(Section::Spans), ordinal, self.span_len()), 0)
    }
}
