//! Walks over deflate data symbol by symbol without making its bytes (RFC 1951).
//!
//! zlib can stop behind a block, but not behind a symbol, and it does not tell what a match refers to. The walk
//! does both. It runs only over data that inflate has decoded, so that the bytes are known to be good: its own
//! checks are there to keep it from running astray, not to judge the data.

use std::sync::{Arc, LazyLock};

use super::BlockHeader;

/// What is not right about the data, or about where the walk started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Astray(pub(super) &'static str);

/// The compressed bytes that a walk may still need.
#[derive(Debug, Default)]
pub(super) struct Tape {
    start: u64,
    bytes: Vec<u8>,
}

impl Tape {
    /// Forgets everything; the next byte is the blob's byte `at`.
    pub(super) fn restart(&mut self, at: u64) {
        self.start = at;
        self.bytes.clear();
    }

    /// Takes the next bytes.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets what stands before the blob's byte `at`.
    pub(super) fn forget_before(&mut self, at: u64) {
        let gone = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.drain(..gone);
        self.start += gone as u64;
    }
}

/// A position between two symbols of a deflate stream.
#[derive(Debug, Clone)]
pub(super) struct Walker {
    bit: u64,
    tar: u64,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// The next bit is BFINAL.
    BlockStart,
    /// The next bit belongs to a symbol.
    Symbols { block: BlockHeader, last: bool, codes: Arc<Codes> },
    /// The next byte is a stored one; `left` of them are to come.
    Stored { block: BlockHeader, last: bool, left: u16 },
    /// Behind the last block.
    End,
}

impl Walker {
    /// A position in front of a block: bit of the blob, byte of the tar.
    pub(super) fn before_block(bit: u64, tar: u64) -> Self {
        Self { bit, tar, place: Place::BlockStart }
    }

    /// The next bit, counted in the blob.
    pub(super) fn bit(&self) -> u64 {
        self.bit
    }

    /// The next byte, counted in the tar.
    pub(super) fn tar(&self) -> u64 {
        self.tar
    }

    /// The header of the block that the position is inside of.
    pub(super) fn block(&self) -> Option<BlockHeader> {
        match &self.place {
            Place::Symbols { block, .. } | Place::Stored { block, .. } => Some(*block),
            Place::BlockStart | Place::End => None,
        }
    }

    /// Goes on until a symbol starts at or behind the tar's byte `until`, would end behind the tar's byte `limit`
    /// (not less than `until`), or the stream ends. `on_match` gets each match: its first byte in the tar, length, distance.
    pub(super) fn walk(
        &mut self,
        tape: &Tape,
        until: u64,
        limit: u64,
        mut on_match: impl FnMut(u64, u32, u32),
    ) -> Result<(), Astray> {
        let origin = tape.start * 8;
        let from = self.bit.checked_sub(origin).and_then(|bit| usize::try_from(bit).ok());
        let mut bits = Bits::at(&tape.bytes, from.ok_or(Astray("the walk starts before its data"))?);
        loop {
            let going = match &mut self.place {
                Place::End => break,
                Place::BlockStart => {
                    if self.tar >= until {
                        break;
                    }
                    self.place = read_block_header(&mut bits, origin)?;
                    true
                }
                Place::Stored { last, left, block } => {
                    let take = u16::try_from(until.saturating_sub(self.tar)).unwrap_or(u16::MAX).min(*left);
                    bits.skip_bytes(usize::from(take));
                    self.tar += u64::from(take);
                    *left -= take;
                    block.stored_before += take;
                    let ended = *left == 0;
                    if ended {
                        self.place = if *last { Place::End } else { Place::BlockStart };
                    }
                    ended
                }
                Place::Symbols { codes, last, .. } => {
                    let last = *last;
                    let ended = walk_symbols(&mut bits, codes, &mut self.tar, until, limit, &mut on_match)?;
                    if ended {
                        self.place = if last { Place::End } else { Place::BlockStart };
                    }
                    ended
                }
            };
            if bits.position() > tape.bytes.len() * 8 {
                return Err(Astray("the walk runs past its data"));
            }
            if !going {
                break;
            }
        }
        self.bit = origin + bits.position() as u64;
        Ok(())
    }
}

