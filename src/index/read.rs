//! Reads the content of a layer through its index: finds the spans of a file's range, and decodes spans.

use std::cell::RefCell;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use memmap2::Mmap;
use rustix::fs::Advice;

use super::fetch::{ReadBlob, hash_range};
use super::format::{NO_BLOCK, NO_WINDOW, NOT_SPARSE, SpanKind};
use super::records::SpanRecord;
use super::windows::{decompress, window_of};
use super::{EntryId, Index, IndexError, IndexedKind, Piece, SpanId};
use crate::error::ErrorCode;
use crate::image::LayerDigest;
use crate::layer::{BlockHeader, Checkpoint, LayerError, TarOffset, Window, decode_span};
use crate::os::ignore_poison;

/// The source of a layer's bytes.
#[derive(Debug)]
pub enum LayerBytes {
    /// A file of the store: a blob or a seekable file.
    File(File),
    /// Bytes in memory.
    Memory(Vec<u8>),
}

impl LayerBytes {
    /// Replaces `out` with the `length` bytes from `offset`. Allocates step by step, since an index can declare any length.
    fn read_into(&self, out: &mut Vec<u8>, length: usize, offset: u64) -> std::io::Result<()> {
        /// Bytes read at once; few spans are longer.
        const STEP: usize = 4 << 20;
        // The bytes of the previous span are overwritten, not cleared.
        out.truncate(length);
        let mut done = 0;
        while done < length {
            let end = length.min(done + STEP);
            if out.len() < end {
                out.resize(end, 0);
            }
            self.read_exact_at(&mut out[done..end], offset.saturating_add(done as u64))?;
            done = end;
        }
        Ok(())
    }
}

impl ReadBlob for LayerBytes {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => ReadBlob::read_exact_at(file, out, offset),
            Self::Memory(bytes) => bytes.as_slice().read_exact_at(out, offset),
        }
    }
}

/// The reason why a span cannot be read. The message names the blob and the span, because it often appears in a log without
/// any other context.
#[derive(Debug, thiserror::Error)]
#[error("blob {layer}: cannot read span {span} (bytes {blob:?} of the {file})")]
pub struct ReadError {
    layer: LayerDigest,
    span: SpanId,
    blob: Range<u64>,
    file: &'static str,
    #[source]
    cause: ReadCause,
}

#[derive(Debug, thiserror::Error)]
enum ReadCause {
    #[error("cannot read the file")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Decode(#[from] LayerError),
    #[error("decoded bytes do not match their checksum")]
    Checksum,
    #[error("compressed bytes do not match their hash")]
    Hash,
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the seekable file is missing")]
    NoSeekable,
}

impl ReadError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match &self.cause {
            ReadCause::Io(_) => ErrorCode::Io,
            ReadCause::Decode(_) | ReadCause::Checksum | ReadCause::Hash => ErrorCode::Damaged,
            ReadCause::Index(source) => source.code(),
            ReadCause::NoSeekable => ErrorCode::Index,
        }
    }
}

/// A layer that can be read: its index and its bytes.
#[derive(Debug)]
pub struct Layer<D = Mmap> {
    index: Index<D>,
    blob: LayerBytes,
    seekable: Option<LayerBytes>,
    /// The window group that was used last. Neighbouring spans share a group.
    group: Mutex<Option<(u32, Arc<Vec<u8>>)>>,
}

