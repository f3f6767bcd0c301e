//! Finds out which of the 32 KiB before a checkpoint are needed, and puts them back for decoding.

use super::deflate::{Astray, Tape, Walker};
use super::{LayerError, Window};

/// How far deflate refers back.
pub(super) const REACH: usize = 32 << 10;

/// Two used stretches this close become one: the bytes between them cost less than one more stretch does.
const MERGED_GAP: usize = 3;

/// Finds windows; keeps the memory for it.
#[derive(Debug)]
pub(super) struct WindowFinder {
    /// Matches that reach before the checkpoint: where in the window they start, and 65536 times their
    /// length.
    far: Box<[u32; FAR_MAX]>,
}

/// A power of two above the number of matches, of 3 bytes or more, that fit into 32 KiB.
const FAR_MAX: usize = 16 << 10;

impl WindowFinder {
    pub(super) fn new() -> Self {
        Self { far: Box::new([0; FAR_MAX]) }
    }

    /// Walks the first 32 KiB behind `start` (no matter where the span ends, so that the window still serves
    /// when spans are joined) and keeps of `history`, the bytes in front of it, what they refer to.
    pub(super) fn find(&mut self, start: &Walker, tape: &Tape, history: &[u8]) -> Result<Window, Astray> {
        let origin = start.tar();
        let far = &mut *self.far;
        let mut count = 0;
        start.clone().walk(tape, origin + REACH as u64, u64::MAX, |at, length, distance| {
            // Whether a match reaches back that far cannot be foretold, so that a branch on it would cost
            // more than the rest of the walk: each is stored, and the next one takes its place if it does not
            // count.
            #[expect(clippy::cast_possible_truncation, reason = "the walk stays within 32 KiB of its origin")]
            let from = (at - origin) as u32 + REACH as u32 - distance;
            far[count % FAR_MAX] = from | length << 16;
            count += usize::from(from >> 15 == 0);
        })?;
        let mut used = Used([0; REACH / 64]);
        for far in &far[..count] {
            let (from, length) = ((far & 0xffff) as usize, (far >> 16) as usize);
            used.mark(from, length.min(REACH - from));
        }
        used.window(history)
    }
}

impl Window {
    /// Lays the bytes out at the end of `space` as they stood before the checkpoint, with zeros where they
    /// are not known, and returns the part of it that starts at the first one known.
    pub(super) fn lay_out<'a>(&self, space: &'a mut [u8; REACH]) -> Result<&'a [u8], LayerError> {
        let wrong = LayerError::Span { problem: "its window is not well-formed" };
        let Some(&(first, _)) = self.runs.first() else { return Ok(&[]) };
        let mut at = usize::from(first);
        let mut bytes = self.bytes.as_slice();
        for &(start, length) in &self.runs {
            let (start, length) = (usize::from(start), usize::from(length));
            let (Some(gap), Some((run, rest))) = (space.get_mut(at..start), bytes.split_at_checked(length))
            else {
                return Err(wrong);
            };
            gap.fill(0);
            let Some(place) = space.get_mut(start..start + length) else { return Err(wrong) };
            place.copy_from_slice(run);
            bytes = rest;
            at = start + length;
        }
        space[at..].fill(0);
        Ok(&space[usize::from(first)..])
    }
}

/// One bit for each byte of the window.
struct Used([u64; REACH / 64]);

impl Used {
    /// Marks a stretch inside the window.
    fn mark(&mut self, start: usize, length: usize) {
        let (mut at, end) = (start, start + length);
        while at < end {
            let take = (64 - at % 64).min(end - at);
            self.0[at / 64] |= (u64::MAX >> (64 - take)) << (at % 64);
            at += take;
        }
    }

    /// The first position from `at` on that is marked (or not), or the window's end.
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

    fn window(&self, history: &[u8]) -> Result<Window, Astray> {
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
            let from =
                start.checked_sub(missing).ok_or(Astray("a match reaches before the start of the tar"))?;
            window.bytes.extend_from_slice(&history[from..end - missing]);
            let short = |n| u16::try_from(n).expect("32 KiB fit into 16 bits");
            window.runs.push((short(start), short(end - start)));
        }
        Ok(window)
    }
}