/// Walks until the block ends (`true`) or the caller's end is reached (`false`).
#[inline]
fn walk_symbols(
    bits: &mut Bits<'_>,
    codes: &Codes,
    tar: &mut u64,
    until: u64,
    limit: u64,
    on_match: &mut impl FnMut(u64, u32, u32),
) -> Result<bool, Astray> {
    // Copies, so that they live in registers.
    let (mut b, mut at) = (*bits, *tar);
    let ended = loop {
        b.refill();
        if at >= until {
            break false;
        }
        let mut entry = codes.literal(b.hold);
        if entry & LITERAL != 0 {
            // Two short literals fit into one refill together with nothing else, which is the common case in text.
            b.drop(entry & 15);
            at += 1;
            if at >= until {
                break false;
            }
            entry = codes.literal(b.hold);
            if entry & LITERAL != 0 {
                b.drop(entry & 15);
                at += 1;
                continue;
            }
            b.refill();
        }
        let before = b;
        if entry & SPECIAL != 0 {
            if entry & LINK != 0 {
                b.drop(LITERAL_BITS);
                entry = codes.literal_long(entry, b.hold);
                if entry & LITERAL != 0 {
                    b.drop(entry & 15);
                    at += 1;
                    continue;
                }
            }
            if entry & SPECIAL != 0 {
                if entry & BLOCK_END == 0 {
                    return Err(Astray("a code that stands for nothing"));
                }
                b.drop(entry & 15);
                break true;
            }
        }
        let length = b.value(entry);
        let mut entry = codes.distance(b.hold);
        if entry & SPECIAL != 0 {
            if entry & LINK == 0 {
                return Err(Astray("a distance code that stands for nothing"));
            }
            b.drop(DISTANCE_BITS);
            entry = codes.distance_long(entry, b.hold);
            if entry & SPECIAL != 0 {
                return Err(Astray("a distance code that stands for nothing"));
            }
        }
        let distance = b.value(entry);
        if at + u64::from(length) > limit {
            b = before;
            break false;
        }
        on_match(at, length, distance);
        at += u64::from(length);
    };
    (*bits, *tar) = (b, at);
    Ok(ended)
}

fn read_block_header(bits: &mut Bits<'_>, origin: u64) -> Result<Place, Astray> {
    let start = bits.position();
    bits.refill();
    let last = bits.take(1) == 1;
    let kind = bits.take(2);
    let mut stored = 0;
    let codes = match kind {
        0 => {
            bits.skip_to_byte();
            bits.refill();
            let length = bits.take(16);
            if length ^ bits.take(16) != 0xffff {
                return Err(Astray("a stored block's lengths do not match"));
            }
            stored = u16::try_from(length).expect("16 bits");
            None
        }
        1 => Some(Arc::clone(&FIXED)),
        2 => Some(Arc::new(read_codes(bits)?)),
        _ => return Err(Astray("a block of no known type")),
    };
    let length = u32::try_from(bits.position() - start).expect("a block header has less than 3000 bits");
    let block = BlockHeader { start_bit: origin + start as u64, bits: length, stored_before: 0 };
    Ok(match codes {
        Some(codes) => Place::Symbols { block, last, codes },
        None => Place::Stored { block, last, left: stored },
    })
}

