//! Reads the bytes of regular files through the cache of spans, and decodes ahead of sequential readers.

use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::layers::SlotLayer;
use super::{CacheCounters, Ino, SpanBytes, SpanCache, SpanFault, SpanKey};
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
    spans: Arc<SpanReader>,
    ahead: Option<ReadAhead>,
}

#[derive(Debug)]
struct SpanReader {
    cache: SpanCache,
    errors: ReadErrorLog,
}

impl ContentReader {
    pub(super) fn new(cache: SpanCache, read_ahead: bool) -> Self {
        let spans = Arc::new(SpanReader { cache, errors: ReadErrorLog::default() });
        let ahead = read_ahead.then(|| ReadAhead::start(&spans));
        Self { spans, ahead }
    }

    /// Reads up to `len` bytes of a regular file from `offset` on, fewer only at its end.
    pub(super) fn read(
        &self,
        ino: Ino,
        (slot, layer): &SlotLayer,
        entry: EntryId,
        offset: u64,
        len: u32,
    ) -> Result<FileBytes, SpanFault<ReadError>> {
        let pieces = layer.pieces(entry, offset, len.into());
        let bytes = self.read_pieces(*slot, layer, &pieces)?;
        if let (Some(ahead), Some(Piece::Data { tar, len })) = (&self.ahead, pieces.last()) {
            let read = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if ahead.is_sequential(ino, offset, offset.saturating_add(read)) {
                ahead.request_next(&self.spans, *slot, layer, entry, offset + read, tar.get() + len);
            }
        }
        Ok(bytes)
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

    /// Decodes a span into the cache before a reader asks for it. Returns its length, or 0 if it is there already or another thread is
    /// decoding it.
    pub(super) fn decode_ahead(
        &self,
        slot: u32,
        layer: &Arc<Layer>,
        span: SpanId,
    ) -> Result<usize, SpanFault<ReadError>> {
        if self.spans.cache.holds(span_key(slot, layer, span)) {
            return Ok(0);
        }
        self.spans.get(slot, layer, span).map(|bytes| bytes.len())
    }

    /// Drops all decoded spans.
    pub(super) fn drop_caches(&self) {
        self.spans.cache.clear();
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.spans.cache.counters()
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
        let bytes = self.spans.get(slot, layer, span)?;
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
                        let bytes = self.spans.get(slot, layer, span)?;
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
}

impl SpanReader {
    /// Returns the bytes of a span. Logs a failed decode once, not once for each waiting reader.
    fn get(&self, slot: u32, layer: &Arc<Layer>, span: SpanId) -> Result<SpanBytes, SpanFault<ReadError>> {
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

/// Decodes the next span of a sequential reader in the background.
#[derive(Debug)]
struct ReadAhead {
    queue: SyncSender<ReadAheadRequest>,
    /// For recently read inodes, a hash of the inode number and the offset at which its last read ended. A collision
    /// costs one useless or one missing decode, never a wrong byte.
    ends: Box<[AtomicU64]>,
}

#[derive(Debug)]
struct ReadAheadRequest {
    layer: Arc<Layer>,
    slot: u32,
    span: SpanId,
}

impl ReadAhead {
    const THREADS: usize = 2;
    /// Length of the queue. With a longer queue, the reader would reach the span first.
    const QUEUE: usize = 4;
    const STREAMS: usize = 256;

    fn start(spans: &Arc<SpanReader>) -> Self {
        let (queue, requests) = sync_channel(Self::QUEUE);
        let requests = Arc::new(Mutex::new(requests));
        for number in 0..Self::THREADS {
            let (spans, requests) = (Arc::clone(spans), Arc::clone(&requests));
            let thread = thread::Builder::new().name(format!("read-ahead-{number}"));
            if let Err(error) = thread.spawn(move || Self::work(&spans, &requests)) {
                tracing::warn!("cannot start a read-ahead thread: {error}");
            }
        }
        let ends = (0..Self::STREAMS).map(|_| AtomicU64::new(0)).collect();
        Self { queue, ends }
    }

    /// Decodes requested spans until the queue's sender is dropped.
    fn work(spans: &SpanReader, requests: &Mutex<Receiver<ReadAheadRequest>>) {
        loop {
            let next = ignore_poison(requests.lock()).recv();
            let Ok(ReadAheadRequest { layer, slot, span }) = next else { return };
            // `get` logs a failure; the reader that reaches the span tries again.
            let decode = AssertUnwindSafe(|| drop(spans.get(slot, &layer, span)));
            if catch_unwind(decode).is_err() {
                tracing::error!("read-ahead panicked");
            }
        }
    }

    /// Records a read, and returns whether it continued where the last read of this inode ended.
    fn is_sequential(&self, ino: Ino, start: u64, end: u64) -> bool {
        let mix = |at: u64| (ino.get() ^ at.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let stream = memory_len(ino.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % self.ends.len();
        self.ends[stream].swap(mix(end), Ordering::Relaxed) == mix(start) && start > 0
    }

    /// Queues the span after the one in which a read ended, if the file continues there. `offset` and `tar_end` are the
    /// end of the read in the file and in the tar.
    fn request_next(
        &self,
        spans: &SpanReader,
        slot: u32,
        layer: &Arc<Layer>,
        entry: EntryId,
        offset: u64,
        tar_end: u64,
    ) {
        let (_, range) = span_at(layer, TarOffset::new(tar_end - 1));
        let next = layer.pieces(entry, offset + (range.end - tar_end), 1);
        let Some(Piece::Data { tar, .. }) = next.first() else { return };
        let (span, _) = span_at(layer, *tar);
        if !spans.cache.holds(span_key(slot, layer, span)) {
            // A full queue means that the processors are busy.
            let _ = self.queue.try_send(ReadAheadRequest { layer: Arc::clone(layer), slot, span });
        }
    }
}
