//! Tests damaged and truncated blobs, failing readers and wrong checkpoints.

use std::io::BufReader;

use super::*;

#[test]
fn truncated_blob_is_an_error_not_a_short_read() {
    let tar = text(6000, 10);
    for blob in [gzip(&tar, 6), gzip(b"abc", 6), zstd_frame(&tar, true), zstd_frame(&tar, false)] {
        for length in 0..blob.len() {
            let error = match SpanDecoder::new(ChunkedReader(&blob[..length], 50), SMALL) {
                Ok(decoder) if decoder.codec() == Codec::Tar => continue,
                Ok(_) => spans(&blob[..length], SMALL, 50).expect_err("the blob is truncated"),
                Err(error) => error,
            };
            let expected = matches!(error, LayerError::Truncated { .. });
            assert!(expected, "{length} of {}: {error}", blob.len());
        }
    }
}

#[test]
fn wrong_gzip_trailer_is_an_error() {
    let good = gzip(&text(6000, 11), 6);
    let mut blob = [&good[..], &good].concat();
    let end = blob.len();
    blob[end - 8] ^= 1;
    assert!(
        matches!(spans(&blob, SMALL, 99), Err(LayerError::GzipChecksum { at, .. }) if at.get() == good.len() as u64)
    );
    blob[end - 8] ^= 1;
    blob[end - 1] ^= 1;
    assert!(
        matches!(spans(&blob, SMALL, 99), Err(LayerError::GzipLength { at, .. }) if at.get() == good.len() as u64)
    );
}

#[test]
fn trailing_garbage_is_an_error() {
    for good in [gzip(b"abc", 6), zstd_frame(b"abc", true)] {
        for garbage in [&[1u8; 512][..], b"garbage"] {
            let blob = [&good[..], garbage].concat();
            let error = spans(&blob, SMALL, 99).unwrap_err();
            assert!(matches!(error, LayerError::TrailingGarbage { at, .. } if at.get() == good.len() as u64));
        }
    }
    let padded = [&zstd_frame(b"abc", true)[..], &[0; 512]].concat();
    assert!(matches!(spans(&padded, SMALL, 99), Err(LayerError::TrailingGarbage { .. })));
}

#[test]
fn flipped_bit_is_an_error_or_changes_nothing() {
    let tar = text(20_000, 12);
    for blob in [gzip(&tar, 6), gzip(&tar, 1), gzip(&tar, 0), zstd_frame(&tar, true)] {
        for at in (0..blob.len() * 8).step_by(blob.len() / 90) {
            let mut blob = blob.clone();
            blob[at / 8] ^= 1 << (at % 8);
            if let Ok(all) = spans(&blob, SMALL, 500)
                && Codec::sniff(&blob) != Codec::Tar
            {
                assert!(all.iter().flat_map(|span| &span.bytes).eq(&tar), "bit {at}");
            }
        }
    }
}

#[test]
fn damaged_blob_or_checkpoint_is_an_error_not_a_panic() {
    let tar = text(40_000, 13);
    let blob = gzip(&tar, 1);
    for span in spans(&blob, SMALL, 500).unwrap() {
        let Some(Checkpoint::Deflate { skip_bits, block, window }) = &span.checkpoint else { continue };
        let (skip_bits, window) = (*skip_bits, window.clone());
        let bytes = range(&blob, span.blob.clone());
        let mut out = vec![0; span.bytes.len()];
        let short = decode_span(
            span.checkpoint.as_ref().unwrap(),
            &blob[10..20],
            &bytes[..bytes.len() / 2],
            &mut out,
        );
        assert!(short.is_err());
        if let Some(block) = *block {
            for header in [&[][..], &[0xff; 4], &[0; 1]] {
                let block = Some(BlockHeader { bits: 50, ..block });
                let checkpoint = Checkpoint::Deflate { skip_bits, block, window: window.clone() };
                assert!(decode_span(&checkpoint, header, bytes, &mut out).is_err());
            }
        }
        for window in [
            Window { runs: vec![(u16::MAX, 1)], bytes: vec![1] },
            Window { runs: vec![(5, 10)], bytes: vec![1] },
            Window { runs: vec![(5, 1), (5, 1)], bytes: vec![1, 2] },
            Window { runs: vec![(32_760, 9)], bytes: vec![1; 9] },
        ] {
            let checkpoint = Checkpoint::Deflate { skip_bits, block: None, window };
            assert!(decode_span(&checkpoint, &[], bytes, &mut out).is_err());
        }
    }
    let mut out = [0; 10];
    assert!(decode_span(&Checkpoint::Stored, &[], &[0; 9], &mut out).is_err());
    for checkpoint in [Checkpoint::GzipMember, Checkpoint::ZstdFrame] {
        for blob in [&b""[..], b"\x1f", b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"\x28\xb5\x2f\xfd"] {
            assert!(decode_span(&checkpoint, &[], blob, &mut out).is_err());
        }
    }
}

#[test]
fn read_error_names_position_and_cause_and_ends_decoding() {
    let blob = gzip(&noise(20_000), 6);
    let broken = blob[..12_000].chain(BrokenReader);
    let mut decoder = SpanDecoder::new(BufReader::new(broken), SpanLimits::PRODUCTION).unwrap();
    let error = decoder.next_span().unwrap_err();
    assert_eq!(error.to_string(), "cannot read the blob at byte 12000");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "cable cut");
    assert!(matches!(decoder.next_span(), Err(LayerError::AlreadyFailed)));
}

struct BrokenReader;

impl Read for BrokenReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("cable cut"))
    }
}

#[test]
fn block_header_shorter_than_three_bits_is_an_error() {
    for (start_bit, bytes) in [(0, 0), (0, 1), (7, 1), (7, 2), (3, 600)] {
        for bits in 0..18 {
            let block = BlockHeader { start_bit, bits, stored_before: 0 };
            for fill in [0x00, 0xff, 0x55] {
                let checkpoint =
                    Checkpoint::Deflate { skip_bits: 0, block: Some(block), window: Window::default() };
                let decoded = decode_span(&checkpoint, &vec![fill; bytes], &[0; 64], &mut [0; 64]);
                assert!(bits >= 3 || decoded.is_err(), "{block:?} in {bytes} times {fill:#x}");
            }
        }
    }
}

#[test]
fn wrong_zstd_checksum_is_an_error() {
    let mut blob = zstd_frame(&text(9000, 17), true);
    *blob.last_mut().unwrap() ^= 1;
    let error = spans(&blob, SMALL, 100).unwrap_err();
    assert!(matches!(error, LayerError::Zstd { .. }), "{error}");
}
