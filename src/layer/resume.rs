//! Decodes a span again from its checkpoint. This is the hot path of reads that miss the caches.
//!
//! Each thread keeps its decoders, because creating one costs as much as decoding a few kilobytes.

use std::cell::RefCell;

use super::inflate::{Inflate, StopCondition, StopReason};
use super::input::BlobInput;
use super::window::REACH;
use super::{BlockHeader, Checkpoint, LayerError, Window, gzip_member, zstd};

/// Longest block header, in bytes. It has at most 2300 bits: 3 of BFINAL and BTYPE, 14 of counts, 57 of the code of code
/// lengths, and 316 code lengths of 7 bits (a repetition takes more bits, but encodes at least 3 lengths).
const HEADER_MAX: usize = 512;
/// Shortest block header, in bits: BFINAL and BTYPE of a block with the fixed codes.
const HEADER_MIN: usize = 3;

const DAMAGED: LayerError =
    LayerError::Span { problem: "the blob contains no deflate data at the start of the span" };
const NO_HEADER: LayerError =
    LayerError::Span { problem: "the blob contains no block header at the position in the index" };

/// Decodes the span that starts at `checkpoint` until `out` is full.
///
/// `blob` starts with the byte of the blob that holds the span's first bit, and extends at least to the span's end; further
/// bytes are ignored. `out` may also cover several consecutive spans: decoding starts at the checkpoint of the first one.
/// zstd frames are always decoded whole.
///
/// `header` is the part of the blob that contains the checkpoint's [`BlockHeader`], from the byte with its first bit to the
/// byte with its last. It is empty if the checkpoint has none.
///
/// Checksums of gzip members are not verified, because spans need not start or end with a member.
///
/// # Errors
///
/// `blob` does not decode to `out.len()` bytes. The content of `out` is then unspecified.
pub fn decode_span(
    checkpoint: &Checkpoint,
    header: &[u8],
    blob: &[u8],
    out: &mut [u8],
) -> Result<(), LayerError> {
    match checkpoint {
        Checkpoint::Stored => {
            out.copy_from_slice(blob.get(..out.len()).ok_or(LayerError::SPAN_TOO_SHORT)?);
            Ok(())
        }
        Checkpoint::GzipMember => with_inflater(|inflater| {
            inflater.inflate.reset();
            inflater.fill(after_member_header(blob)?, out)
        }),
        Checkpoint::Deflate { skip_bits, block, window } => with_inflater(|inflater| {
            inflater.inflate.reset();
            inflater.set_window(window)?;
            if let Some(block) = block {
                inflater.enter_block(*block, header)?;
            }
            let mut blob = blob;
            if let 1..=7 = *skip_bits {
                let (&first, rest) = blob.split_first().ok_or(LayerError::SPAN_TOO_SHORT)?;
                inflater.inflate.prime(8 - skip_bits, first >> skip_bits);
                blob = rest;
            }
            inflater.fill(blob, out)
        }),
        Checkpoint::ZstdFrame => zstd::decode_frames(blob, out),
    }
}

/// An inflate stream with space for a window.
struct SpanInflater {
    inflate: Inflate,
    space: Box<[u8; REACH]>,
}

/// Calls `decode` with this thread's inflater.
fn with_inflater<T>(decode: impl FnOnce(&mut SpanInflater) -> T) -> T {
    thread_local! {
        static INFLATER: RefCell<Option<SpanInflater>> = const { RefCell::new(None) };
    }
    INFLATER.with_borrow_mut(|inflater| {
        decode(
            inflater
                .get_or_insert_with(|| SpanInflater { inflate: Inflate::new(), space: Box::new([0; REACH]) }),
        )
    })
}

impl SpanInflater {
    fn set_window(&mut self, window: &Window) -> Result<(), LayerError> {
        let history = window.lay_out(&mut self.space)?;
        if !history.is_empty() {
            self.inflate.set_history(history);
        }
        Ok(())
    }

