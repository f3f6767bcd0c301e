//! The Huffman codes of deflate blocks as lookup tables (RFC 1951, 3.2).

use std::sync::{Arc, LazyLock};

use super::bits::{BitReader, DeflateError};

/// Length of the prefix of a code that indexes the first table, in bits. Longer codes take a second lookup.
const LITERAL_BITS: u32 = 10;
const DISTANCE_BITS: u32 = 8;

// A table entry is a u32:
//   bits 0-5    how many bits to skip: the code and its extra bits
//   bits 8-11   how many of them are the code; of a link: how many bits index the second table
//   bits 16-30  the base value; of a link: the start of the second table
// and these flags:

/// A literal byte.
pub(super) const LITERAL: u32 = 1 << 31;
/// Not a literal, length or distance. Without another flag, no symbol has this code.
pub(super) const SPECIAL: u32 = 1 << 15;
/// The code is longer than the first lookup: the entry leads to a second table.
pub(super) const LINK: u32 = SPECIAL | 1 << 14;
/// The end of the block.
pub(super) const BLOCK_END: u32 = SPECIAL | 1 << 13;

/// A table entry without the length of its code.
const fn symbol(base: u32, extra: u32) -> u32 {
    base << 16 | extra
}

/// The two Huffman codes of a block as lookup tables.
///
/// The sizes are powers of two above the largest tables for complete codes of 288 and 32 symbols with these first lookups:
/// 1334 and 402 entries, as computed by zlib's `enough`.
#[derive(Debug)]
pub(super) struct HuffmanCodes {
    literals: [u32; 2048],
    distances: [u32; 512],
}

impl HuffmanCodes {
    fn new(literals: &[u8], distances: &[u8]) -> Result<Self, DeflateError> {
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

    /// Looks up a literal or length by the next bits.
    #[inline]
    pub(super) fn literal(&self, hold: u64) -> u32 {
        self.literals[(hold & ((1 << LITERAL_BITS) - 1)) as usize]
    }

    /// Second lookup, after `link` was skipped.
    #[inline]
    pub(super) fn literal_long(&self, link: u32, hold: u64) -> u32 {
        self.literals[second_index(link, hold) & (self.literals.len() - 1)]
    }

    /// Looks up a distance by the next bits.
    #[inline]
    pub(super) fn distance(&self, hold: u64) -> u32 {
        self.distances[(hold & ((1 << DISTANCE_BITS) - 1)) as usize]
    }

    /// Second lookup, after `link` was skipped.
    #[inline]
    pub(super) fn distance_long(&self, link: u32, hold: u64) -> u32 {
        self.distances[second_index(link, hold) & (self.distances.len() - 1)]
    }
}

#[inline]
fn second_index(link: u32, hold: u64) -> usize {
    let bits = (link >> 8) & 15;
    #[expect(clippy::cast_possible_truncation, reason = "masked to 15 bits, and on the hot path")]
    let more = (hold & ((1 << bits) - 1)) as usize;
    ((link >> 16) & 0x7fff) as usize + more
}

/// The length symbols, from symbol 257 on.
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

/// Returns the fixed codes, for blocks that define no codes (RFC 1951, 3.2.6).
pub(super) fn fixed_codes() -> Arc<HuffmanCodes> {
    static FIXED: LazyLock<Arc<HuffmanCodes>> = LazyLock::new(|| {
        let mut literals = [8u8; 288];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        Arc::new(HuffmanCodes::new(&literals, &[5; 32]).expect("the fixed codes are complete"))
    });
    Arc::clone(&FIXED)
}

/// Fills a lookup table for the code with these lengths. On entry, all slots must be `SPECIAL`. `entry` returns a symbol's
/// entry without the length of its code.
fn fill_table(
    lengths: &[u8],
    first_bits: u32,
    table: &mut [u32],
    entry: impl Fn(usize) -> u32,
) -> Result<(), DeflateError> {
    let mut count = [0u16; 16];
    for &length in lengths {
        count[usize::from(length)] += 1;
    }
    count[0] = 0;
    let mut free = 1i32;
    for &n in &count[1..] {
        free = free * 2 - i32::from(n);
        if free < 0 {
            return Err(DeflateError("a Huffman code has too many symbols"));
        }
    }
    // Deflate allows two incomplete codes: one without symbols, and one with a single symbol of one bit.
    if free > 0 && count[2..].iter().any(|&n| n != 0) {
        return Err(DeflateError("a Huffman code is incomplete"));
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
    // The first bit of a code in the stream is the lowest bit of an index: `code` is the code with its bits reversed.
    let mut code = 0usize;
    let mut linked = None;
    let (mut link_start, mut link_bits) = (1usize << first_bits, 0u32);
    for &symbol in &sorted[..total] {
        let length = u32::from(lengths[usize::from(symbol)]);
        let value = entry(usize::from(symbol));
        let (part, index_bits) = if length <= first_bits {
            (table.get_mut(..1 << first_bits), length)
        } else {
            let prefix = code & ((1 << first_bits) - 1);
            if linked != Some(prefix) {
                // Starts the next second table. It must be large enough for all codes with this prefix, which are the next
                // ones in order.
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
        let part = part.ok_or(DeflateError("a Huffman code does not fit its table"))?;
        let first = if length <= first_bits { code } else { code >> first_bits };
        for slot in part.iter_mut().skip(first).step_by(1 << index_bits) {
            *slot = value + (index_bits << 8 | index_bits);
        }
        count[length as usize] -= 1;
        // Adds one to the reversed code, whose highest bit is the lowest of the number.
        let mut bit = 1usize << (length - 1);
        while code & bit != 0 {
            bit >>= 1;
        }
        code = if bit == 0 { 0 } else { (code & (bit - 1)) | bit };
    }
    Ok(())
}

/// Reads the codes of a dynamic block from its header (RFC 1951, 3.2.7).
pub(super) fn read_codes(bits: &mut BitReader<'_>) -> Result<HuffmanCodes, DeflateError> {
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
            return Err(DeflateError("no code length has this Huffman code"));
        }
        bits.skip(entry);
        let (value, times) = match entry >> 16 {
            16 => {
                let before =
                    at.checked_sub(1).ok_or(DeflateError("the first code length is a repetition"))?;
                (lengths[before], bits.take(2) as usize + 3)
            }
            17 => (0, bits.take(3) as usize + 3),
            18 => (0, bits.take(7) as usize + 11),
            length => (u8::try_from(length).expect("at most 15"), 1),
        };
        let run = lengths[..all].get_mut(at..at + times).ok_or(DeflateError("too many code lengths"))?;
        run.fill(value);
        at += times;
    }
    HuffmanCodes::new(&lengths[..literals], &lengths[literals..all])
}
