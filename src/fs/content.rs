//! Reads the bytes of regular files through the cache of spans.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::layers::SlotLayer;
use super::{CacheCounters, SpanBytes, SpanCache, SpanFault, SpanKey};
use crate::error::chain_text;
use crate::index::{EntryId, Layer, Piece, ReadError, SpanId};
use crate::layer::TarOffset;
use crate::os::ignore_poison;

/// The bytes of a read: a range of a cached span, which is not copied, or a buffer.
#[derive(Debug)]
pub struct FileBytes(BytesStorage);

#[derive(Debug)]
enum BytesStorage {
    Span(SpanBytes, Range<usize>),
    Buffer(Vec<u8>),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BytesStorage::Span(span, range) => &span[range.clone()],
            BytesStorage::Buffer(bytes) => bytes,
        }
    }
}

/// Reads file content through the cache.
#[derive(Debug)]
pub(super) struct ContentReader {
    cache: SpanCache,
    errors: ReadErrorLog,
}

impl ContentReader {
    pub(super) fn new(cache: SpanCache) -> Self {
        Self { cache, errors: ReadErrorLog::default() }
    }

    /// Reads up to `len` bytes of a regular file from `offset` on, fewer only at its end.
    pub(super) fn read(
        &self,
        (slot, layer): &SlotLayer,
        entry: EntryId,
        offset: u64,
        len: u32,
    ) -> Result<FileBytes, SpanFault<ReadError>> {
        self.read_pieces(*slot, layer, &layer.pieces(entry, offset, len.into()))
    }

    /// Reads pieces of a layer, in this order.
    pub(super) fn read_pieces(
        &self,
        slot: u32,
        layer: &Arc<Layer>,
        pieces: &[Piece],
    ) -> Result<FileBytes, SpanFault<ReadError>> {
        match pieces {
            [] => Ok(FileBytes(BytesStorage::Buffer(Vec::new()))),
            [Piece::Data { tar, len }] => match self.read_within_span(slot, layer, *tar, *len)? {
                Some(bytes) => Ok(bytes),
                None => self.copy_pieces(slot, layer, pieces),
            },
            _ => self.copy_pieces(slot, layer, pieces),
        }
    }

    /// Decodes a span into the cache before a reader asks for it, unless it is there or another thread is decoding it. A span that cannot
    /// be decoded is an error of its readers.
    pub(super) fn decode_ahead(&self, slot: u32, layer: &Arc<Layer>, span: SpanId) {
        if !self.cache.holds(span_key(slot, layer, span)) {
            let _ = self.span(slot, layer, span);
        }
    }

    /// Drops all decoded spans.
    pub(super) fn drop_caches(&self) {
        self.cache.clear();
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.cache.counters()
    }

    /// Reads bytes within one span, without copying them. Returns `None` if they lie in several spans.
    fn read_within_span(
        &self,
        slot: u32,
        layer: &Arc<Layer>,
        tar: TarOffset,
        len: u64,
    ) -> Result<Option<FileBytes>, SpanFault<ReadError>> {
        let (span, range) = span_at(layer, tar);
        if tar.get() + len > range.end {
            return Ok(None);
        }
        let bytes = self.span(slot, layer, span)?;
        let start = memory_len(tar.get() - range.start);
        Ok(Some(FileBytes(BytesStorage::Span(bytes, start..start + memory_len(len)))))
    }

    /// Copies pieces, which may be holes and lie in several spans, into one buffer.
    fn copy_pieces(
        &self,
        slot: u32,
        layer: &Arc<Layer>,
        pieces: &[Piece],
    ) -> Result<FileBytes, SpanFault<ReadError>> {
        let total: u64 = pieces.iter().map(|(Piece::Hole { len } | Piece::Data { len, .. })| len).sum();
        let mut out = Vec::with_capacity(memory_len(total));
        for piece in pieces {
            match *piece {
                Piece::Hole { len } => out.resize(out.len() + memory_len(len), 0),
                Piece::Data { tar, len } => {
                    let (mut at, end) = (tar.get(), tar.get() + len);
                    while at < end {
                        let (span, range) = span_at(layer, TarOffset::new(at));
                        let bytes = self.span(slot, layer, span)?;
                        let stop = end.min(range.end);
                        let within = memory_len(at - range.start)..memory_len(stop - range.start);
                        out.extend_from_slice(&bytes[within]);
                        at = stop;
                    }
                }
            }
        }
        Ok(FileBytes(BytesStorage::Buffer(out)))
    }

    /// Returns the bytes of a span. Logs a failed decode once, not once for each waiting reader.
    fn span(&self, slot: u32, layer: &Arc<Layer>, span: SpanId) -> Result<SpanBytes, SpanFault<ReadError>> {
        let key = span_key(slot, layer, span);
        let result = self.cache.get_or_decode(key, || layer.decode_span(span));
        match &result {
            Err(SpanFault::Decode(error)) => self.errors.log(&chain_text(error)),
            Err(fault @ SpanFault::Deadline(_)) => {
                self.errors.log(&format!("blob {}: span {span}: {fault}", layer.index().layer()));
            }
            Err(SpanFault::Shared) | Ok(_) => {}
        }
        result
    }
}

fn span_key(slot: u32, layer: &Layer, span: SpanId) -> SpanKey {
    SpanKey { layer: slot, version: layer.index().version(), span: span.get() }
}

/// Returns the span that contains a byte of file content, and the span's range in the tar.
fn span_at(layer: &Layer, at: TarOffset) -> (SpanId, Range<u64>) {
    let span =
        layer.index().span_at(at).expect("content lies within the tar: checked when the index was opened");
    (span, layer.index().span_range(span))
}

/// Converts a length within a span or a request.
fn memory_len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("spans and requests are smaller than the address space")
}

/// Logs read errors at a limited rate: a damaged blob may be read a thousand times a second.
#[derive(Debug)]
struct ReadErrorLog {
    /// Start of the current window, and the number of errors in it.
    window: Mutex<(Instant, u32)>,
}

impl Default for ReadErrorLog {
    fn default() -> Self {
        Self { window: Mutex::new((Instant::now(), 0)) }
    }
}

impl ReadErrorLog {
    const PER_WINDOW: u32 = 20;
    const WINDOW: Duration = Duration::from_secs(10);

    fn log(&self, message: &str) {
        let mut window = ignore_poison(self.window.lock());
        if window.0.elapsed() >= Self::WINDOW {
            if window.1 > Self::PER_WINDOW {
                let suppressed = window.1 - Self::PER_WINDOW;
                tracing::error!("{suppressed} more read errors were not logged");
            }
            *window = (Instant::now(), 0);
        }
        window.1 += 1;
        if window.1 <= Self::PER_WINDOW {
            tracing::error!("{message}");
        }
    }
}
