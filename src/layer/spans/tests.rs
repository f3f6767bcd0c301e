//! What spans decode to and where they can be resumed: every codec, every kind of block, damage.

use std::io::{BufReader, Read, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use proptest::prelude::*;

use super::super::{BlockHeader, Window, decode_span};
use super::*;

const SMALL: SpanLimits = SpanLimits { target: 4096, max: 5120 };

/// Gives at most so many bytes at once.
struct Chunked<'a>(&'a [u8], usize);

impl Read for Chunked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl BufRead for Chunked<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

fn spans(blob: &[u8], limits: SpanLimits, chunk: usize) -> Result<Vec<DecodedSpan>, LayerError> {
    let mut decoder = SpanDecoder::new(Chunked(blob, chunk), limits)?;
    let mut spans = Vec::new();
    while let Some(span) = decoder.next_span()? {
        assert!(!span.bytes.is_empty() && span.bytes.len() <= limits.max, "{}", span.bytes.len());
        spans.push(span);
    }
    assert_eq!(decoder.blob_offset().get(), blob.len() as u64);
    Ok(spans)
}

fn range(blob: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn decode_again(blob: &[u8], spans: &[DecodedSpan]) -> Vec<u8> {
    let checkpoint = spans[0].checkpoint.as_ref().unwrap();
    let header = match checkpoint {
        Checkpoint::Deflate { block: Some(block), .. } => {
            let end = block.start_bit + u64::from(block.bits);
            range(blob, block.start_bit / 8..end.div_ceil(8))
        }
        _ => &[],
    };
    let mut out = vec![0xaa; spans.iter().map(|span| span.bytes.len()).sum()];
    let last = &spans[spans.len() - 1];
    decode_span(checkpoint, header, range(blob, spans[0].blob.start..last.blob.end), &mut out).unwrap();
    out
}

/// Checks the promises that every decoded blob keeps, and returns its spans.
#[track_caller]
fn check(blob: &[u8], tar: &[u8], limits: SpanLimits) -> Vec<DecodedSpan> {
    let all = spans(blob, limits, usize::MAX).unwrap();
    assert!(all.iter().flat_map(|span| &span.bytes).eq(tar), "the spans are not the tar");
    for joined in [1, 2, 3, 20] {
        for some in all.windows(joined.min(all.len()).max(1)).step_by(1 + joined / 2) {
            if some.iter().all(|span| span.checkpoint.is_some()) {
                let bytes: Vec<u8> = some.iter().flat_map(|span| &span.bytes).copied().collect();
                assert!(decode_again(blob, some) == bytes, "{joined} spans from {:?}", some[0].blob);
            }
        }
    }
    for chunk in [1, 7, 1000] {
        assert!(spans(blob, limits, chunk).unwrap() == all, "spans depend on the reader");
    }
    all
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A member around deflate data that is given.
fn member(deflate: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.extend_from_slice(deflate);
    blob.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    blob.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    blob
}

fn stored_block(bytes: &[u8], last: bool) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    let mut block = vec![u8::from(last)];
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(&(!length).to_le_bytes());
    block.extend_from_slice(bytes);
    block
}

/// Bytes that compress as program text does: words of a small vocabulary, here and there something new.
fn text(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let [a, b, c, d, ..] = seed.to_be_bytes();
        if a < 40 {
            bytes.extend_from_slice(&[b, c, d]);
        } else {
            let word = u16::from_be_bytes([b, c]) % 700;
            bytes.extend_from_slice(format!("w{:x} ", u32::from(word) * 7919).as_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn in_mid_block(spans: &[DecodedSpan]) -> usize {
    let inside =
        |span: &&DecodedSpan| matches!(span.checkpoint, Some(Checkpoint::Deflate { block: Some(_), .. }));
    spans.iter().filter(inside).count()
}

#[test]
fn every_span_of_a_gzip_blob_decodes_again_alone_and_joined() {
    for level in [0, 1, 6, 9] {
        for tar in [text(300_000, 1), noise(100_000), b"x".to_vec(), text(5120, 2), text(4096, 3)] {
            check(&gzip(&tar, level), &tar, SMALL);
        }
    }
    let tar = text(3_000_000, 4);
    for level in [1, 6] {
        let all = check(&gzip(&tar, level), &tar, SpanLimits::PRODUCTION);
        let longest = all.iter().map(|span| span.bytes.len()).max().unwrap();
        assert!(longest <= SpanLimits::PRODUCTION.max && all.len() <= 2 * 3_000_000 / longest + 2);
    }
}

#[test]
fn a_long_block_is_cut_between_its_symbols() {
    let zeros = vec![0; 1_000_000];
    let all = check(&gzip(&zeros, 6), &zeros, SMALL);
    assert!(in_mid_block(&all) > 100);
    assert!(in_mid_block(&check(&gzip(&zeros, 9), &zeros, SpanLimits::PRODUCTION)) > 0);
    // Level 1 writes one block with the fixed codes.
    let tar = text(200_000, 5);
    assert!(in_mid_block(&check(&gzip(&tar, 1), &tar, SMALL)) > 10);
}

#[test]
fn a_stored_block_is_cut_between_its_bytes() {
    let tar = noise(150_000);
    let (a, b) = tar.split_at(65_535);
    let (b, c) = b.split_at(65_000);
    let deflate = [stored_block(a, false), stored_block(b, false), stored_block(c, true)].concat();
    let all = check(&member(&deflate, &tar), &tar, SMALL);
    assert!(in_mid_block(&all) > 20);
    let after_stored = all.iter().filter_map(|span| match &span.checkpoint {
        Some(Checkpoint::Deflate { block: Some(block), .. }) => Some(block.stored_before),
        _ => None,
    });
    assert!(after_stored.clone().all(|before| before > 0) && after_stored.max() > Some(60_000));
    check(&member(&deflate, &tar), &tar, SpanLimits::PRODUCTION);
}

#[test]
fn a_block_that_ends_just_where_a_span_is_full_starts_the_next_one() {
    for len in [3071, 3072, 5119, 5120, 5121] {
        let tar = noise(len * 3);
        let parts: Vec<u8> =
            tar.chunks(len).enumerate().flat_map(|(i, part)| stored_block(part, i == 2)).collect();
        let all = check(&member(&parts, &tar), &tar, SMALL);
        assert_eq!(in_mid_block(&all) > 0, len > 5120, "{len}");
    }
}

#[test]
fn members_follow_each_other_in_one_tar() {
    let tar = text(60_000, 6);
    for size in [10, 1000, 3072, 5120, 20_000] {
        let blob: Vec<u8> = tar.chunks(size).flat_map(|part| gzip(part, 6)).collect();
        let all = check(&blob, &tar, SMALL);
        let at_member = all.iter().filter(|span| span.checkpoint == Some(Checkpoint::GzipMember)).count();
        assert!(if size < 5121 { at_member == all.len() } else { at_member == 3 }, "{size}: {at_member}");
    }
}

#[test]
fn members_without_content_are_fine() {
    let (empty, tar) = (gzip(b"", 6), text(9000, 7));
    check(&[&empty[..], &gzip(&tar, 6), &empty].concat(), &tar, SMALL);
    check(&[&gzip(&tar[..4000], 6)[..], &empty, &empty, &gzip(&tar[4000..], 6)].concat(), &tar, SMALL);
    assert!(check(&empty, b"", SMALL).is_empty());
}

#[test]
fn flushes_between_blocks_are_fine() {
    let tar = text(50_000, 8);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    for part in tar.chunks(333) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    check(&encoder.finish().unwrap(), &tar, SMALL);
}

#[test]
fn blocks_without_content_are_not_part_of_a_span_for_ever() {
    let nothing = stored_block(b"", false).repeat(10_000);
    let deflate =
        [nothing.clone(), stored_block(b"a", false), nothing.clone(), nothing, stored_block(b"b", true)];
    let all = check(&member(&deflate.concat(), b"ab"), b"ab", SMALL);
    assert!(all.iter().all(|span| span.blob.end - span.blob.start < 20_000), "{all:?}");
    let nothing = stored_block(b"", false);
    let start = [stored_block(b"a", false), nothing.repeat(4000), stored_block(b"b", false)].concat();
    let endless = member(&[start, nothing.repeat(8_000_000)].concat(), b"ab");
    let error = spans(&endless, SMALL, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("too many blocks that hold nothing"), "{error}");
}

#[test]
fn all_fields_of_a_member_header_are_read() {
    let tar = text(9000, 9);
    let builder = GzBuilder::new().extra(vec![7; 65_000]).filename("name").comment("comment").mtime(5);
    let mut encoder = builder.write(Vec::new(), Compression::new(6));
    encoder.write_all(&tar).unwrap();
    let blob = encoder.finish().unwrap();
    check(&blob, &tar, SMALL);
    check(&blob.repeat(2), &tar.repeat(2), SMALL);

    let mut header = vec![0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 255];
    let crc = crc32fast::hash(&header).to_le_bytes();
    header.extend_from_slice(&crc[..2]);
    let mut blob = [header, gzip(&tar, 6)[10..].to_vec()].concat();
    check(&blob, &tar, SMALL);
    blob[10] ^= 1;
    let error = spans(&blob, SMALL, 100).unwrap_err();
    assert_eq!(error.to_string(), "gzip: member header at byte 0: its own checksum does not match");
}

#[test]
fn a_member_header_that_says_what_nobody_knows_is_refused() {
    let good = gzip(b"abc", 6);
    let mut reserved = good.clone();
    reserved[3] |= 0x20;
    let mut method = good.clone();
    method[2] = 7;
    let mut endless = good.clone();
    endless[3] |= 8;
    endless.splice(10..10, vec![b'n'; 200_000]);
    for (blob, message) in [
        (reserved, "gzip: member header at byte 0: it has reserved flags set"),
        (method, "gzip: member header at byte 0: its compression method is not deflate"),
        (endless, "gzip: member header at byte 0: it is longer than 128 KiB"),
    ] {
        assert_eq!(spans(&blob, SMALL, 100).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_blob_cut_short_anywhere_is_an_error_not_a_short_read() {
    let tar = text(6000, 10);
    for blob in [gzip(&tar, 6), gzip(b"abc", 6), zstd_frame(&tar, true), zstd_frame(&tar, false)] {
        for length in 0..blob.len() {
            let error = match SpanDecoder::new(Chunked(&blob[..length], 50), SMALL) {
                Ok(decoder) if decoder.codec() == Codec::Tar => continue,
                Ok(_) => spans(&blob[..length], SMALL, 50).expect_err("cut short"),
                Err(error) => error,
            };
            let what = matches!(error, LayerError::Truncated { .. } | LayerError::Empty);
            assert!(what, "{length} of {}: {error}", blob.len());
        }
    }
}

#[test]
fn a_wrong_trailer_is_an_error() {
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
fn bytes_behind_the_last_member_or_frame_are_an_error() {
    for good in [gzip(b"abc", 6), zstd_frame(b"abc", true)] {
        for garbage in [&[0u8; 512][..], b"garbage"] {
            let blob = [&good[..], garbage].concat();
            let error = spans(&blob, SMALL, 99).unwrap_err();
            assert!(matches!(error, LayerError::TrailingGarbage { at, .. } if at.get() == good.len() as u64));
        }
    }
}

#[test]
fn flipped_bits_never_panic_and_never_pass_as_something_else() {
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
fn a_damaged_blob_or_checkpoint_makes_a_span_fail_not_panic() {
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
fn a_plain_tar_is_cut_at_the_target() {
    let tar = noise(10_000);
    let all = check(&tar, &tar, SMALL);
    let lengths: Vec<usize> = all.iter().map(|span| span.bytes.len()).collect();
    assert_eq!(lengths, [4096, 4096, 1808]);
    assert_eq!(all[1].blob, 4096..8192);
}

#[test]
fn a_blob_of_no_bytes_is_an_error() {
    assert!(matches!(spans(b"", SMALL, 1), Err(LayerError::Empty)));
    assert!(matches!(spans(&skippable(100), SMALL, 1), Err(LayerError::Empty)));
}

#[test]
fn a_reader_that_fails_is_named_with_its_reason_and_ends_the_decoding() {
    let blob = gzip(&noise(20_000), 6);
    let broken = blob[..12_000].chain(Broken);
    let mut decoder = SpanDecoder::new(BufReader::new(broken), SpanLimits::PRODUCTION).unwrap();
    let error = decoder.next_span().unwrap_err();
    assert_eq!(error.to_string(), "read the blob at byte 12000");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "cable cut");
    assert!(matches!(decoder.next_span(), Err(LayerError::GivenUp)));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("cable cut"))
    }
}

fn zstd_frame(bytes: &[u8], checksum: bool) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(checksum).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A frame that says how long its content is, which has it take other paths in zstd.
fn sized_frame(bytes: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(bytes, 3).unwrap()
}

fn skippable(len: u32) -> Vec<u8> {
    let mut frame = vec![0x53, 0x2a, 0x4d, 0x18];
    frame.extend_from_slice(&len.to_le_bytes());
    frame.resize(8 + len as usize, 9);
    frame
}

#[test]
fn zstd_frames_are_grouped_into_spans() {
    let tar = text(60_000, 14);
    for size in [1, 100, 1000, 3071, 3072, 4000, 5120] {
        for frame in [|part: &[u8]| zstd_frame(part, true), sized_frame] {
            let tar = &tar[..60_000.min(size * 1000)];
            let blob: Vec<u8> = tar.chunks(size).flat_map(frame).collect();
            let all = check(&blob, tar, SMALL);
            assert!(all.iter().all(|span| span.checkpoint == Some(Checkpoint::ZstdFrame)), "{size}");
            assert!(all.len() <= tar.len() / 2500 + 1, "{size}: {}", all.len());
        }
    }
}

#[test]
fn a_zstd_frame_longer_than_a_span_comes_in_pieces_without_checkpoints() {
    let tar = text(40_000, 15);
    for (first, second, resumable) in
        [(5121, 0, 0), (40_000, 0, 0), (1000, 6000, 1), (1000, 5120, 2), (6000, 100, 1)]
    {
        let (a, rest) = tar.split_at(first);
        let b = &rest[..second];
        for frame in [|part: &[u8]| zstd_frame(part, true), sized_frame] {
            let blob = [frame(a), if second > 0 { frame(b) } else { vec![] }].concat();
            let all = check(&blob, &tar[..first + second], SMALL);
            let count = all.iter().filter(|span| span.checkpoint.is_some()).count();
            assert_eq!(count, resumable, "{first}, {second}");
            let pieces: usize =
                all.iter().filter(|span| span.checkpoint.is_none()).map(|span| span.bytes.len()).sum();
            assert_eq!(pieces, if first > 5120 { first } else { 0 } + if second > 5120 { second } else { 0 });
        }
    }
}

#[test]
fn skippable_and_empty_frames_are_passed_over() {
    let tar = text(8000, 16);
    let (a, b) = tar.split_at(2000);
    let (skip, empty) = (skippable(3000), zstd_frame(b"", true));
    for blob in [
        [&skip[..], &zstd_frame(&tar, true)].concat(),
        [&zstd_frame(&tar, true)[..], &skip, &skip].concat(),
        [
            &zstd_frame(a, true)[..],
            &skip,
            &empty,
            &zstd_frame(&b[..2000], true),
            &zstd_frame(&b[2000..], true),
        ]
        .concat(),
        [&empty[..], &skip.repeat(20), &zstd_frame(a, true), &skip.repeat(20), &zstd_frame(b, false), &empty]
            .concat(),
    ] {
        let all = check(&blob, &tar, SMALL);
        assert!(all.iter().all(|span| span.blob.end - span.blob.start < 25_000));
    }
    assert!(check(&empty, b"", SMALL).is_empty());
    let cut = &skip[..3007];
    let blob = [&zstd_frame(a, true)[..], cut].concat();
    assert!(matches!(spans(&blob, SMALL, 60), Err(LayerError::Truncated { part: "skippable frame", .. })));
}

#[test]
fn a_zstd_frame_of_blocks_without_content_is_not_kept_for_decoding_again() {
    // A frame with a window of 1 KiB: raw blocks of 0 bytes, then one of 5.
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0];
    blob.extend_from_slice(&[0, 0, 0].repeat(10_000));
    blob.extend_from_slice(&[5 << 3 | 1, 0, 0]);
    blob.extend_from_slice(b"hello");
    let all = check(&blob, b"hello", SMALL);
    assert_eq!(all[0].checkpoint, None);
}

#[test]
fn zstd_frames_that_ask_for_too_much_are_refused_by_name() {
    let rest = [1, 0, 0];
    let window = |exponent: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3][..], &rest].concat();
    assert!(check(&window(17), b"", SMALL).is_empty());
    for (blob, message) in [
        (
            window(18),
            "zstd: frame at byte 0: its window of 268435456 bytes is beyond the limit of 134217728 bytes",
        ),
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 0, 0, 8][..], &rest].concat(),
            "zstd: frame at byte 0: its window of 134217729 bytes is beyond the limit of 134217728 bytes",
        ),
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 2, 0, 0x34, 0x12][..], &rest].concat(),
            "zstd: frame at byte 0: it needs dictionary 4660",
        ),
    ] {
        assert_eq!(spans(&blob, SMALL, 3).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_block_header_of_too_few_bits_is_an_error() {
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
fn a_wrong_zstd_checksum_is_an_error() {
    let mut blob = zstd_frame(&text(9000, 17), true);
    *blob.last_mut().unwrap() ^= 1;
    let error = spans(&blob, SMALL, 100).unwrap_err();
    assert!(matches!(error, LayerError::Zstd { .. }), "{error}");
}

/// Parts of a tar: a kind, a length, and a seed.
type Parts = Vec<(u8, usize, u64)>;

fn parts() -> impl Strategy<Value = Parts> {
    prop::collection::vec((0u8..4, 0usize..30_000, any::<u64>()), 0..6)
}

/// Stretches of zeros, noise, text and repetitions of what came before.
fn made_of(parts: Parts) -> Vec<u8> {
    let mut tar: Vec<u8> = Vec::new();
    for (kind, len, seed) in parts {
        match kind {
            0 => tar.resize(tar.len() + len, 0),
            1 => tar.extend(noise(len / 3)),
            2 => tar.extend(text(len, seed)),
            _ => {
                let from = usize::try_from(seed % (tar.len() as u64 + 1)).unwrap();
                let to = (from + len).min(tar.len());
                tar.extend_from_within(from..to);
            }
        }
    }
    tar
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_gzip_blobs_decode_again(
        members in prop::collection::vec((parts(), 0u32..10, prop::collection::vec(0usize..40_000, 0..3)), 1..4),
        target in 256usize..40_000, more in 0usize..8000,
    ) {
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for (parts, level, mut flushes) in members {
            let bytes = made_of(parts);
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
            let mut done = 0;
            flushes.sort_unstable();
            for at in flushes.into_iter().filter(|at| *at < bytes.len()) {
                encoder.write_all(&bytes[done..at]).unwrap();
                encoder.flush().unwrap();
                done = at;
            }
            encoder.write_all(&bytes[done..]).unwrap();
            blob.extend(encoder.finish().unwrap());
            tar.extend(bytes);
        }
        check(&blob, &tar, SpanLimits { target, max: (target + more).max(1024) });
    }

    #[test]
    fn random_zstd_blobs_decode_again(
        frames in prop::collection::vec((parts(), any::<bool>(), 0u8..4), 1..5),
        target in 256usize..40_000, more in 0usize..8000,
    ) {
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for (parts, checksum, kind) in frames {
            let bytes = made_of(parts);
            blob.extend(match kind {
                0 => sized_frame(&bytes),
                _ => zstd_frame(&bytes, checksum),
            });
            if kind == 3 {
                blob.extend(skippable(u32::try_from(bytes.len() % 777).unwrap()));
            }
            tar.extend(bytes);
        }
        check(&blob, &tar, SpanLimits { target, max: (target + more).max(1024) });
    }

    #[test]
    fn random_bytes_never_panic(mut blob in prop::collection::vec(any::<u8>(), 0..3000), kind in 0u8..3) {
        let start: &[u8] = match kind {
            0 => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0],
            1 => &[0x28, 0xb5, 0x2f, 0xfd],
            _ => &[],
        };
        blob.splice(0..0, start.iter().copied());
        let _ = spans(&blob, SMALL, 64);
    }
}
