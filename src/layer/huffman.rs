//! The Huffman codes of deflate blocks as lookup tables, and the bits they are read from (RFC 1951, 3.2).

use std::sync::{Arc, LazyLock};

use super::deflate::{Astray, PAST_END};

/// Bits of a code that the first lookup sees.
const LITERAL_BITS: u32 = 10;
const DISTANCE_BITS: u32 = 8;

// A table entry: bits 0-5 how many bits to drop (code and extra bits), 8-11 how many of them are the code (of
// a link: how many bits choose in the table behind it), 16-30 base value (of a link: where that table
// starts), and these:
pub(super) const LITERAL: u32 = 1 << 31;
/// Not a plain symbol: no code at all, or with one bit more:
pub(super) const SPECIAL: u32 = 1 << 15;
pub(super) const LINK: u32 = SPECIAL | 1 << 14;
pub(super) const BLOCK_END: u32 = SPECIAL | 1 << 13;

/// An entry without its code.
const fn symbol(base: u32, extra: u32) -> u32 {
    base << 16 | extra
}

/// The two Huffman codes of a block as lookup tables. The sizes are powers of two above what a complete code
/// of 288 (32) symbols can need with these first lookups: 1334 and 402 entries (zlib's `enough` computes
/// them).
#[derive(Debug)]
pub(super) struct Codes {
    literals: [u32; 2048],
    distances: [u32; 512],
}

impl Codes {
    fn new(literals: &[u8], distances: &[u8]) -> Result<Self, Astray> {
        let mut codes = Self { literals: [SPECIAL; 2048], distances: [SPECIAL; 512] };
        fill_table(literals, LITERAL_BITS, &mut codes.literals, |number| match number {
            0..=255 => LITERAL,
            256 => BLOCK_END,
            _ => LENGTHS.get(number - 257).copied().unwrap_or(SPECIAL),
        })?;
        fill_table(distances, DISTANCE_BITS, &mut codes.distances, |number| {
            DISTANCES.get(number).copied().unwrap_or(SPECIAL)
        })?;
        Ok(codes)
    }

    #[inline]
    pub(super) fn literal(&self, hold: u64) -> u32 {
        self.literals[(hold & ((1 << LITERAL_BITS) - 1)) as usize]
    }

    #[inline]
    pub(super) fn literal_long(&self, link: u32, hold: u64) -> u32 {
        self.literals[long(link, hold) & (self.literals.len() - 1)]
    }

    #[inline]
    pub(super) fn distance(&self, hold: u64) -> u32 {
        self.distances[(hold & ((1 << DISTANCE_BITS) - 1)) as usize]
    }

    #[inline]
    pub(super) fn distance_long(&self, link: u32, hold: u64) -> u32 {
        self.distances[long(link, hold) & (self.distances.len() - 1)]
    }
}

#[inline]
fn long(link: u32, hold: u64) -> usize {
    let bits = (link >> 8) & 15;
    #[expect(clippy::cast_possible_truncation, reason = "masked to 15 bits, and on the hot path")]
    let more = (hold & ((1 << bits) - 1)) as usize;
    ((link >> 16) & 0x7fff) as usize + more
}

/// The length symbols from 257 on.
const LENGTHS: [u32; 29] = {
    let mut all = [0; 29];
    let mut base = 3;
    let mut i = 0u32;
    while i < 28 {
        let extra = if i < 8 { 0 } else { (i - 4) / 4 };
        all[i as usize] = symbol(base, extra);
        base += 1 << extra;
        i += 1;
    }
    all[28] = symbol(258, 0);
    all
};

/// The distance symbols.
const DISTANCES: [u32; 30] = {
    let mut all = [0; 30];
    let mut base = 1;
    let mut i = 0u32;
    while i < 30 {
        let extra = if i < 4 { 0 } else { (i - 2) / 2 };
        all[i as usize] = symbol(base, extra);
        base += 1 << extra;
        i += 1;
    }
    all
};

