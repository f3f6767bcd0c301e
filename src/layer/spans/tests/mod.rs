//! Tests the content of spans and the positions at which decoding can resume.

use std::io::{self, BufRead, Read, Write};

use flate2::{Compression, write::GzEncoder};

use super::super::{BlockHeader, Window, decode_span};
use super::*;

mod damage;
mod gzip;
mod random;
mod zstd;

const SMALL: SpanLimits = SpanLimits { target: 4096, max: 5120 };

/// A reader that returns at most a fixed number of bytes at once.
struct ChunkedReader<'a>(&'a [u8], usize);

impl Read for ChunkedReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl BufRead for ChunkedReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

fn spans(blob: &[u8], limits: SpanLimits, chunk: usize) -> Result<Vec<DecodedSpan>, LayerError> {
    let mut decoder = SpanDecoder::new(ChunkedReader(blob, chunk), limits)?;
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

/// Checks what must hold for every decoded blob, and returns its spans.
#[track_caller]
fn check(blob: &[u8], tar: &[u8], limits: SpanLimits) -> Vec<DecodedSpan> {
    let all = spans(blob, limits, usize::MAX).unwrap();
    assert!(all.iter().flat_map(|span| &span.bytes).eq(tar), "the spans differ from the tar");
    for joined in [1, 2, 3, 20] {
        for some in all.windows(joined.min(all.len()).max(1)).step_by(1 + joined / 2) {
            if some.iter().all(|span| span.checkpoint.is_some()) {
                let bytes: Vec<u8> = some.iter().flat_map(|span| &span.bytes).copied().collect();
                assert!(
                    decode_again(blob, some) == bytes,
                    "{joined} spans from {:?} decode to other bytes",
                    some[0].blob
                );
            }
        }
    }
    for chunk in [1, 7, 1000] {
        assert!(
            spans(blob, limits, chunk).unwrap() == all,
            "the spans depend on the chunks that the reader returns"
        );
    }
    all
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Wraps deflate data in a member.
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

/// Bytes that compress like source code: words of a small vocabulary, with some random bytes.
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

fn count_inside_block(spans: &[DecodedSpan]) -> usize {
    let inside =
        |span: &&DecodedSpan| matches!(span.checkpoint, Some(Checkpoint::Deflate { block: Some(_), .. }));
    spans.iter().filter(inside).count()
}

fn zstd_frame(bytes: &[u8], checksum: bool) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(checksum).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A frame with a content size, which zstd decodes by another path.
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
fn plain_tar_is_cut_at_the_target_length() {
    let tar = noise(10_000);
    let all = check(&tar, &tar, SMALL);
    let lengths: Vec<usize> = all.iter().map(|span| span.bytes.len()).collect();
    assert_eq!(lengths, [4096, 4096, 1808]);
    assert_eq!(all[1].blob, 4096..8192);
}

#[test]
fn blob_without_content_is_empty() {
    check(b"", b"", SMALL);
    check(&skippable(100), b"", SMALL);
    check(&gzip(b"", 6), b"", SMALL);
}

#[test]
fn compression_that_is_not_supported_is_named() {
    for (blob, program) in [(&b"\xfd7zXZ\0\0\x04"[..], "xz"), (b"BZh91AY&SY\0", "bzip2")] {
        let error = SpanDecoder::new(blob, SMALL).expect_err(program);
        assert!(matches!(error, LayerError::Compression(named) if named == program), "{error}");
    }
    // The name of a member can start like a bzip2 file.
    assert!(SpanDecoder::new(&b"BZh9.txt\0\0\0"[..], SMALL).is_ok());
}
