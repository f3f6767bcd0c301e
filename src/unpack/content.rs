//! Divides the content of files at the layer's spans, so that each span is decoded only once.

use crate::index::{EntryId, Layer, Piece, SpanId};
use crate::layer::TarOffset;

/// Decoded bytes of one unit of work: large enough to make its overhead negligible, small enough to keep all threads busy.
const UNIT_BYTES: u64 = 2 << 20;

/// A part of a file that lies in one span.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpanPart {
    /// The file, in the caller's numbering.
    pub(super) file: u32,
    /// Offset in the file.
    pub(super) offset: u64,
    /// Offset in the decoded span.
    pub(super) start: usize,
    /// Length in bytes.
    pub(super) len: usize,
}

/// A span and the parts of files that are in it.
#[derive(Debug)]
pub(super) struct NeededSpan {
    pub(super) span: SpanId,
    pub(super) parts: Vec<SpanPart>,
}

/// Work for one thread: neighbouring spans of one layer.
#[derive(Debug)]
pub(super) struct DecodeUnit {
    /// The layer, in the caller's numbering.
    pub(super) layer: usize,
    pub(super) spans: Vec<NeededSpan>,
}

/// Cuts the content of a layer's files into units.
///
/// `files` lists pairs of the caller's number and the entry. Returns the units, and the number of parts of each file in the
/// order of `files`.
pub(super) fn decode_units<D: AsRef<[u8]>>(
    layer: &Layer<D>,
    layer_number: usize,
    files: &[(u32, EntryId)],
) -> (Vec<DecodeUnit>, Vec<u32>) {
    let mut ranges: Vec<(u64, u64, u32, u64)> = Vec::new();
    for (position, (_, entry)) in files.iter().enumerate() {
        let position = u32::try_from(position).expect("a layer has at most 2^32 entries");
        let mut offset = 0;
        for piece in layer.pieces(*entry, 0, u64::MAX) {
            match piece {
                Piece::Hole { len } => offset += len,
                Piece::Data { tar, len } => {
                    ranges.push((tar.get(), len, position, offset));
                    offset += len;
                }
            }
        }
    }
    // Sort by offset in the tar.
    ranges.sort_unstable();
    let mut counts = vec![0_u32; files.len()];
    let mut spans: Vec<NeededSpan> = Vec::new();
    for (tar, len, position, mut offset) in ranges {
        let (mut at, end) = (tar, tar + len);
        while at < end {
            let span = layer.index().span_at(TarOffset::new(at)).expect("content lies in the tar");
            let range = layer.index().span_range(span);
            let stop = end.min(range.end);
            let within = |bytes: u64| usize::try_from(bytes).expect("Index::open bounds the length of spans");
            let part = SpanPart {
                file: files[position as usize].0,
                offset,
                start: within(at - range.start),
                len: within(stop - at),
            };
            counts[position as usize] += 1;
            offset += stop - at;
            at = stop;
            match spans.last_mut() {
                Some(last) if last.span == span => last.parts.push(part),
                _ => spans.push(NeededSpan { span, parts: vec![part] }),
            }
        }
    }
    let mut units: Vec<DecodeUnit> = Vec::new();
    let mut size = UNIT_BYTES;
    for needed in spans {
        let range = layer.index().span_range(needed.span);
        if size >= UNIT_BYTES {
            units.push(DecodeUnit { layer: layer_number, spans: Vec::new() });
            size = 0;
        }
        size += range.end - range.start;
        units.last_mut().expect("the first iteration pushes a unit").spans.push(needed);
    }
    (units, counts)
}
