//! Windows: finds which of the 32 KiB before a checkpoint are needed, and restores them for decoding.

use super::bits::DeflateError;
use super::deflate::{CompressedBuffer, DeflateWalker};
use super::{LayerError, Window};

/// Longest distance of a deflate match, in bytes (RFC 1951, 3.2.5).
pub(super) const REACH: usize = 32 << 10;

/// Two used runs at most this far apart become one, because the bytes between them take less space than another run.
const MERGED_GAP: usize = 3;

/// Finds windows. Reuses its memory for each of them.
#[derive(Debug)]
pub(super) struct WindowFinder {
    /// Matches that reach before the checkpoint: the start in the window in bits 0-15, the length in bits 16-31.
    matches: Box<[u32; MATCHES_MAX]>,
}

/// A power of two above the number of matches that fit into 32 KiB, each at least 3 bytes long.
const MATCHES_MAX: usize = 16 << 10;

impl WindowFinder {
    pub(super) fn new() -> Self {
        Self { matches: Box::new([0; MATCHES_MAX]) }
    }

    /// Walks the first 32 KiB after `start` and returns the part of `history` that they refer to. `history` ends at `start`.
    ///
    /// Always walks 32 KiB, even if the span is shorter, so that the window remains valid when spans are joined.
    pub(super) fn find(
        &mut self,
        start: &DeflateWalker,
        buffer: &CompressedBuffer,
        history: &[u8],
    ) -> Result<Window, DeflateError> {
        let origin = start.tar();
        let matches = &mut *self.matches;
        let mut count = 0;
        start.clone().walk(buffer, origin + REACH as u64, u64::MAX, |at, length, distance| {
            // Whether a match reaches before the checkpoint is unpredictable, and a mispredicted branch would cost more
            // than the rest of the walk. So every match is stored, and the next one overwrites it unless `count` has grown.
            #[expect(clippy::cast_possible_truncation, reason = "the walk stays within 32 KiB of its origin")]
            let from = (at - origin) as u32 + REACH as u32 - distance;
            matches[count % MATCHES_MAX] = from | length << 16;
            count += usize::from(from >> 15 == 0);
        })?;
        let mut used = UsedBytes([0; REACH / 64]);
        for packed in &matches[..count] {
            let (from, length) = ((packed & 0xffff) as usize, (packed >> 16) as usize);
            used.mark(from, length.min(REACH - from));
        }
        used.window(history)
    }
}

impl Window {
    /// Restores the bytes before the checkpoint at the end of `space`, with zeros for those that are not in the window.
    /// Returns the part of `space` that starts at the window's first byte.
    pub(super) fn lay_out<'a>(&self, space: &'a mut [u8; REACH]) -> Result<&'a [u8], LayerError> {
        let malformed = LayerError::Span { problem: "the window of its checkpoint is malformed" };
        let Some(&(first, _)) = self.runs.first() else { return Ok(&[]) };
        let mut at = usize::from(first);
        let mut bytes = self.bytes.as_slice();
        for &(start, length) in &self.runs {
            let (start, length) = (usize::from(start), usize::from(length));
            let (Some(gap), Some((run, rest))) = (space.get_mut(at..start), bytes.split_at_checked(length))
            else {
                return Err(malformed);
            };
            gap.fill(0);
            let Some(target) = space.get_mut(start..start + length) else { return Err(malformed) };
            target.copy_from_slice(run);
            bytes = rest;
            at = start + length;
        }
        space[at..].fill(0);
        Ok(&space[usize::from(first)..])
    }
}

/// A bitmap of the used bytes of a window.
struct UsedBytes([u64; REACH / 64]);

impl UsedBytes {
    /// Marks `length` bytes from `start` on. They must be inside the window.
    fn mark(&mut self, start: usize, length: usize) {
        let (mut at, end) = (start, start + length);
        while at < end {
            let take = (64 - at % 64).min(end - at);
            self.0[at / 64] |= (u64::MAX >> (64 - take)) << (at % 64);
            at += take;
        }
    }

    /// Returns the first position from `at` on whose mark equals `marked`, or the window's end.
    fn find(&self, at: usize, marked: bool) -> usize {
        let flip = if marked { 0 } else { u64::MAX };
        let mut word = at / 64;
        let mut mask = u64::MAX << (at % 64);
        while word < self.0.len() {
            let hits = (self.0[word] ^ flip) & mask;
            if hits != 0 {
                return word * 64 + hits.trailing_zeros() as usize;
            }
            word += 1;
            mask = u64::MAX;
        }
        REACH
    }

    /// Copies the used bytes from `history`, which ends at the window's end and may be shorter than the window.
    fn window(&self, history: &[u8]) -> Result<Window, DeflateError> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        let mut start = self.find(0, true);
        while start < REACH {
            let end = self.find(start, false);
            match runs.last_mut() {
                Some(last) if start - last.1 <= MERGED_GAP => last.1 = end,
                _ => runs.push((start, end)),
            }
            start = if end < REACH { self.find(end, true) } else { REACH };
        }
        let missing = REACH - history.len();
        let mut window = Window::default();
        for (start, end) in runs {
            let from = start
                .checked_sub(missing)
                .ok_or(DeflateError("a match reaches before the start of the tar"))?;
            window.bytes.extend_from_slice(&history[from..end - missing]);
            let short = |n| u16::try_from(n).expect("32 KiB fit into 16 bits");
            window.runs.push((short(start), short(end - start)));
        }
        Ok(window)
    }
}