thread_local! {
    /// The compressed bytes of the current span. Reused, so that a read costs one allocation.
    static COMPRESSED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<D: AsRef<[u8]>> Layer<D> {
    /// Joins an index and the bytes that it describes. `seekable` is the file that was written with the index, if any.
    pub fn new(index: Index<D>, blob: LayerBytes, seekable: Option<LayerBytes>) -> Self {
        Self { index, blob, seekable, group: Mutex::new(None) }
    }

    /// The layer's index.
    pub fn index(&self) -> &Index<D> {
        &self.index
    }

    /// Reads and decodes a span, and verifies its checksum. Nothing is cached.
    ///
    /// # Errors
    /// The blob cannot be read, or has changed since it was indexed. Wrong bytes are never returned.
    ///
    /// # Panics
    /// `id` is not a span of this layer.
    pub fn decode_span(&self, id: SpanId) -> Result<Vec<u8>, ReadError> {
        let record = self.index.span_record(id.index());
        let range = self.index.span_range(id);
        let length = usize::try_from(range.end - range.start).expect("`validate` limits the length of spans");
        let (start, data_len) = record.data();
        self.decode(&record, length).map_err(|cause| ReadError {
            layer: *self.index.layer(),
            span: id,
            blob: start..start + data_len,
            file: if record.kind.is_seekable() { "seekable file" } else { "blob" },
            cause,
        })
    }

    /// Makes the kernel read the bytes that a span is decoded from, and does not wait for them.
    ///
    /// # Panics
    /// `id` is not a span of this layer.
    pub fn will_need(&self, id: SpanId) {
        let record = self.index.span_record(id.index());
        let source = if record.kind.is_seekable() { self.seekable.as_ref() } else { Some(&self.blob) };
        let (start, len) = record.data();
        if let (Some(LayerBytes::File(file)), Some(len)) = (source, NonZeroU64::new(len)) {
            // Without it, decoding the span reads them.
            let _ = rustix::fs::fadvise(file, start, Some(len), Advice::WillNeed);
        }
    }

    /// Reads the range of the blob that a span is decoded from, and compares its hash. Does nothing if the index is outdated and
    /// has no hashes.
    ///
    /// # Errors
    /// The blob cannot be read, or has changed since it was indexed.
    ///
    /// # Panics
    /// `id` is not a span of this layer.
    pub fn verify_range(&self, id: SpanId) -> Result<(), ReadError> {
        let Some(range) = self.index.blob_range(id) else { return Ok(()) };
        let cause = match hash_range(&self.blob, &range.bytes) {
            Ok(hash) if hash == range.hash => return Ok(()),
            Ok(_) => ReadCause::Hash,
            Err(error) => error.into(),
        };
        Err(ReadError { layer: *self.index.layer(), span: id, blob: range.bytes, file: "blob", cause })
    }

    fn decode(&self, record: &SpanRecord, length: usize) -> Result<Vec<u8>, ReadCause> {
        let mut header = Vec::new();
        let (source, checkpoint) = match record.kind {
            SpanKind::Stored => (&self.blob, Checkpoint::Stored),
            SpanKind::GzipMember => (&self.blob, Checkpoint::GzipMember),
            SpanKind::ZstdFrame => (&self.blob, Checkpoint::ZstdFrame),
            SpanKind::LongFrame | SpanKind::LongFrameRest => {
                (self.seekable.as_ref().ok_or(ReadCause::NoSeekable)?, Checkpoint::ZstdFrame)
            }
            SpanKind::Deflate => {
                let block = (record.block_start != NO_BLOCK).then_some(BlockHeader {
                    start_bit: record.block_start,
                    bits: record.block_bits,
                    stored_before: record.stored_before,
                });
                let window;
                (window, header) = self.window(record)?;
                if let Some(block) = block
                    && self.index.is_outdated()
                {
                    let bytes = block.bytes();
                    header.resize(usize::try_from(bytes.end - bytes.start).unwrap_or(0), 0);
                    self.blob.read_exact_at(&mut header, bytes.start)?;
                }
                (&self.blob, Checkpoint::Deflate { skip_bits: record.skip_bits, block, window })
            }
        };
        let (start, data_len) = record.data();
        let mut out = vec![0; length];
        COMPRESSED.with_borrow_mut(|compressed| {
            let compressed_len = usize::try_from(data_len)
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
            source.read_into(compressed, compressed_len, start)?;
            decode_span(&checkpoint, &header, compressed, &mut out)?;
            // A long run of empty members or skippable frames is legal but rare: do not keep its buffer.
            if compressed.capacity() > 4 << 20 {
                *compressed = Vec::new();
            }
            Ok::<_, ReadCause>(())
        })?;
        if crc32fast::hash(&out) != record.crc {
            return Err(ReadCause::Checksum);
        }
        Ok(out)
    }

    /// Returns the window of a span, and the header of the block in which it starts.
    fn window(&self, record: &SpanRecord) -> Result<(Window, Vec<u8>), ReadCause> {
        if record.window_group == NO_WINDOW {
            return Ok(Default::default());
        }
        let last = ignore_poison(self.group.lock()).clone();
        let raw = match last {
            Some((group, raw)) if group == record.window_group => raw,
            _ => {
                let group = self.index.group(record.window_group);
                let heap = self.index.window_heap(&group);
                let raw = Arc::new(decompress(heap, group.raw_len, record.window_group)?);
                *ignore_poison(self.group.lock()) = Some((record.window_group, Arc::clone(&raw)));
                raw
            }
        };
        let damaged =
            IndexError::Inconsistent { record: "window group", ordinal: record.window_group as usize };
        let has_headers = !self.index.is_outdated();
        Ok(window_of(&raw, record.window_ordinal, has_headers).ok_or(damaged)?)
    }

    /// Returns the pieces of the range `offset..offset + len` of a regular file, in order, up to the end of the file. Other
    /// entries have no pieces.
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn pieces(&self, entry: EntryId, offset: u64, len: u64) -> Vec<Piece> {
        self.pieces_from(entry, offset, len).collect()
    }

    /// Like [`Layer::pieces`], but lazy: a file can have a million pieces.
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn pieces_from(&self, entry: EntryId, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
        self.index.pieces_from(entry, offset, len)
    }

    /// The size of a regular file without its holes. Takes constant time: every stat needs it, and a million names can be hard
    /// links to one file of a million segments.
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn stored_size(&self, entry: EntryId) -> u64 {
        let entry = self.index.entry(entry);
        let IndexedKind::Regular { size } = entry.kind() else { return 0 };
        match entry.extent().map(|extent| self.index.extent(extent as usize)) {
            Some((_, _, _, 0)) => 0,
            Some((_, _, first, count)) if count != NOT_SPARSE => {
                // In the tar, the segments of a file follow each other without a gap.
                let (_, start, _) = self.index.segment(first as usize);
                let (_, last, length) = self.index.segment((first + (count - 1)) as usize);
                (last + length).saturating_sub(start)
            }
            _ => size,
        }
    }

    /// Reads a range of a regular file without a cache, for `verify`, unpacking and tests. The result is short only at the end
    /// of the file.
    ///
    /// # Errors
    /// The same as for [`Layer::decode_span`].
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn read(&self, entry: EntryId, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut out = Vec::new();
        for piece in self.pieces(entry, offset, len as u64) {
            match piece {
                Piece::Hole { len } => out.resize(out.len() + usize::try_from(len).unwrap_or(0), 0),
                Piece::Data { tar, len } => {
                    let (mut at, end) = (tar.get(), tar.get() + len);
                    while at < end {
                        let id = self
                            .index
                            .span_at(TarOffset::new(at))
                            .expect("`validate` checks that content lies within the tar");
                        let range = self.index.span_range(id);
                        let span = self.decode_span(id)?;
                        let stop = end.min(range.end);
                        let position = |at: u64| usize::try_from(at - range.start).unwrap_or(usize::MAX);
                        out.extend_from_slice(&span[position(at)..position(stop)]);
                        at = stop;
                    }
                }
            }
        }
        Ok(out)
    }
}
