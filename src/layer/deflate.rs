//! Walks over deflate data symbol by symbol without producing the decoded bytes (RFC 1951).
//!
//! zlib can stop after a block but not after a symbol, and it does not report the distances of matches. The walk does both.
//! It runs only over data that inflate has already accepted: its own checks keep it within bounds and do not validate the
//! data.

use std::sync::Arc;

use super::BlockHeader;
use super::bits::{BitReader, DeflateError, PADDING, PAST_END};
use super::huffman::{BLOCK_END, HuffmanCodes, LINK, LITERAL, SPECIAL, fixed_codes, read_codes};

/// The part of a blob that a walk may still need.
#[derive(Debug)]
pub(super) struct CompressedBuffer {
    /// Position of the first byte in the blob.
    start: u64,
    /// The bytes, followed by [`PADDING`] zeros.
    bytes: Vec<u8>,
}

impl CompressedBuffer {
    /// An empty buffer at the start of the blob.
    pub(super) fn new() -> Self {
        Self { start: 0, bytes: vec![0; PADDING] }
    }

    /// Drops all bytes. The next byte is the blob's byte `at`.
    pub(super) fn restart(&mut self, at: u64) {
        self.start = at;
        self.bytes.clear();
        self.bytes.resize(PADDING, 0);
    }

    /// Appends the next bytes of the blob.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.len());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len() + PADDING, 0);
    }

    /// Number of bytes, without the padding.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - PADDING
    }

    /// Drops the bytes before the blob's byte `at`.
    pub(super) fn forget_before(&mut self, at: u64) {
        let count = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.len());
        self.bytes.drain(..count);
        self.start += count as u64;
    }
}

/// A position between two symbols of a deflate stream.
#[derive(Debug, Clone)]
pub(super) struct DeflateWalker {
    bit: u64,
    tar: u64,
    position: BlockPosition,
}

/// A position relative to the blocks of a deflate stream.
#[derive(Debug, Clone)]
enum BlockPosition {
    /// The next bit is BFINAL.
    BlockStart,
    /// The next bit starts a symbol.
    Symbols { block: BlockHeader, last: bool, codes: Arc<HuffmanCodes> },
    /// The next byte belongs to a stored block, of which `remaining` bytes follow.
    Stored { block: BlockHeader, last: bool, remaining: u16 },
    /// After the last block.
    End,
}

impl DeflateWalker {
    /// The position before a block: at bit `bit` of the blob and byte `tar` of the tar.
    pub(super) fn before_block(bit: u64, tar: u64) -> Self {
        Self { bit, tar, position: BlockPosition::BlockStart }
    }

    /// The next bit of the blob.
    pub(super) fn bit(&self) -> u64 {
        self.bit
    }

    /// The next byte of the tar.
    pub(super) fn tar(&self) -> u64 {
        self.tar
    }

    /// The header of the current block; `None` between blocks.
    pub(super) fn block(&self) -> Option<BlockHeader> {
        match &self.position {
            BlockPosition::Symbols { block, .. } | BlockPosition::Stored { block, .. } => Some(*block),
            BlockPosition::BlockStart | BlockPosition::End => None,
        }
    }

    /// Walks until the next symbol starts at or after byte `until` of the tar, or would end after byte `limit` (not less than
    /// `until`), or the stream ends. Calls `on_match` for each match with its first byte in the tar, its length and its distance.
    pub(super) fn walk(
        &mut self,
        buffer: &CompressedBuffer,
        until: u64,
        limit: u64,
        mut on_match: impl FnMut(u64, u32, u32),
    ) -> Result<(), DeflateError> {
        let origin = buffer.start * 8;
        let from = self.bit.checked_sub(origin).and_then(|bit| usize::try_from(bit).ok());
        let from = from.ok_or(DeflateError("the walk starts before the buffered data"))?;
        let mut bits = BitReader::at(&buffer.bytes, from)?;
        loop {
            let proceed = match &mut self.position {
                BlockPosition::End => break,
                BlockPosition::BlockStart => {
                    if self.tar >= until {
                        break;
                    }
                    self.position = read_block_header(&mut bits, origin)?;
                    true
                }
                BlockPosition::Stored { last, remaining, block } => {
                    let take =
                        u16::try_from(until.saturating_sub(self.tar)).unwrap_or(u16::MAX).min(*remaining);
                    bits.skip_bytes(usize::from(take))?;
                    self.tar += u64::from(take);
                    *remaining -= take;
                    block.stored_before += take;
                    let ended = *remaining == 0;
                    if ended {
                        self.position = if *last { BlockPosition::End } else { BlockPosition::BlockStart };
                    }
                    ended
                }
                BlockPosition::Symbols { codes, last, .. } => {
                    let last = *last;
                    let ended = walk_symbols(&mut bits, codes, &mut self.tar, until, limit, &mut on_match)?;
                    if ended {
                        self.position = if last { BlockPosition::End } else { BlockPosition::BlockStart };
                    }
                    ended
                }
            };
            if bits.position() > buffer.len() * 8 {
                return Err(PAST_END);
            }
            if !proceed {
                break;
            }
        }
        self.bit = origin + bits.position() as u64;
        Ok(())
    }
}

