//! Which bytes of a layer go where: files cut at the layer's spans, so that each span is decoded once.

use crate::index::{EntryId, Layer, Piece, SpanId};
use crate::layer::TarOffset;

/// Bytes decoded by one unit of work: large enough for its cost to vanish, small enough to spread over all threads.
const UNIT: u64 = 2 << 20;

/// A stretch of a file that lies in one span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The file, by the caller's count.
    pub(super) file: u32,
    /// Where it starts in the file.
    pub(super) offset: u64,
    /// Where it starts in the span's bytes.
    pub(super) start: usize,
    /// Its length.
    pub(super) len: usize,
}

/// A span and what is needed of it.
#[derive(Debug)]
pub(super) struct Needed {
    pub(super) span: SpanId,
    pub(super) parts: Vec<Part>,
}

/// Work for one thread: neighbouring spans of one layer.
#[derive(Debug)]
pub(super) struct Unit {
    /// The layer, by the caller's count.
    pub(super) layer: usize,
    pub(super) needed: Vec<Needed>,
}

/// Cuts the content of files of one layer into units. `files` are (the caller's count, entry); returns how many parts
/// each has, in the same order, beside the units.
pub(super) fn units<D: AsRef<[u8]>>(
    layer: &Layer<D>,
    number: usize,
    files: &[(u32, EntryId)],
) -> (Vec<Unit>, Vec<u32>) {
    let mut stretches: Vec<(u64, u64, u32, u64)> = Vec::new();
    for (position, (_, entry)) in files.iter().enumerate() {
        let position = u32::try_from(position).expect("a layer has at most 2^32 entries");
        let mut offset = 0;
        for piece in layer.pieces(*entry, 0, u64::MAX) {
            match piece {
                Piece::Hole { len } => offset += len,
                Piece::Data { tar, len } => {
                    stretches.push((tar.get(), len, position, offset));
                    offset += len;
                }
            }
        }
    }
    // By place in the tar, whatever the order of names is.
    stretches.sort_unstable();
    let mut counts = vec![0_u32; files.len()];
    let mut needed: Vec<Needed> = Vec::new();
    for (tar, len, position, mut offset) in stretches {
        let (mut at, end) = (tar, tar + len);
        while at < end {
            let span = layer.index().span_at(TarOffset::new(at)).expect("content lies in the tar");
            let range = layer.index().span_range(span);
            let stop = end.min(range.end);
            let within = |bytes: u64| usize::try_from(bytes).expect("spans are bounded at open");
            let part = Part {
                file: files[position as usize].0,
                offset,
                start: within(at - range.start),
                len: within(stop - at),
            };
            counts[position as usize] += 1;
            offset += stop - at;
            at = stop;
            match needed.last_mut() {
                Some(last) if last.span == span => last.parts.push(part),
                _ => needed.push(Needed { span, parts: vec![part] }),
            }
        }
    }
    let mut units: Vec<Unit> = Vec::new();
    let mut size = UNIT;
    for need in needed {
        let range = layer.index().span_range(need.span);
        if size >= UNIT {
            units.push(Unit { layer: number, needed: Vec::new() });
            size = 0;
        }
        size += range.end - range.start;
        units.last_mut().expect("one was just made").needed.push(need);
    }
    (units, counts)
}
