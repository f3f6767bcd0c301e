//! The bytes of a fuzzer as decisions: small numbers, picks from a list, stretches of bytes.
//!
//! Every value is made of the bytes that come next, and what comes behind the last byte is zero. So a byte more, less or
//! changed leaves the decisions before it as they were, which is what lets a mutation be a small step.

/// What is left of an input.
#[derive(Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all is used up. Loops that make something of an input go on until then.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// At most `length` bytes: fewer at the end.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Up to 255 bytes, their number in front.
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

    /// A number below `end`, which is at least 1: of one byte where that is enough.
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

    /// True once in so many times, and not where the input is used up.
    pub(crate) fn one_in(&mut self, times: u8) -> bool {
        !self.is_empty() && self.byte() % times == times - 1
    }

    /// A number near one where something changes: a power of two, the ends of the types.
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

    /// Changes some bytes: sets, flips, takes out, puts in, doubles, cuts off.
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
                    let stretch = bytes[at..end].to_vec();
                    bytes.splice(at..at, stretch).for_each(drop);
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

    /// Content of some length up to `most`, of a kind that compresses well, badly, or not at all.
    pub(crate) fn content(&mut self, most: usize) -> Vec<u8> {
        let (kind, length) = (self.below(6), self.below(most + 1));
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
            // Words of a small vocabulary, as in a program's text.
            3 | 4 => {
                let mut bytes = Vec::with_capacity(length + 8);
                while bytes.len() < length {
                    bytes.extend_from_slice(format!("w{:x} ", random() % 300 * 7919).as_bytes());
                }
                bytes.truncate(length);
                bytes
            }
            // Few symbols with very different frequencies: long Huffman codes.
            _ => (0..length).map(|_| (random() & 0xff).leading_zeros().to_le_bytes()[0]).collect(),
        }
    }
}
