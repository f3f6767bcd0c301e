//! Bytes of regular files: which spans hold them, from the cache or decoded now, and which will be wanted next.

use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::chain;
use super::{CacheCounters, FsError, Ino, SpanBytes, SpanCache, SpanFault, SpanKey};
use crate::index::{EntryId, Layer, Piece, ReadError, SpanId};
use crate::layer::TarOffset;

/// Bytes that were read: a stretch of a cached span, which is not copied, or a buffer of their own.
#[derive(Debug)]
pub struct FileBytes(BytesStorage);

#[derive(Debug)]
enum BytesStorage {
    Span(SpanBytes, Range<usize>),
    Own(Vec<u8>),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BytesStorage::Span(span, range) => &span[range.clone()],
            BytesStorage::Own(bytes) => bytes,
        }
    }
}

/// A layer and its slot.
pub(super) type SlotLayer = (u32, Arc<Layer>);

/// Reads content through the cache.
#[derive(Debug)]
pub(super) struct ContentReader {
    spans: Arc<SpanReader>,
    ahead: Option<ReadAhead>,
}

#[derive(Debug)]
struct SpanReader {
    cache: SpanCache,
    reports: ErrorLog,
}

impl ContentReader {
    pub(super) fn new(cache: SpanCache, read_ahead: bool) -> Self {
        let spans = Arc::new(SpanReader { cache, reports: ErrorLog::default() });
        let ahead = read_ahead.then(|| ReadAhead::start(&spans));
        Self { spans, ahead }
    }

    /// Up to `len` bytes of a regular file from `offset` on, fewer only at its end.
    pub(super) fn read(
        &self,
        ino: Ino,
        (slot, layer): &SlotLayer,
        entry: EntryId,
        offset: u64,
        len: u32,
    ) -> Result<FileBytes, FsError> {
        let pieces = layer.pieces(entry, offset, len.into());
        let bytes = match pieces.as_slice() {
            [] => return Ok(FileBytes(BytesStorage::Own(Vec::new()))),
            [Piece::Data { tar, len }] => match self.within_one_span(*slot, layer, *tar, *len)? {
                Some(bytes) => bytes,
                None => self.gather(*slot, layer, &pieces)?,
            },
            _ => self.gather(*slot, layer, &pieces)?,
        };
        if let (Some(ahead), Some(Piece::Data { tar, len })) = (&self.ahead, pieces.last()) {
            let read = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if ahead.goes_on(ino, offset, offset.saturating_add(read)) {
                ahead.want_behind(&self.spans, *slot, layer, entry, offset + read, tar.get() + len);
            }
        }
        Ok(bytes)
    }

    /// Forgets all decoded spans.
    pub(super) fn drop_caches(&self) {
        self.spans.cache.clear();
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.spans.cache.counters()
    }

    fn within_one_span(
        &self,
        slot: u32,
        layer: &Arc<Layer>,
        tar: TarOffset,
        len: u64,
    ) -> Result<Option<FileBytes>, FsError> {
        let (span, range) = span_at(layer, tar);
        if tar.get() + len > range.end {
            return Ok(None);
        }
        let bytes = self.spans.get(slot, layer, span).map_err(FsError::Content)?;
        let start = place(tar.get() - range.start);
        Ok(Some(FileBytes(BytesStorage::Span(bytes, start..start + place(len)))))
    }

    fn gather(&self, slot: u32, layer: &Arc<Layer>, pieces: &[Piece]) -> Result<FileBytes, FsError> {
        let total: u64 = pieces.iter().map(|(Piece::Hole { len } | Piece::Data { len, .. })| len).sum();
        let mut out = Vec::with_capacity(place(total));
        for piece in pieces {
            match *piece {
                Piece::Hole { len } => out.resize(out.len() + place(len), 0),
                Piece::Data { tar, len } => {
                    let (mut at, end) = (tar.get(), tar.get() + len);
                    while at < end {
                        let (span, range) = span_at(layer, TarOffset::new(at));
                        let bytes = self.spans.get(slot, layer, span).map_err(FsError::Content)?;
                        let stop = end.min(range.end);
                        out.extend_from_slice(&bytes[place(at - range.start)..place(stop - range.start)]);
                        at = stop;
                    }
                }
            }
        }
        Ok(FileBytes(BytesStorage::Own(out)))
    }
}

