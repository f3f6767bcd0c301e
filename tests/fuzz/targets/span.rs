//! Decodes one span from an arbitrary checkpoint and arbitrary bytes.
//!
//! Properties: decoding fills the span or fails, without a panic or an endless loop; the result does not depend on spans
//! decoded earlier by the same thread, although they share a decoder.

use rcx_imagefs::layer::{BlockHeader, Checkpoint, Window, decode_span};

use crate::deflate;
use crate::input::Input;

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (checkpoint, header, blob, length) = decode_arguments(&mut input);
    let decode = || {
        let mut out = vec![0; length];
        decode_span(&checkpoint, &header, &blob, &mut out).map(|()| out).ok()
    };
    let before = decode();
    let (other, other_header, other_blob, other_length) = decode_arguments(&mut input);
    let _ = decode_span(&other, &other_header, &other_blob, &mut vec![0; other_length]);
    assert!(decode() == before, "the result depends on a span decoded earlier");
}

/// Generates a checkpoint, a block header, compressed bytes and the length of the span.
fn decode_arguments(input: &mut Input<'_>) -> (Checkpoint, Vec<u8>, Vec<u8>, usize) {
    let length = input.below(6000);
    let mut changes = Input::new(input.bytes(12));
    let (mut stream, content) = deflate::stream(input, 3);
    let mut header = Vec::new();
    let checkpoint = match input.below(8) {
        0 => Checkpoint::Stored,
        1 => {
            stream.splice(..0, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]).for_each(drop);
            Checkpoint::GzipMember
        }
        2 => {
            stream = zstd::bulk::compress(&content, 1).expect("compresses in memory");
            Checkpoint::ZstdFrame
        }
        _ => {
            let block = input.one_in(2).then(|| {
                header = if input.one_in(2) { input.chunk().to_vec() } else { stream.clone() };
                let start_bit = input.below(20) as u64;
                let bits = u32::from(if input.one_in(8) { u16::MAX } else { input.u16() % 2400 });
                BlockHeader { start_bit, bits, stored_before: input.u16() }
            });
            let runs: Vec<(u16, u16)> =
                (0..input.below(4)).map(|_| (input.u16() % 0x8400, input.u16() % 300)).collect();
            let used: usize = runs.iter().map(|(_, length)| usize::from(*length)).sum();
            let bytes = vec![b'w'; if input.one_in(6) { input.below(300) } else { used }];
            Checkpoint::Deflate { skip_bits: input.byte() % 8, block, window: Window { runs, bytes } }
        }
    };
    changes.mutate(&mut stream);
    (checkpoint, header, stream, length)
}