/// The codes of blocks that do not bring their own (RFC 1951, 3.2.6).
pub(super) fn fixed_codes() -> Arc<Codes> {
    static FIXED: LazyLock<Arc<Codes>> = LazyLock::new(|| {
        let mut literals = [8u8; 288];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        Arc::new(Codes::new(&literals, &[5; 32]).expect("the fixed codes are complete"))
    });
    Arc::clone(&FIXED)
}

/// Fills a lookup table, all `SPECIAL` before, for the code with these lengths. `entry` gives a symbol's
/// entry without its code length.
fn fill_table(
    lengths: &[u8],
    first_bits: u32,
    table: &mut [u32],
    entry: impl Fn(usize) -> u32,
) -> Result<(), Astray> {
    let mut count = [0u16; 16];
    for &length in lengths {
        count[usize::from(length)] += 1;
    }
    count[0] = 0;
    let mut free = 1i32;
    for &n in &count[1..] {
        free = free * 2 - i32::from(n);
        if free < 0 {
            return Err(Astray("a code with too many symbols"));
        }
    }
    // Deflate knows two incomplete codes: without any symbol, and of one symbol with one bit.
    if free > 0 && count[2..].iter().any(|&n| n != 0) {
        return Err(Astray("an incomplete code"));
    }
    // Symbols in the order of their codes: by length, then by number.
    let mut next = [0usize; 16];
    for length in 1..15 {
        next[length + 1] = next[length] + usize::from(count[length]);
    }
    let mut sorted = [0u16; 288 + 32];
    for (symbol, &length) in lengths.iter().enumerate().filter(|(_, length)| **length != 0) {
        sorted[next[usize::from(length)]] = u16::try_from(symbol).expect("at most 288 symbols");
        next[usize::from(length)] += 1;
    }

    let total: usize = count.iter().map(|&n| usize::from(n)).sum();
    // Codes are read from their first bit on, which is the lowest: `code` is the code with its bits reversed.
    let mut code = 0usize;
    let mut linked = None;
    let (mut link_start, mut link_bits) = (1usize << first_bits, 0u32);
    for &symbol in &sorted[..total] {
        let length = u32::from(lengths[usize::from(symbol)]);
        let value = entry(usize::from(symbol));
        let (part, shown) = if length <= first_bits {
            (table.get_mut(..1 << first_bits), length)
        } else {
            let prefix = code & ((1 << first_bits) - 1);
            if linked != Some(prefix) {
                // The next table: as large as the codes with this prefix need, which are the next ones in
                // order.
                link_start += if linked.is_some() { 1 << link_bits } else { 0 };
                link_bits = length - first_bits;
                let mut room = 1i32 << link_bits;
                loop {
                    room -= i32::from(count[(first_bits + link_bits) as usize]);
                    if room <= 0 || first_bits + link_bits == 15 {
                        break;
                    }
                    link_bits += 1;
                    room *= 2;
                }
                linked = Some(prefix);
                let start = u32::try_from(link_start).expect("tables are small");
                table[prefix] = LINK | start << 16 | link_bits << 8 | first_bits;
            }
            (table.get_mut(link_start..link_start + (1 << link_bits)), length - first_bits)
        };
        let part = part.ok_or(Astray("a code that does not fit its table"))?;
        let first = if length <= first_bits { code } else { code >> first_bits };
        for slot in part.iter_mut().skip(first).step_by(1 << shown) {
            *slot = value + (shown << 8 | shown);
        }
        count[length as usize] -= 1;
        // Adds one to the code, whose highest bit is the lowest of the number.
        let mut bit = 1usize << (length - 1);
        while code & bit != 0 {
            bit >>= 1;
        }
        code = if bit == 0 { 0 } else { (code & (bit - 1)) | bit };
    }
    Ok(())
}