impl SpanReader {
    /// A span's bytes. What goes wrong is reported here, once for all who wait for it.
    fn get(&self, slot: u32, layer: &Arc<Layer>, span: SpanId) -> Result<SpanBytes, SpanFault<ReadError>> {
        let key = SpanKey { layer: slot, span: span.get() };
        let result = self.cache.get_or_decode(key, || layer.decode_span(span));
        match &result {
            Err(SpanFault::Decode(error)) => self.reports.error(&chain(error)),
            Err(fault @ SpanFault::Deadline(_)) => {
                self.reports.error(&format!("blob {}: span {span}: {fault}", layer.index().layer()));
            }
            Err(SpanFault::Shared) | Ok(_) => {}
        }
        result
    }
}

/// The span that holds a byte of a file's content, and its bytes of the tar.
fn span_at(layer: &Layer, at: TarOffset) -> (SpanId, Range<u64>) {
    let span = layer.index().span_at(at).expect("content lies within the tar, as was checked at open");
    (span, layer.index().span_range(span))
}

/// A length within a span or a request as an index into memory.
fn place(bytes: u64) -> usize {
    usize::try_from(bytes).expect("spans and requests are shorter than the address space")
}

/// Errors in the log, but no flood of them: a damaged blob may be read a thousand times a second.
#[derive(Debug)]
struct ErrorLog {
    window: Mutex<(Instant, u32)>,
}

impl Default for ErrorLog {
    fn default() -> Self {
        Self { window: Mutex::new((Instant::now(), 0)) }
    }
}

impl ErrorLog {
    const PER_WINDOW: u32 = 20;
    const WINDOW: Duration = Duration::from_secs(10);

    fn error(&self, message: &str) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() >= Self::WINDOW {
            if window.1 > Self::PER_WINDOW {
                let kept_back = window.1 - Self::PER_WINDOW;
                tracing::error!("{kept_back} more read errors were not logged");
            }
            *window = (Instant::now(), 0);
        }
        window.1 += 1;
        if window.1 <= Self::PER_WINDOW {
            tracing::error!("{message}");
        }
    }
}

/// Decodes, in the background, the span behind the one that a forward reader is in.
#[derive(Debug)]
struct ReadAhead {
    queue: SyncSender<ReadAheadRequest>,
    /// For some recently read inodes, a hash of the inode and where its last read ended. Collisions cost a span decoded
    /// in vain or not early; never a wrong byte.
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
    /// Behind a longer queue the reader would be there first.
    const QUEUE: usize = 4;
    const STREAMS: usize = 256;

    fn start(spans: &Arc<SpanReader>) -> Self {
        let (queue, wanted) = sync_channel(Self::QUEUE);
        let wanted = Arc::new(Mutex::new(wanted));
        for number in 0..Self::THREADS {
            let (spans, wanted) = (Arc::clone(spans), Arc::clone(&wanted));
            let thread = thread::Builder::new().name(format!("read-ahead-{number}"));
            if let Err(error) = thread.spawn(move || Self::work(&spans, &wanted)) {
                tracing::warn!("no thread for reading ahead: {error}");
            }
        }
        let ends = (0..Self::STREAMS).map(|_| AtomicU64::new(0)).collect();
        Self { queue, ends }
    }

    /// Ends when the queue's sender is dropped.
    fn work(spans: &SpanReader, queue: &Mutex<Receiver<ReadAheadRequest>>) {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(ReadAheadRequest { layer, slot, span }) = next else { return };
            // `get` has reported what goes wrong; the reader that comes for the span tries again.
            let decode = AssertUnwindSafe(|| drop(spans.get(slot, &layer, span)));
            if catch_unwind(decode).is_err() {
                tracing::error!("panic while reading ahead");
            }
        }
    }

    /// Notes a read, and says whether it went on where the last one of this inode ended.
    fn goes_on(&self, ino: Ino, start: u64, end: u64) -> bool {
        let mix = |at: u64| (ino.get() ^ at.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let stream = place(ino.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % self.ends.len();
        self.ends[stream].swap(mix(end), Ordering::Relaxed) == mix(start) && start > 0
    }

    /// Asks for the span behind the one that ends the read, if the file goes on there.
    fn want_behind(
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
        if !spans.cache.holds(SpanKey { layer: slot, span: span.get() }) {
            // A full queue means that the machine has enough to do.
            let _ = self.queue.try_send(ReadAheadRequest { layer: Arc::clone(layer), slot, span });
        }
    }
}
