//! Walks over deflate data symbol by symbol without making its bytes (RFC 1951).
//!
//! zlib can stop behind a block, but not behind a symbol, and it does not tell what a match refers to. The
//! walk does both. It runs only over data that inflate has decoded, so that the bytes are known to be good:
//! its own checks are there to keep it from running astray, not to judge the data.

use std::sync::Arc;

use super::BlockHeader;
use super::huffman::{BLOCK_END, Bits, Codes, LINK, LITERAL, PADDING, SPECIAL, fixed_codes, read_codes};

/// What is not right about the data, or about where the walk started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Astray(pub(super) &'static str);

/// The compressed bytes that a walk may still need.
#[derive(Debug)]
pub(super) struct Tape {
    start: u64,
    /// With [`PADDING`] zeros behind them.
    bytes: Vec<u8>,
}

impl Tape {
    /// Holds nothing; the next byte is the blob's first.
    pub(super) fn new() -> Self {
        Self { start: 0, bytes: vec![0; PADDING] }
    }

    /// Forgets everything; the next byte is the blob's byte `at`.
    pub(super) fn restart(&mut self, at: u64) {
        self.start = at;
        self.bytes.clear();
        self.bytes.resize(PADDING, 0);
    }

    /// Takes the next bytes.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.len());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len() + PADDING, 0);
    }

    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - PADDING
    }

    /// Forgets what stands before the blob's byte `at`.
    pub(super) fn forget_before(&mut self, at: u64) {
        let gone = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.len());
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

    /// Goes on until a symbol starts at or behind the tar's byte `until`, would end behind the tar's byte
    /// `limit` (not less than `until`), or the stream ends. `on_match` gets each match: its first byte in the
    /// tar, length, and distance.
    pub(super) fn walk(
        &mut self,
        tape: &Tape,
        until: u64,
        limit: u64,
        mut on_match: impl FnMut(u64, u32, u32),
    ) -> Result<(), Astray> {
        let origin = tape.start * 8;
        let from = self.bit.checked_sub(origin).and_then(|bit| usize::try_from(bit).ok());
        let mut bits = Bits::at(&tape.bytes, from.ok_or(Astray("the walk starts before its data"))?)?;
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
                    bits.skip_bytes(usize::from(take))?;
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
            if bits.position() > tape.len() * 8 {
                return Err(PAST_END);
            }
            if !going {
                break;
            }
        }
        self.bit = origin + bits.position() as u64;
        Ok(())
    }
}

pub(super) const PAST_END: Astray = Astray("the walk runs past its data");
const NO_CODE: Astray = Astray("a code that stands for nothing");

/// Walks until the block ends (`true`), or `until` or `limit` is reached (`false`).
#[inline]
fn walk_symbols(
    bits: &mut Bits<'_>,
    codes: &Codes,
    tar: &mut u64,
    until: u64,
    limit: u64,
    on_match: &mut impl FnMut(u64, u32, u32),
) -> Result<bool, Astray> {
    // A turn of the fast loop makes at most two literals and a match, or three literals.
    let safe = until.saturating_sub(2).min(limit.saturating_sub(2 + 258));
    if *tar < safe && walk_symbols_fast(bits, codes, tar, safe, on_match)? {
        return Ok(true);
    }
    while *tar < until {
        bits.refill()?;
        let before = *bits;
        let mut entry = codes.literal(bits.hold);
        if entry & LINK == LINK {
            bits.drop(entry);
            entry = codes.literal_long(entry, bits.hold);
        }
        let length = bits.value(entry);
        if entry & LITERAL != 0 {
            *tar += 1;
        } else if entry & SPECIAL != 0 {
            return if entry & BLOCK_END == BLOCK_END { Ok(true) } else { Err(NO_CODE) };
        } else {
            let distance = walk_distance(bits, codes)?;
            if *tar + u64::from(length) > limit {
                *bits = before;
                break;
            }
            on_match(*tar, length, distance);
            *tar += u64::from(length);
        }
    }
    Ok(false)
}

#[inline]
fn walk_distance(bits: &mut Bits<'_>, codes: &Codes) -> Result<u32, Astray> {
    // Eight bits are there even if two literals and a length were taken since the last refill.
    let mut entry = codes.distance(bits.hold);
    bits.refill()?;
    if entry & SPECIAL != 0 {
        if entry & LINK != LINK {
            return Err(NO_CODE);
        }
        bits.drop(entry);
        entry = codes.distance_long(entry, bits.hold);
        if entry & SPECIAL != 0 {
            return Err(NO_CODE);
        }
    }
    Ok(bits.value(entry))
}

/// The same until `safe` or a little more. What decides the speed is the way from one table lookup to the
/// next: so the next entry is looked up before the bits are refilled, which changes none of those it depends
/// on.
#[inline]
fn walk_symbols_fast(
    bits: &mut Bits<'_>,
    codes: &Codes,
    tar: &mut u64,
    safe: u64,
    on_match: &mut impl FnMut(u64, u32, u32),
) -> Result<bool, Astray> {
    // Copies, so that they live in registers.
    let (mut b, mut at) = (*bits, *tar);
    b.refill()?;
    let mut entry = codes.literal(b.hold);
    let ended = loop {
        if at >= safe {
            break false;
        }
        // One refill is enough for three short literals, for two and a length, and for two and a long one,
        // each with the next lookup: at most 48 bits of 56.
        if entry & LITERAL != 0 {
            b.drop(entry);
            at += 1;
            entry = codes.literal(b.hold);
            if entry & LITERAL != 0 {
                b.drop(entry);
                at += 1;
                entry = codes.literal(b.hold);
                if entry & LITERAL != 0 {
                    b.drop(entry);
                    at += 1;
                    entry = codes.literal(b.hold);
                    b.refill()?;
                    continue;
                }
            }
        }
        if entry & SPECIAL != 0 {
            if entry & LINK == LINK {
                b.drop(entry);
                entry = codes.literal_long(entry, b.hold);
                if entry & LITERAL != 0 {
                    b.drop(entry);
                    at += 1;
                    entry = codes.literal(b.hold);
                    b.refill()?;
                    continue;
                }
            }
            if entry & SPECIAL != 0 {
                if entry & BLOCK_END != BLOCK_END {
                    return Err(NO_CODE);
                }
                b.drop(entry);
                break true;
            }
        }
        let length = b.value(entry);
        let distance = walk_distance(&mut b, codes)?;
        entry = codes.literal(b.hold);
        on_match(at, length, distance);
        at += u64::from(length);
        b.refill()?;
    };
    (*bits, *tar) = (b, at);
    Ok(ended)
}

fn read_block_header(bits: &mut Bits<'_>, origin: u64) -> Result<Place, Astray> {
    let start = bits.position();
    bits.refill()?;
    let last = bits.take(1) == 1;
    let kind = bits.take(2);
    let mut stored = 0;
    let codes = match kind {
        0 => {
            bits.skip_to_byte();
            bits.refill()?;
            let length = bits.take(16);
            if length ^ bits.take(16) != 0xffff {
                return Err(Astray("a stored block's lengths do not match"));
            }
            stored = u16::try_from(length).expect("16 bits");
            None
        }
        1 => Some(fixed_codes()),
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
