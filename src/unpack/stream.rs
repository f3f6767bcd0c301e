//! Reads files of layers one after another, as streams.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::image::LayerDigest;
use crate::index::{EntryId, Layer, Piece, ReadError, SpanId};
use crate::layer::TarOffset;

/// Number of spans that stay decoded: neighbouring files of a directory are mostly in few spans. Some 16 MiB of memory.
const SPANS: NonZeroUsize = NonZeroUsize::new(64).expect("not 0");
/// Bytes that a stream reads at once: a few spans.
const STEP: u64 = 1 << 20;

/// Reads the content of files, and keeps the spans that it used last.
#[derive(Debug)]
pub struct FileReader {
    spans: LruCache<(LayerDigest, SpanId), Arc<Vec<u8>>>,
}

impl Default for FileReader {
    fn default() -> Self {
        Self { spans: LruCache::new(SPANS) }
    }
}

impl FileReader {
    /// Reads up to `len` bytes of a regular file from `offset` on, fewer only at its end.
    ///
    /// # Errors
    ///
    /// The layer's blob cannot be read or is damaged. Never returns wrong bytes.
    pub fn read<D: AsRef<[u8]>>(
        &mut self,
        layer: &Layer<D>,
        entry: EntryId,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        for piece in layer.pieces(entry, offset, len) {
            match piece {
                Piece::Hole { len } => bytes.resize(bytes.len() + in_memory(len), 0),
                Piece::Data { tar, len } => {
                    let (mut at, end) = (tar.get(), tar.get() + len);
                    while at < end {
                        let id = layer.index().span_at(TarOffset::new(at));
                        let id = id.expect("an index places all content inside its spans");
                        let range = layer.index().span_range(id);
                        let span = self.span(layer, id)?;
                        let stop = end.min(range.end);
                        bytes.extend_from_slice(
                            &span[in_memory(at - range.start)..in_memory(stop - range.start)],
                        );
                        at = stop;
                    }
                }
            }
        }
        Ok(bytes)
    }

    fn span<D: AsRef<[u8]>>(&mut self, layer: &Layer<D>, id: SpanId) -> Result<Arc<Vec<u8>>, ReadError> {
        let key = (*layer.index().layer(), id);
        if let Some(span) = self.spans.get(&key) {
            return Ok(Arc::clone(span));
        }
        let span = Arc::new(layer.decode_span(id)?);
        self.spans.put(key, Arc::clone(&span));
        Ok(span)
    }
}

/// A length that fits into memory: a span is decoded as a whole, and a read is as long as the caller asks.
fn in_memory(length: u64) -> usize {
    usize::try_from(length).expect("a 64-bit host")
}

/// The content of one file as a stream. A damaged layer is a [`ReadError`] inside the stream's error.
#[derive(Debug)]
pub struct FileStream<'a, D> {
    reader: &'a mut FileReader,
    layer: &'a Layer<D>,
    entry: EntryId,
    /// The offset in the file at which the next step starts.
    next: u64,
    step: std::io::Cursor<Vec<u8>>,
}

impl FileReader {
    /// Returns the content of a regular file as a stream.
    pub fn stream<'a, D: AsRef<[u8]>>(
        &'a mut self,
        layer: &'a Layer<D>,
        entry: EntryId,
    ) -> FileStream<'a, D> {
        FileStream { reader: self, layer, entry, next: 0, step: std::io::Cursor::default() }
    }
}

impl<D: AsRef<[u8]>> std::io::Read for FileStream<'_, D> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.step.position() == self.step.get_ref().len() as u64 {
            let bytes = self.reader.read(self.layer, self.entry, self.next, STEP);
            let bytes = bytes.map_err(std::io::Error::other)?;
            self.next += bytes.len() as u64;
            self.step = std::io::Cursor::new(bytes);
        }
        self.step.read(out)
    }
}