/// Reads the code lengths of a dynamic block (RFC 1951, 3.2.7).
fn read_codes(bits: &mut Bits<'_>) -> Result<Codes, Astray> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    bits.refill();
    let literals = bits.take(5) as usize + 257;
    let distances = bits.take(5) as usize + 1;
    let used = bits.take(4) as usize + 4;
    let mut lengths = [0u8; 19];
    for &symbol in &ORDER[..used] {
        bits.refill();
        lengths[symbol] = u8::try_from(bits.take(3)).expect("3 bits");
    }
    let mut table = [0; 128];
    fill_table(&lengths, 7, &mut table, |symbol| u32::try_from(symbol).expect("at most 18") << 16)?;

    let mut lengths = [0u8; 288 + 32];
    let all = literals + distances;
    let mut at = 0;
    while at < all {
        bits.refill();
        let entry = table[(bits.hold & 127) as usize];
        if entry & SPECIAL != 0 {
            return Err(Astray("a code length code that stands for nothing"));
        }
        bits.drop(entry & 15);
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

/// Bits of a code that the first lookup sees.
const LITERAL_BITS: u32 = 11;
const DISTANCE_BITS: u32 = 8;

// A table entry: bits 0-3 code length, 4-7 extra bits (of a link: bits of the table behind it), 16-30 base value
// (of a link: where that table starts), and these:
const LITERAL: u32 = 1 << 31;
/// Not a plain symbol: a link, the end of the block, or (with neither bit) no code at all.
const SPECIAL: u32 = 1 << 15;
const LINK: u32 = 1 << 14;
const BLOCK_END: u32 = 1 << 13;

/// The two Huffman codes of a block as lookup tables. The sizes are powers of two above what a complete code
/// of 288 (32) symbols can need with these first lookups: 2342 and 402 entries (zlib's `enough` computes them).
#[derive(Debug)]
struct Codes {
    literals: [u32; 4096],
    distances: [u32; 512],
}

impl Codes {
    fn new(literals: &[u8], distances: &[u8]) -> Result<Self, Astray> {
        let mut codes = Self { literals: [SPECIAL; 4096], distances: [SPECIAL; 512] };
        fill_table(literals, LITERAL_BITS, &mut codes.literals, |symbol| match symbol {
            0..=255 => LITERAL,
            256 => SPECIAL | BLOCK_END,
            _ => LENGTHS.get(symbol - 257).map_or(SPECIAL, |&(base, extra)| base << 16 | extra << 4),
        })?;
        fill_table(distances, DISTANCE_BITS, &mut codes.distances, |symbol| {
            DISTANCES.get(symbol).map_or(SPECIAL, |&(base, extra)| base << 16 | extra << 4)
        })?;
        Ok(codes)
    }

    #[inline]
    fn literal(&self, hold: u64) -> u32 {
        self.literals[(hold & ((1 << LITERAL_BITS) - 1)) as usize]
    }

    #[inline]
    fn literal_long(&self, link: u32, hold: u64) -> u32 {
        self.literals[long(link, hold) & (self.literals.len() - 1)]
    }

    #[inline]
    fn distance(&self, hold: u64) -> u32 {
        self.distances[(hold & ((1 << DISTANCE_BITS) - 1)) as usize]
    }

    #[inline]
    fn distance_long(&self, link: u32, hold: u64) -> u32 {
        self.distances[long(link, hold) & (self.distances.len() - 1)]
    }
}

#[inline]
fn long(link: u32, hold: u64) -> usize {
    let bits = (link >> 4) & 15;
    #[expect(clippy::cast_possible_truncation, reason = "masked to 15 bits, and on the hot path")]
    let more = (hold & ((1 << bits) - 1)) as usize;
    ((link >> 16) & 0x7fff) as usize + more
}

/// (base, extra bits) of the length symbols from 257 on.
const LENGTHS: [(u32, u32); 29] = {
    let mut all = [(0, 0); 29];
    let mut base = 3;
    let mut i = 0u32;
    while i < 28 {
        let extra = if i < 8 { 0 } else { (i - 4) / 4 };
        all[i as usize] = (base, extra);
        base += 1 << extra;
        i += 1;
    }
    all[28] = (258, 0);
    all
};

/// (base, extra bits) of the distance symbols.
const DISTANCES: [(u32, u32); 30] = {
    let mut all = [(0, 0); 30];
    let mut base = 1;
    let mut i = 0u32;
    while i < 30 {
        let extra = if i < 4 { 0 } else { (i - 2) / 2 };
        all[i as usize] = (base, extra);
        base += 1 << extra;
        i += 1;
    }
    all
};

/// The codes of blocks that do not bring their own (RFC 1951, 3.2.6).
static FIXED: LazyLock<Arc<Codes>> = LazyLock::new(|| {
    let mut literals = [8u8; 288];
    literals[144..256].fill(9);
    literals[256..280].fill(7);
    Arc::new(Codes::new(&literals, &[5; 32]).expect("the fixed codes are complete"))
});

/// Fills a lookup table for the code with these lengths. `entry` gives a symbol's entry without its code length.
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
    table.fill(SPECIAL | 1);

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
                // The next table: as large as the codes with this prefix need, which are the next ones in order.
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
                table[prefix] = SPECIAL | LINK | start << 16 | link_bits << 4 | first_bits;
            }
            (table.get_mut(link_start..link_start + (1 << link_bits)), length - first_bits)
        };
        let part = part.ok_or(Astray("a code that does not fit its table"))?;
        let first = if length <= first_bits { code } else { code >> first_bits };
        for slot in part.iter_mut().skip(first).step_by(1 << shown) {
            *slot = value | shown;
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

/// Reads bits, lowest first. Behind the end of the data come zeros; the position tells.
#[derive(Debug, Clone, Copy)]
struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to load.
    next: usize,
    /// The bits loaded. Above `count` it may hold bits of the bytes from `next` on, which will be loaded again.
    hold: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn at(data: &'a [u8], bit: usize) -> Self {
        let mut bits = Self { data, next: bit / 8, hold: 0, count: 0 };
        bits.refill();
        bits.drop(u32::try_from(bit % 8).expect("less than 8"));
        bits
    }

    fn position(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    /// Has at least 56 bits afterwards: a length and a distance with all their extra bits are 48.
    #[inline]
    fn refill(&mut self) {
        if let Some(bytes) = self.data.get(self.next..).and_then(|rest| rest.first_chunk()) {
            self.hold |= u64::from_le_bytes(*bytes) << self.count;
            self.next += ((63 - self.count) >> 3) as usize;
            self.count |= 56;
        } else {
            while self.count < 56 {
                self.hold |= u64::from(self.data.get(self.next).copied().unwrap_or(0)) << self.count;
                self.next += 1;
                self.count += 8;
            }
        }
    }

    #[inline]
    fn drop(&mut self, bits: u32) {
        self.hold >>= bits;
        self.count -= bits;
    }

    fn take(&mut self, bits: u32) -> u32 {
        let value = u32::try_from(self.hold & ((1 << bits) - 1)).expect("at most 16 bits are taken");
        self.drop(bits);
        value
    }

    /// Takes a symbol's code and extra bits.
    #[inline]
    fn value(&mut self, entry: u32) -> u32 {
        let (code, extra) = (entry & 15, (entry >> 4) & 15);
        #[expect(clippy::cast_possible_truncation, reason = "masked to 13 bits, and on the hot path")]
        let more = ((self.hold >> code) & ((1 << extra) - 1)) as u32;
        self.drop(code + extra);
        (entry >> 16) + more
    }

    fn skip_to_byte(&mut self) {
        self.drop(self.count % 8);
    }

    /// Skips whole bytes, at a byte's start.
    fn skip_bytes(&mut self, bytes: usize) {
        *self = Self::at(self.data, self.position() + bytes * 8);
    }
}