    /// Feeds a block header to inflate, so that it expects the symbols of the block next.
    fn enter_block(&mut self, block: BlockHeader, bytes: &[u8]) -> Result<(), LayerError> {
        let shift = (block.start_bit % 8) as usize;
        let bits = usize::try_from(block.bits).unwrap_or(usize::MAX);
        if !(HEADER_MIN..=HEADER_MAX * 8).contains(&bits) || shift + bits > bytes.len() * 8 {
            return Err(NO_HEADER);
        }
        // Returns up to 8 bits from bit `at` of the header on.
        let octet = |at: usize| {
            let at = at + shift;
            let pair = [bytes[at / 8], bytes.get(at / 8 + 1).copied().unwrap_or(0)];
            (u16::from_le_bytes(pair) >> (at % 8)).to_le_bytes()[0]
        };
        let mut space = [0; HEADER_MAX];
        let (odd, header) = match octet(0) >> 1 & 3 {
            0 => {
                // LEN and NLEN are the last four bytes of the header and start at a byte boundary.
                let at = (bits / 8)
                    .checked_sub(4)
                    .filter(|_| (shift + bits).is_multiple_of(8))
                    .ok_or(NO_HEADER)?;
                let at = bits - (bits / 8 - at) * 8;
                let remaining = u16::from_le_bytes([octet(at), octet(at + 8)])
                    .checked_sub(block.stored_before)
                    .ok_or(NO_HEADER)?;
                let ([a, b], [c, d]) = (remaining.to_le_bytes(), (!remaining).to_le_bytes());
                space[..5].copy_from_slice(&[octet(0) & 1, a, b, c, d]);
                (0, &space[..5])
            }
            _ => {
                // The first bits are passed to inflate by priming, so that the remaining bits are whole bytes.
                let odd = bits % 8;
                for (i, byte) in space[..bits / 8].iter_mut().enumerate() {
                    *byte = octet(odd + i * 8);
                }
                (u8::try_from(odd).expect("less than 8"), &space[..bits / 8])
            }
        };
        if odd > 0 {
            self.inflate.prime(odd, octet(0));
        }
        let progress =
            self.inflate.decode(header, &mut [], StopCondition::Exhausted).map_err(|_| NO_HEADER)?;
        if progress.consumed != header.len() || progress.unused_bits != 0 {
            return Err(NO_HEADER);
        }
        Ok(())
    }

    /// Decodes until `out` is full. At the end of a member, continues with the next one.
    fn fill(&mut self, mut blob: &[u8], out: &mut [u8]) -> Result<(), LayerError> {
        let mut filled = 0;
        while filled < out.len() {
            let progress = self
                .inflate
                .decode(blob, &mut out[filled..], StopCondition::Exhausted)
                .map_err(|_| DAMAGED)?;
            filled += progress.produced;
            blob = &blob[progress.consumed..];
            if progress.stop == StopReason::StreamEnd {
                if filled < out.len() {
                    let next = blob.get(gzip_member::TRAILER_LEN..).ok_or(LayerError::SPAN_TOO_SHORT)?;
                    let padding = next.iter().take_while(|&&byte| byte == 0).count();
                    blob = after_member_header(&next[padding..])?;
                    self.inflate.reset();
                }
            } else if progress.produced == 0 && progress.consumed == 0 {
                return Err(LayerError::SPAN_TOO_SHORT);
            }
        }
        Ok(())
    }
}

/// Returns the bytes after the member header at the start of `blob`.
fn after_member_header(blob: &[u8]) -> Result<&[u8], LayerError> {
    let invalid =
        |_| LayerError::Span { problem: "the blob contains no gzip member header where one is expected" };
    let mut input = BlobInput::new(blob).map_err(invalid)?;
    gzip_member::read_header(&mut input).map_err(invalid)?;
    let length = usize::try_from(input.offset()).map_err(|_| LayerError::SPAN_TOO_SHORT)?;
    Ok(&blob[length..])
}
