//! Reads a fuzzer's bytes as decisions: small numbers, choices from a list, byte strings.
//!
//! Every value is built from the next bytes; past the end, all bytes read as zero. Inserting, removing or changing a byte
//! therefore never affects earlier decisions, so that small mutations make small changes.

/// The unread rest of an input.
#[derive(Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns whether all bytes have been read. Generators loop until then.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Takes `length` bytes, or fewer at the end of the input.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes up to 255 bytes, preceded by a length byte.
    pub(crate) fn chunk(&mut self) -> &'a [u8] {
        let length = self.byte();
        self.bytes(length.into())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Returns a number below `end`, which must be at least 1. Consumes as few bytes as `end` needs.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        match end {
            0..=1 => 0,
            2..=256 => usize::from(self.byte()) % end,
            257..=65_536 => usize::from(self.u16()) % end,
            _ => self.u32() as usize % end,
        }
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Returns true with a probability of 1 in `times`, and false at the end of the input.
    pub(crate) fn one_in(&mut self, times: u8) -> bool {
        !self.is_empty() && self.byte() % times == times - 1
    }

    /// Returns a number that is often near a boundary: a power of two, or the limit of an integer type.
    pub(crate) fn number(&mut self) -> u64 {
        let near = |value: u64, by: u8| value.wrapping_add_signed(i64::from(by % 5) - 2);
        let (kind, by) = (self.byte(), self.byte());
        match kind {
            0..=99 => by.into(),
            100..=163 => near(1 << (kind - 100), by),
            164..=199 => u64::from(self.u16()),
            200..=219 => near(u32::MAX.into(), by),
            220..=234 => near(i64::MAX.unsigned_abs(), by),
            235..=244 => near(0, by),
            _ => self.u64(),
        }
    }

    /// Applies up to three random edits: set, flip, remove, insert, duplicate, append or truncate.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len().max(1));
            let end = at.saturating_add(1 + self.below(8)).min(bytes.len());
            let at = at.min(end);
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.splice(at..at, self.chunk().iter().copied()).for_each(drop),
                3 => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy).for_each(drop);
                }
                4 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.byte();
                    }
                }
                5 => bytes.extend_from_slice(self.chunk()),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (self.byte() % 8);
                    }
                }
            }
        }
    }

    /// Generates up to `max_length` bytes of file content that compresses well, poorly, or not at all.
    pub(crate) fn content(&mut self, max_length: usize) -> Vec<u8> {
        let (kind, length) = (self.below(6), self.below(max_length + 1));
        let mut state = u64::from(self.byte()) | 1;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        match kind {
            0 => vec![0; length],
            1 => {
                let pattern = [self.chunk(), b"."].concat();
                pattern.into_iter().cycle().take(length).collect()
            }
            2 => (0..length).map(|_| random().to_le_bytes()[0]).collect(),
            // Words from a small vocabulary, as in source code.
            3 | 4 => {
                let mut bytes = Vec::with_capacity(length + 8);
                while bytes.len() < length {
                    bytes.extend_from_slice(format!("w{:x} ", random() % 300 * 7919).as_bytes());
                }
                bytes.truncate(length);
                bytes
            }
            // A few symbols with very different frequencies need long Huffman codes.
            _ => (0..length).map(|_| (random() & 0xff).leading_zeros().to_le_bytes()[0]).collect(),
        }
    }
}
