//! Decodes one span again, from its checkpoint: the hot path of cold reads.
//!
//! Decoders are kept for each thread, as making one costs as much as decoding a few kilobytes.

use std::cell::RefCell;

use super::inflate::{Inflate, Stop, Until};
use super::spans::Input;
use super::window::REACH;
use super::{BlockHeader, Checkpoint, LayerError, Window, member, zstd};

/// The longest block header has 2300 bits: 3 of BFINAL and BTYPE, 14 of counts, 57 of the code of code
/// lengths, and 316 code lengths of 7 bits (a repetition takes more bits than that, but stands for at least 3
/// lengths).
const HEADER_MAX: usize = 512;
/// BFINAL and BTYPE, which are all of the header of a block with the fixed codes.
const HEADER_MIN: usize = 3;

/// Decodes the span that starts at `checkpoint` until `out` is full.
///
/// `blob` is the blob's bytes from the one that holds the span's first bit on, at least up to its end; also
/// those of several spans on end, which decode as one from the first one's checkpoint. What follows is not
/// looked at (of zstd, whole frames are decoded). `header` is the blob's bytes from the one that holds the
/// first bit of the checkpoint's [`BlockHeader`] to the one that holds its last, and empty without one.
///
/// Checksums of gzip members are not checked, since spans do not start and end with members.
///
/// # Errors
///
/// If `blob` does not decode to `out.len()` bytes; what is in `out` then is not the tar.
pub fn decode_span(
    checkpoint: &Checkpoint,
    header: &[u8],
    blob: &[u8],
    out: &mut [u8],
) -> Result<(), LayerError> {
    match checkpoint {
        Checkpoint::Stored => {
            out.copy_from_slice(blob.get(..out.len()).ok_or(TOO_SHORT)?);
            Ok(())
        }
        Checkpoint::GzipMember => with_inflater(|inflater| {
            inflater.inflate.reset();
            inflater.fill(behind_header(blob)?, out)
        }),
        Checkpoint::Deflate { skip_bits, block, window } => with_inflater(|inflater| {
            inflater.inflate.reset();
            inflater.set_window(window)?;
            if let Some(block) = block {
                inflater.enter_block(*block, header)?;
            }
            let mut blob = blob;
            if let 1..=7 = *skip_bits {
                let (&first, rest) = blob.split_first().ok_or(TOO_SHORT)?;
                inflater.inflate.prime(8 - skip_bits, first >> skip_bits);
                blob = rest;
            }
            inflater.fill(blob, out)
        }),
        Checkpoint::ZstdFrame => zstd::decode_frames(blob, out),
    }
}

pub(super) const TOO_SHORT: LayerError =
    LayerError::Span { problem: "the blob's bytes hold less than the span" };
const DAMAGED: LayerError = LayerError::Span { problem: "the blob's bytes are no deflate data" };
const NO_HEADER: LayerError = LayerError::Span { problem: "there is no block header where it should be" };

struct Inflater {
    inflate: Inflate,
    space: Box<[u8; REACH]>,
}

fn with_inflater<T>(use_it: impl FnOnce(&mut Inflater) -> T) -> T {
    thread_local! {
        static INFLATER: RefCell<Option<Inflater>> = const { RefCell::new(None) };
    }
    INFLATER.with_borrow_mut(|inflater| {
        use_it(
            inflater.get_or_insert_with(|| Inflater { inflate: Inflate::new(), space: Box::new([0; REACH]) }),
        )
    })
}

impl Inflater {
    fn set_window(&mut self, window: &Window) -> Result<(), LayerError> {
        let history = window.lay_out(&mut self.space)?;
        if !history.is_empty() {
            self.inflate.set_history(history);
        }
        Ok(())
    }

    /// Lets inflate read a block's header, so that it expects the block's symbols next.
    fn enter_block(&mut self, block: BlockHeader, bytes: &[u8]) -> Result<(), LayerError> {
        let shift = (block.start_bit % 8) as usize;
        let bits = usize::try_from(block.bits).unwrap_or(usize::MAX);
        if !(HEADER_MIN..=HEADER_MAX * 8).contains(&bits) || shift + bits > bytes.len() * 8 {
            return Err(NO_HEADER);
        }
        // Up to 8 bits from the header's bit `at` on.
        let octet = |at: usize| {
            let at = at + shift;
            let pair = [bytes[at / 8], bytes.get(at / 8 + 1).copied().unwrap_or(0)];
            (u16::from_le_bytes(pair) >> (at % 8)).to_le_bytes()[0]
        };
        let mut space = [0; HEADER_MAX];
        let (odd, header) = match octet(0) >> 1 & 3 {
            0 => {
                // LEN and NLEN are the last four bytes, and at a byte's start.
                let at = (bits / 8)
                    .checked_sub(4)
                    .filter(|_| (shift + bits).is_multiple_of(8))
                    .ok_or(NO_HEADER)?;
                let at = bits - (bits / 8 - at) * 8;
                let left = u16::from_le_bytes([octet(at), octet(at + 8)])
                    .checked_sub(block.stored_before)
                    .ok_or(NO_HEADER)?;
                let ([a, b], [c, d]) = (left.to_le_bytes(), (!left).to_le_bytes());
                space[..5].copy_from_slice(&[octet(0) & 1, a, b, c, d]);
                (0, &space[..5])
            }
            _ => {
                // Inflate is given an odd number of bits first; the others are whole bytes.
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
        let progress = self.inflate.decode(header, &mut [], Until::Exhausted).map_err(|_| NO_HEADER)?;
        if progress.consumed != header.len() || progress.unused_bits != 0 {
            return Err(NO_HEADER);
        }
        Ok(())
    }

    /// Decodes up to the end of `out`, across the ends of members.
    fn fill(&mut self, mut blob: &[u8], out: &mut [u8]) -> Result<(), LayerError> {
        let mut filled = 0;
        while filled < out.len() {
            let progress =
                self.inflate.decode(blob, &mut out[filled..], Until::Exhausted).map_err(|_| DAMAGED)?;
            filled += progress.produced;
            blob = &blob[progress.consumed..];
            if progress.stop == Stop::StreamEnd {
                if filled < out.len() {
                    blob = behind_header(blob.get(member::TRAILER..).ok_or(TOO_SHORT)?)?;
                    self.inflate.reset();
                }
            } else if progress.produced == 0 && progress.consumed == 0 {
                return Err(TOO_SHORT);
            }
        }
        Ok(())
    }
}

/// What stands behind the member header that `blob` starts with.
fn behind_header(blob: &[u8]) -> Result<&[u8], LayerError> {
    let wrong = |_| LayerError::Span { problem: "there is no gzip member header where it should be" };
    let mut input = Input::new(blob).map_err(wrong)?;
    member::read_header(&mut input).map_err(wrong)?;
    let length = usize::try_from(input.offset()).map_err(|_| TOO_SHORT)?;
    Ok(&blob[length..])
}
