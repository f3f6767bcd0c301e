//! Reads the header and the trailer of a gzip member (RFC 1952, 2.3), but not the deflate data between them.

use std::io::BufRead;

use super::input::BlobInput;
use super::{BlobOffset, Codec, LayerError};

/// Longest header, in bytes. The format limits the extra field to 64 KiB, but neither the name nor the comment.
const HEADER_MAX: usize = 128 << 10;

const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// Length of a trailer, in bytes.
pub(super) const TRAILER_LEN: usize = 8;

/// A header that is being read.
struct GzipHeader<'a, R> {
    input: &'a mut BlobInput<R>,
    start: u64,
    crc: crc32fast::Hasher,
    remaining: usize,
}

/// Reads a member's header. The deflate data comes next.
pub(super) fn read_header<R: BufRead>(input: &mut BlobInput<R>) -> Result<(), LayerError> {
    let start = input.offset();
    let mut header = GzipHeader { input, start, crc: crc32fast::Hasher::new(), remaining: HEADER_MAX };
    // A single byte that starts no member is garbage, and not a truncated header.
    if header.byte()? != 0x1f || header.byte()? != 0x8b {
        return Err(LayerError::TrailingGarbage { codec: Codec::Gzip, at: BlobOffset::new(start) });
    }
    let mut fixed = [0; 8];
    for byte in &mut fixed {
        *byte = header.byte()?;
    }
    let [method, flags, ..] = fixed;
    if method != 8 {
        return Err(header.refuse("the compression method is not deflate"));
    }
    if flags & RESERVED != 0 {
        return Err(header.refuse("reserved flags are set"));
    }
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes([header.byte()?, header.byte()?]);
        for _ in 0..length {
            header.byte()?;
        }
    }
    for field in [NAME, COMMENT] {
        if flags & field != 0 {
            while header.byte()? != 0 {}
        }
    }
    if flags & HEADER_CRC != 0 {
        let actual = header.crc.clone().finalize().to_le_bytes();
        if [header.byte()?, header.byte()?] != actual[..2] {
            return Err(header.refuse("the header checksum does not match"));
        }
    }
    Ok(())
}

impl<R: BufRead> GzipHeader<'_, R> {
    fn byte(&mut self) -> Result<u8, LayerError> {
        if self.remaining == 0 {
            return Err(self.refuse("the header is longer than 128 KiB"));
        }
        self.remaining -= 1;
        let byte = self.input.byte(Codec::Gzip, "member header")?;
        self.crc.update(&[byte]);
        Ok(byte)
    }

    fn refuse(&self, problem: &'static str) -> LayerError {
        LayerError::GzipHeader { at: BlobOffset::new(self.start), problem }
    }
}

/// Skips zero bytes after a member, as GNU gzip does: files written to tape or in fixed blocks have them. Returns whether there
/// were any.
pub(super) fn skip_padding<R: BufRead>(input: &mut BlobInput<R>) -> Result<bool, LayerError> {
    let start = input.offset();
    loop {
        let chunk = input.fill()?;
        let zeros = chunk.iter().take_while(|&&byte| byte == 0).count();
        let ends_here = zeros < chunk.len() || chunk.is_empty();
        input.consume(zeros);
        if ends_here {
            return Ok(input.offset() > start);
        }
    }
}

/// Reads the trailer of the member that starts at `member`, and compares it with the decoded content.
pub(super) fn check_trailer<R: BufRead>(
    input: &mut BlobInput<R>,
    member: u64,
    crc: u32,
    length: u64,
) -> Result<(), LayerError> {
    let mut trailer = [0; TRAILER_LEN];
    for byte in &mut trailer {
        *byte = input.byte(Codec::Gzip, "member trailer")?;
    }
    let [a, b, c, d, e, f, g, h] = trailer;
    let at = BlobOffset::new(member);
    let expected = u32::from_le_bytes([a, b, c, d]);
    if crc != expected {
        return Err(LayerError::GzipChecksum { at, actual: crc, expected });
    }
    let expected = u32::from_le_bytes([e, f, g, h]);
    let actual = u32::try_from(length & 0xffff_ffff).expect("masked to 32 bits");
    if actual != expected {
        return Err(LayerError::GzipLength { at, actual, expected });
    }
    Ok(())
}
