//! zstd blobs: compressed frames of all levels and options, skippable frames, and handwritten frames of raw and RLE blocks,
//! then a few damaged bytes.
//!
//! Properties: as for `gzip`. Where an ordinary decoder accepts more (an unused dictionary ID, frames of the formats before
//! version 1), the blob is refused with an error for that reason.

use std::io::{Read as _, Write as _};

use rcx_imagefs::layer::{Codec, LayerError, SpanDecoder, SpanLimits};

use crate::input::Input;
use crate::members;
use crate::spans;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let mut checks = Input::new(input.bytes(24));
    match choice % 4 {
        0 => {
            let content = input.content(20_000);
            let mut tar = members::member(b'0', b"f", &content);
            tar.resize(tar.len() + 1024, 0);
            let size = input.pick(&[usize::MAX, 700, 3000, 8000]);
            let blob: Vec<u8> = tar.chunks(size).flat_map(|part| frame(part, &mut input)).collect();
            spans::check_reads(&blob, &content, &mut checks);
        }
        1 => check(&[&[0x28, 0xb5, 0x2f, 0xfd], input.rest()].concat(), &mut checks),
        _ => {
            let blob = spans::concatenated_blob(&mut input, 5, choice % 4 == 3, any_frame);
            check(&blob, &mut checks);
        }
    }
}

fn check(blob: &[u8], checks: &mut Input<'_>) {
    if Codec::sniff(blob) != Codec::Zstd {
        return;
    }
    let mut plain = Vec::new();
    let decoder = zstd::Decoder::with_buffer(blob).expect("creates a decoder");
    let mut complete = decoder.take(1 << 22).read_to_end(&mut plain).is_ok();
    if complete {
        complete = !is_refused_on_purpose(blob);
    }
    spans::check(blob, &plain, complete, checks);
}

/// Returns whether the blob is refused for a reason that an ordinary decoder does not check.
fn is_refused_on_purpose(blob: &[u8]) -> bool {
    let Ok(mut decoder) = SpanDecoder::new(blob, SpanLimits::PRODUCTION) else { return false };
    loop {
        match decoder.next_span() {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(LayerError::ZstdDictionary { .. }) => return true,
            // The magic numbers of formats 0.1 to 0.7.
            Err(LayerError::TrailingGarbage { at, .. }) => {
                let at = usize::try_from(at.get()).expect("the blob is in memory");
                return matches!(
                    blob[at..],
                    [0x1e, 0xb5, 0x2f, 0xfd, ..] | [0x22..=0x27, 0xb5, 0x2f, 0xfd, ..]
                );
            }
            Err(_) => return false,
        }
    }
}

fn frame(content: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut encoder =
        zstd::Encoder::new(Vec::new(), input.pick(&[1, 3, -7, 9])).expect("the levels are valid");
    encoder.include_checksum(input.one_in(2)).expect("sets the checksum flag");
    encoder.include_contentsize(input.one_in(2)).expect("sets the content size flag");
    if input.one_in(3) {
        encoder.window_log(u32::from(10 + input.byte() % 12)).expect("the window sizes are valid");
    }
    if input.one_in(2) {
        encoder.set_pledged_src_size(Some(content.len() as u64)).expect("sets the size");
    }
    let (first, rest) = content.split_at(input.below(content.len() + 1));
    encoder.write_all(first).expect("compresses in memory");
    if input.one_in(2) {
        encoder.flush().expect("compresses in memory");
    }
    encoder.write_all(rest).expect("compresses in memory");
    encoder.finish().expect("compresses in memory")
}

fn any_frame(input: &mut Input<'_>) -> Vec<u8> {
    match input.below(4) {
        0 => {
            let content = input.chunk();
            let magic = 0x184d_2a50 | u32::from(input.byte() & 15);
            let length = u32::try_from(content.len()).expect("a chunk has at most 255 bytes");
            [&magic.to_le_bytes()[..], &length.to_le_bytes(), content].concat()
        }
        1 => handwritten_frame(input),
        _ => {
            let content = input.content(20_000);
            frame(&content, input)
        }
    }
}

/// Writes a frame of raw and RLE blocks (RFC 8878, 3.1.1.2).
fn handwritten_frame(input: &mut Input<'_>) -> Vec<u8> {
    let window = input.pick(&[0x00, 0x30, 0x50, 0x88, 0x90, 0xff]);
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    if input.one_in(6) {
        // A dictionary ID of one byte.
        bytes[4] = 1;
        bytes.push(input.byte());
    }
    for block in (0..=input.below(5)).rev() {
        let last = u32::from(block == 0);
        let (kind, length, content) = match input.below(3) {
            0 => (1, input.below(2000), vec![input.byte()]),
            1 => (0, 0, Vec::new()),
            _ => {
                let content = input.content(1000);
                (0, content.len(), content)
            }
        };
        let length = u32::try_from(length).expect("blocks are shorter than 2000 bytes");
        bytes.extend_from_slice(&(length << 3 | kind << 1 | last).to_le_bytes()[..3]);
        bytes.extend(content);
    }
    bytes
}