/// Reads the code lengths of a dynamic block (RFC 1951, 3.2.7).
pub(super) fn read_codes(bits: &mut Bits<'_>) -> Result<Codes, Astray> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    bits.refill()?;
    let literals = bits.take(5) as usize + 257;
    let distances = bits.take(5) as usize + 1;
    let used = bits.take(4) as usize + 4;
    let mut lengths = [0u8; 19];
    for &symbol in &ORDER[..used] {
        bits.refill()?;
        lengths[symbol] = u8::try_from(bits.take(3)).expect("3 bits");
    }
    let mut table = [SPECIAL; 128];
    fill_table(&lengths, 7, &mut table, |symbol| u32::try_from(symbol).expect("at most 18") << 16)?;

    let mut lengths = [0u8; 288 + 32];
    let all = literals + distances;
    let mut at = 0;
    while at < all {
        bits.refill()?;
        let entry = table[(bits.hold & 127) as usize];
        if entry & SPECIAL != 0 {
            return Err(Astray("a code length code that stands for nothing"));
        }
        bits.drop(entry);
        let (value, times) = match entry >> 16 {
            16 => {
                let before = at.checked_sub(1).ok_or(Astray("a repeated code length without a first"))?;
                (lengths[before], bits.take(2) as usize + 3)
            }
            17 => (0, bits.take(3) as usize + 3),
            18 => (0, bits.take(7) as usize + 11),
            length => (u8::try_from(length).expect("at most 15"), 1),
        };
        let run = lengths[..all].get_mut(at..at + times).ok_or(Astray("too many code lengths"))?;
        run.fill(value);
        at += times;
    }
    Codes::new(&lengths[..literals], &lengths[literals..all])
}

/// Bytes that are loaded behind the end of the data: 8 at once, of which 7 may have been loaded before.
pub(super) const PADDING: usize = 16;

/// Reads bits, lowest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    /// Ends in [`PADDING`].
    data: &'a [u8],
    /// The next byte to load.
    next: usize,
    /// The bits loaded. Above `count` it may hold bits of the bytes from `next` on, which will be loaded
    /// again.
    pub(super) hold: u64,
    /// How many, modulo 64.
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn at(data: &'a [u8], bit: usize) -> Result<Self, Astray> {
        let mut bits = Self { data, next: bit / 8, hold: 0, count: 0 };
        bits.refill()?;
        bits.drop(u32::try_from(bit % 8).expect("less than 8"));
        Ok(bits)
    }

    pub(super) fn position(&self) -> usize {
        self.next * 8 - (self.count & 63) as usize
    }

    /// Has at least 56 bits afterwards. Only fails behind the end of the data.
    #[inline]
    pub(super) fn refill(&mut self) -> Result<(), Astray> {
        let bytes = self.data.get(self.next..).and_then(|rest| rest.first_chunk()).ok_or(PAST_END)?;
        self.hold |= u64::from_le_bytes(*bytes) << (self.count & 63);
        self.next += ((63 - (self.count & 63)) >> 3) as usize;
        self.count |= 56;
        Ok(())
    }

    /// Drops as many bits as the number's lowest 6 bits say: the rest of a table's entry need not be masked.
    #[inline]
    pub(super) fn drop(&mut self, bits: u32) {
        self.hold >>= bits & 63;
        self.count = self.count.wrapping_sub(bits);
    }

    pub(super) fn take(&mut self, bits: u32) -> u32 {
        let value = u32::try_from(self.hold & ((1 << bits) - 1)).expect("at most 16 bits are taken");
        self.drop(bits);
        value
    }

    /// Takes a symbol's code and extra bits.
    #[inline]
    pub(super) fn value(&mut self, entry: u32) -> u32 {
        let all = self.hold & !(u64::MAX << (entry & 63));
        self.drop(entry);
        #[expect(clippy::cast_possible_truncation, reason = "at most 13 extra bits, and on the hot path")]
        let extra = (all >> (entry >> 8 & 15)) as u32;
        (entry >> 16) + extra
    }

    pub(super) fn skip_to_byte(&mut self) {
        self.drop(self.count & 7);
    }

    /// Skips whole bytes, at a byte's start.
    pub(super) fn skip_bytes(&mut self, bytes: usize) -> Result<(), Astray> {
        *self = Self::at(self.data, self.position() + bytes * 8)?;
        Ok(())
    }
}
