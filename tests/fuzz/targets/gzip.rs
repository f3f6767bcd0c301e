//! gzip blobs: members with any header fields, made by a compressor or by hand, then a few damaged bytes.
//!
//! Properties: a blob decodes if and only if an ordinary decoder accepts its members (with zero bytes between them), to the same bytes, however the reader splits its
//! input; every span decodes again from its checkpoint, alone and joined with the following spans; reads through an index
//! return the right bytes at any offset, or an error if the blob is damaged.

use std::io::Read as _;

use flate2::{Compress, Compression, FlushCompress};

use crate::deflate;
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
            let blob = pack(&tar, &mut input);
            spans::check_reads(&blob, &content, &mut checks);
        }
        1 => check(&[&[0x1f, 0x8b], input.rest()].concat(), &mut checks),
        _ => {
            let blob = spans::concatenated_blob(&mut input, 3, choice % 4 == 3, any_member);
            check(&blob, &mut checks);
        }
    }
}

fn check(blob: &[u8], checks: &mut Input<'_>) {
    if !blob.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let mut plain = Vec::new();
    let complete = decode(blob, &mut plain).is_ok();
    spans::check(blob, &plain, complete, checks);
}

/// Decodes members with zero bytes between and after them.
fn decode(mut blob: &[u8], plain: &mut Vec<u8>) -> std::io::Result<()> {
    while !blob.is_empty() {
        let mut decoder = flate2::bufread::GzDecoder::new(blob);
        decoder.read_to_end(plain)?;
        blob = decoder.into_inner();
        let zeros = blob.iter().take_while(|&&byte| byte == 0).count();
        blob = &blob[zeros..];
    }
    Ok(())
}

/// Generates a member header with any of the optional fields of RFC 1952.
fn header(input: &mut Input<'_>) -> Vec<u8> {
    let flags = if input.one_in(3) { input.byte() & 0x1f } else { 0 };
    let mut bytes = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
    if flags & 4 != 0 {
        let extra = input.chunk();
        bytes.extend_from_slice(
            &u16::try_from(extra.len()).expect("a chunk has at most 255 bytes").to_le_bytes(),
        );
        bytes.extend_from_slice(extra);
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            bytes.extend(input.chunk().iter().take(20).map(|byte| byte | 1));
            bytes.push(0);
        }
    }
    if flags & 2 != 0 {
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&crc[..2]);
    }
    bytes
}

fn trailer(content: &[u8]) -> [u8; 8] {
    let mut trailer = [0; 8];
    trailer[..4].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
    trailer[4..].copy_from_slice(&u32::try_from(content.len()).expect("the content is short").to_le_bytes());
    trailer
}

fn any_member(input: &mut Input<'_>) -> Vec<u8> {
    let header = header(input);
    let (stream, content) = match input.below(3) {
        0 => zlib_stream(input),
        _ => deflate::stream(input, 6),
    };
    [&header[..], &stream, &trailer(&content)].concat()
}

/// Compresses random content with zlib, with flushes between parts. Returns the stream and the content.
fn zlib_stream(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let mut compress = Compress::new(Compression::new(u32::from(input.byte() % 10)), false);
    let (mut stream, mut content) = (Vec::new(), Vec::new());
    for _ in 0..input.below(4) {
        let part = input.content(30_000);
        let flushes = [FlushCompress::None, FlushCompress::Sync, FlushCompress::Full, FlushCompress::Partial];
        compress_into(&mut compress, &part, &mut stream, input.pick(&flushes));
        content.extend(part);
    }
    compress_into(&mut compress, &[], &mut stream, FlushCompress::Finish);
    (stream, content)
}

fn compress_into(compress: &mut Compress, part: &[u8], stream: &mut Vec<u8>, flush: FlushCompress) {
    stream.reserve(part.len() + part.len() / 8 + 1024);
    let before = compress.total_in();
    compress.compress_vec(part, stream, flush).expect("the output has room");
    assert_eq!(
        compress.total_in() - before,
        part.len() as u64,
        "the compressor did not consume the whole part"
    );
}

/// Compresses a layer's tar into one or more members.
fn pack(tar: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let size = input.pick(&[usize::MAX, 700, 3000, 8000]);
    let level = Compression::new(u32::from(input.byte() % 10));
    let pack = |part: &[u8]| {
        let mut compress = Compress::new(level, false);
        let mut stream = Vec::new();
        compress_into(&mut compress, part, &mut stream, FlushCompress::Finish);
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], &stream[..], &trailer(part)].concat()
    };
    tar.chunks(size).flat_map(pack).collect()
}
