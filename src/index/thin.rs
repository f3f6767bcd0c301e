//! Drops checkpoints until an index meets its size budget.
//!
//! Layers are decoded with a checkpoint every 256 KiB. If the windows of all checkpoints exceed the budget, the checkpoints
//! with the largest windows are dropped first, which keeps as many checkpoints as possible. The span of a dropped checkpoint
//! is joined to the previous span. No span grows beyond [`SPAN_MAX`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::format::SPAN_LEN;
use crate::layer::Checkpoint;

/// Longest span after thinning, in bytes of tar.
pub const SPAN_MAX: u64 = 1 << 20;

/// Maximum number of bytes of the blob in a joined span: more than any content of that length needs (15 bits per byte, and
/// block headers). A hostile blob can have gigabytes of empty blocks between two spans, and a read holds all bytes of a span
/// in memory.
const DATA_MAX: u64 = 2 * SPAN_MAX + (64 << 10);

/// A span before it is written.
#[derive(Debug)]
pub(super) struct SpanDraft {
    /// The offset in the tar.
    pub(super) tar: u64,
    /// The length in the tar in bytes.
    pub(super) tar_len: u64,
    /// The range of the blob from which the span is decoded.
    pub(super) blob: std::ops::Range<u64>,
    /// The range of the seekable file, for spans without a checkpoint.
    pub(super) seekable: std::ops::Range<u64>,
    /// Whether this is another span of the same long zstd frame as the span before it.
    pub(super) continues_frame: bool,
    /// The CRC-32 of the decoded bytes.
    pub(super) crc: crc32fast::Hasher,
    /// The state to resume decoding from; `None` for a frame of the seekable file.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl SpanDraft {
    /// The approximate size of the checkpoint in the file: windows compress to about 5/8. Zero if dropping it saves nothing.
    pub(super) fn cost(&self) -> u64 {
        match &self.checkpoint {
            Some(Checkpoint::Deflate { block, window, .. }) => {
                let header = block.map_or(0, |block| block.bits.div_ceil(8) as usize);
                let raw = window.bytes.len() + 2 * window.runs.len() + header;
                (raw * 5 / 8 + SPAN_LEN) as u64
            }
            _ => 0,
        }
    }

    /// Whether `next` can be decoded from the checkpoint of this span.
    fn continues_into(&self, next: &Self) -> bool {
        self.tar_len + next.tar_len <= SPAN_MAX
            && next.blob.end.saturating_sub(self.blob.start) <= DATA_MAX
            && matches!(self.checkpoint, Some(Checkpoint::GzipMember | Checkpoint::Deflate { .. }))
            && matches!(next.checkpoint, Some(Checkpoint::Deflate { .. }))
    }
}

/// Joins spans until their checkpoints take at most `budget` bytes, or no more spans can be joined.
pub(super) fn thin(drafts: Vec<SpanDraft>, budget: u64) -> Vec<SpanDraft> {
    let mut total: u64 = drafts.iter().map(SpanDraft::cost).sum();
    if total <= budget {
        return drafts;
    }
    let mut heap: BinaryHeap<(u64, Reverse<usize>)> =
        drafts.iter().enumerate().map(|(at, draft)| (draft.cost(), Reverse(at))).collect();
    // previous[n] is the span to which span n would be joined. A joined span leaves `None` in `drafts`.
    let mut previous: Vec<usize> = (0..drafts.len()).map(|at| at.wrapping_sub(1)).collect();
    let mut next: Vec<usize> = (1..=drafts.len()).collect();
    let mut drafts: Vec<Option<SpanDraft>> = drafts.into_iter().map(Some).collect();
    while total > budget {
        let Some((cost, Reverse(at))) = heap.pop() else { break };
        if cost == 0 {
            break;
        }
        let before = previous[at];
        let joins = match (drafts.get(before).and_then(Option::as_ref), &drafts[at]) {
            (Some(before), Some(draft)) => before.continues_into(draft),
            _ => false,
        };
        if !joins {
            continue;
        }
        let Some(draft) = drafts[at].take() else { continue };
        if let Some(Some(before)) = drafts.get_mut(before) {
            before.tar_len += draft.tar_len;
            before.blob.end = before.blob.end.max(draft.blob.end);
            before.crc.combine(&draft.crc);
        }
        let following = next[at];
        next[before] = following;
        if let Some(previous) = previous.get_mut(following) {
            *previous = before;
        }
        total -= cost;
    }
    drafts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Window;

    fn draft(at: u64, used: usize) -> SpanDraft {
        let window = Window { runs: vec![(0, 1)], bytes: vec![0; used] };
        let checkpoint = match at {
            0 => Checkpoint::GzipMember,
            _ => Checkpoint::Deflate { skip_bits: 0, block: None, window },
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&vec![at.to_le_bytes()[0]; 256 << 10]);
        SpanDraft {
            tar: at * (256 << 10),
            tar_len: 256 << 10,
            blob: at * 1000..(at + 1) * 1000 + 1,
            seekable: 0..0,
            continues_frame: false,
            crc,
            checkpoint: Some(checkpoint),
        }
    }

    #[test]
    fn largest_checkpoints_are_dropped_and_spans_still_cover_the_layer() {
        let drafts: Vec<SpanDraft> = (0..40).map(|n| draft(n, if n % 2 == 1 { 8000 } else { 100 })).collect();
        let all: Vec<u8> = (0..40u8).flat_map(|n| vec![n; 256 << 10]).collect();
        let thinned = thin(drafts, 5000);
        assert!(thinned.len() < 40);
        assert!(thinned.iter().map(SpanDraft::cost).sum::<u64>() <= 5000);
        let mut at = 0;
        for draft in thinned {
            assert_eq!(draft.tar, at);
            assert!(draft.tar_len <= SPAN_MAX);
            let from = usize::try_from(at).unwrap();
            let bytes = &all[from..from + usize::try_from(draft.tar_len).unwrap()];
            assert_eq!(draft.crc.finalize(), crc32fast::hash(bytes));
            at += draft.tar_len;
        }
        assert_eq!(at, 40 * (256 << 10));
    }

    #[test]
    fn spans_with_gigabytes_of_empty_blocks_between_them_are_not_joined() {
        let mut drafts: Vec<SpanDraft> = (0..4).map(|n| draft(n, 8000)).collect();
        for draft in &mut drafts[2..] {
            draft.blob = draft.blob.start + (1 << 30)..draft.blob.end + (1 << 30);
        }
        let thinned = thin(drafts, 0);
        assert_eq!(thinned.iter().map(|draft| draft.tar).collect::<Vec<_>>(), [0, 512 << 10]);
        assert!(thinned.iter().all(|draft| draft.blob.end - draft.blob.start <= DATA_MAX));
    }

    #[test]
    fn joined_spans_do_not_exceed_the_maximum() {
        let thinned = thin((0..40).map(|n| draft(n, 8000)).collect(), 0);
        assert_eq!(thinned.len(), 10);
        assert!(thinned.iter().all(|draft| draft.tar_len == SPAN_MAX));
    }
}
