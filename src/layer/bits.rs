//! Reads the bits of deflate data, least significant bit first (RFC 1951, 3.1.1).

/// Deflate data is invalid, or was read from a wrong position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeflateError(pub(super) &'static str);

/// The data ends too early.
pub(super) const PAST_END: DeflateError = DeflateError("the data ends too early");

/// Padding that must follow the data, in bytes: a refill loads 8 bytes at once, 7 of which may already be loaded.
pub(super) const PADDING: usize = 16;

/// A position in deflate data, with the next bits loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct BitReader<'a> {
    /// The data and [`PADDING`].
    data: &'a [u8],
    /// The next byte to load.
    next: usize,
    /// The loaded bits. Bits above `count` may belong to bytes from `next` on, which will be loaded again.
    pub(super) hold: u64,
    /// Number of loaded bits, modulo 64.
    count: u32,
}

impl<'a> BitReader<'a> {
    /// Starts at bit `bit` of `data`, which ends with [`PADDING`] bytes of padding.
    pub(super) fn at(data: &'a [u8], bit: usize) -> Result<Self, DeflateError> {
        let mut bits = Self { data, next: bit / 8, hold: 0, count: 0 };
        bits.refill()?;
        bits.skip(u32::try_from(bit % 8).expect("a number below 8 fits into u32"));
        Ok(bits)
    }

    /// The next bit to read.
    pub(super) fn position(&self) -> usize {
        self.next * 8 - (self.count & 63) as usize
    }

    /// Loads at least 56 bits. Fails only past the end of the data.
    #[inline]
    pub(super) fn refill(&mut self) -> Result<(), DeflateError> {
        let bytes = self.data.get(self.next..).and_then(|rest| rest.first_chunk()).ok_or(PAST_END)?;
        self.hold |= u64::from_le_bytes(*bytes) << (self.count & 63);
        self.next += ((63 - (self.count & 63)) >> 3) as usize;
        self.count |= 56;
        Ok(())
    }

    /// Skips as many loaded bits as the lowest 6 bits of `bits` say. The higher bits are ignored, so that an entry of a
    /// Huffman table can be passed without masking.
    #[inline]
    pub(super) fn skip(&mut self, bits: u32) {
        self.hold >>= bits & 63;
        self.count = self.count.wrapping_sub(bits);
    }

    /// Takes up to 16 loaded bits.
    pub(super) fn take(&mut self, bits: u32) -> u32 {
        let value = u32::try_from(self.hold & ((1 << bits) - 1)).expect("at most 16 bits are taken");
        self.skip(bits);
        value
    }

    /// Takes the code and the extra bits of a symbol, and returns its value. `entry` is an entry of a Huffman table.
    #[inline]
    pub(super) fn value(&mut self, entry: u32) -> u32 {
        let all = self.hold & !(u64::MAX << (entry & 63));
        self.skip(entry);
        #[expect(clippy::cast_possible_truncation, reason = "at most 13 extra bits, and on the hot path")]
        let extra = (all >> (entry >> 8 & 15)) as u32;
        (entry >> 16) + extra
    }

    /// Skips to the start of the next byte, unless already there.
    pub(super) fn skip_to_byte(&mut self) {
        self.skip(self.count & 7);
    }

    /// Skips whole bytes. The position must be at the start of a byte.
    pub(super) fn skip_bytes(&mut self, bytes: usize) -> Result<(), DeflateError> {
        *self = Self::at(self.data, self.position() + bytes * 8)?;
        Ok(())
    }
}