const UNUSED_CODE: DeflateError = DeflateError("no symbol has this Huffman code");

/// Walks to the end of the block and returns true, or to `until` or `limit` and returns false.
#[inline]
fn walk_symbols(
    bits: &mut BitReader<'_>,
    codes: &HuffmanCodes,
    tar: &mut u64,
    until: u64,
    limit: u64,
    on_match: &mut impl FnMut(u64, u32, u32),
) -> Result<bool, DeflateError> {
    // One iteration of the fast loop takes at most two literals and a match, or three literals.
    let safe = until.saturating_sub(2).min(limit.saturating_sub(2 + 258));
    if *tar < safe && walk_symbols_fast(bits, codes, tar, safe, on_match)? {
        return Ok(true);
    }
    while *tar < until {
        bits.refill()?;
        let before = *bits;
        let mut entry = codes.literal(bits.hold);
        if entry & LINK == LINK {
            bits.skip(entry);
            entry = codes.literal_long(entry, bits.hold);
        }
        let length = bits.value(entry);
        if entry & LITERAL != 0 {
            *tar += 1;
        } else if entry & SPECIAL != 0 {
            return if entry & BLOCK_END == BLOCK_END { Ok(true) } else { Err(UNUSED_CODE) };
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
fn walk_distance(bits: &mut BitReader<'_>, codes: &HuffmanCodes) -> Result<u32, DeflateError> {
    // The 8 bits of the first lookup are loaded, even if two literals and a length were taken since the last refill.
    let mut entry = codes.distance(bits.hold);
    bits.refill()?;
    if entry & SPECIAL != 0 {
        if entry & LINK != LINK {
            return Err(UNUSED_CODE);
        }
        bits.skip(entry);
        entry = codes.distance_long(entry, bits.hold);
        if entry & SPECIAL != 0 {
            return Err(UNUSED_CODE);
        }
    }
    Ok(bits.value(entry))
}

/// The fast loop of [`walk_symbols`]: stops at `safe` or a few bytes later.
///
/// The speed depends on the latency from one table lookup to the next. So the next entry is looked up before the bits are
/// refilled: a refill does not change the bits that the lookup uses.
#[inline]
fn walk_symbols_fast(
    bits: &mut BitReader<'_>,
    codes: &HuffmanCodes,
    tar: &mut u64,
    safe: u64,
    on_match: &mut impl FnMut(u64, u32, u32),
) -> Result<bool, DeflateError> {
    // Local copies stay in registers.
    let (mut b, mut at) = (*bits, *tar);
    b.refill()?;
    let mut entry = codes.literal(b.hold);
    let ended = loop {
        if at >= safe {
            break false;
        }
        // One refill is enough for three short literals, for two literals and a length, and for two and a long literal,
        // each with the next lookup: at most 48 of 56 bits.
        if entry & LITERAL != 0 {
            b.skip(entry);
            at += 1;
            entry = codes.literal(b.hold);
            if entry & LITERAL != 0 {
                b.skip(entry);
                at += 1;
                entry = codes.literal(b.hold);
                if entry & LITERAL != 0 {
                    b.skip(entry);
                    at += 1;
                    entry = codes.literal(b.hold);
                    b.refill()?;
                    continue;
                }
            }
        }
        if entry & SPECIAL != 0 {
            if entry & LINK == LINK {
                b.skip(entry);
                entry = codes.literal_long(entry, b.hold);
                if entry & LITERAL != 0 {
                    b.skip(entry);
                    at += 1;
                    entry = codes.literal(b.hold);
                    b.refill()?;
                    continue;
                }
            }
            if entry & SPECIAL != 0 {
                if entry & BLOCK_END != BLOCK_END {
                    return Err(UNUSED_CODE);
                }
                b.skip(entry);
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

fn read_block_header(bits: &mut BitReader<'_>, origin: u64) -> Result<BlockPosition, DeflateError> {
    let start = bits.position();
    bits.refill()?;
    let last = bits.take(1) == 1;
    let block_type = bits.take(2);
    let mut stored = 0;
    let codes = match block_type {
        0 => {
            bits.skip_to_byte();
            bits.refill()?;
            let length = bits.take(16);
            if length ^ bits.take(16) != 0xffff {
                return Err(DeflateError("LEN and NLEN of a stored block do not match"));
            }
            stored = u16::try_from(length).expect("16 bits");
            None
        }
        1 => Some(fixed_codes()),
        2 => Some(Arc::new(read_codes(bits)?)),
        _ => return Err(DeflateError("unknown block type")),
    };
    let length = u32::try_from(bits.position() - start).expect("a block header has less than 3000 bits");
    let block = BlockHeader { start_bit: origin + start as u64, bits: length, stored_before: 0 };
    Ok(match codes {
        Some(codes) => BlockPosition::Symbols { block, last, codes },
        None => BlockPosition::Stored { block, last, remaining: stored },
    })
}
