//! Reads a blob as a sequence of spans, whatever its codec.

use std::io::BufRead;

use super::gzip::GzipSpans;
use super::input::BlobInput;
use super::zstd::ZstdSpans;
use super::{BlobOffset, Checkpoint, Codec, DecodedSpan, LayerError, SpanLimits};

/// Decodes a blob once, front to back, into spans that follow each other without a gap in the tar.
///
/// Verifies everything that the format makes verifiable: if the decoder returns `None`, the blob is complete and undamaged.
/// If it returns an error, the spans before the error are correct, but the blob is not.
///
/// Needs memory for about three spans and for zstd's window, regardless of the blob's content.
#[derive(Debug)]
pub struct SpanDecoder<R> {
    input: BlobInput<R>,
    codec: Codec,
    decoder: CodecDecoder,
}

/// The decoder of one codec.
#[derive(Debug)]
enum CodecDecoder {
    Stored {
        limits: SpanLimits,
    },
    Gzip(Box<GzipSpans>),
    Zstd(Box<ZstdSpans>),
    /// An earlier call returned an error.
    Failed,
}

impl<R: BufRead> SpanDecoder<R> {
    /// Recognises the codec by the blob's first bytes.
    ///
    /// # Errors
    ///
    /// The blob cannot be read, or has a compression that is not supported.
    ///
    /// # Panics
    ///
    /// If `limits` are invalid: `target` is 0 or above `max`, or `max` is less than 1024. A few deflate
    /// matches could exceed a smaller `max`.
    pub fn new(input: R, limits: SpanLimits) -> Result<Self, LayerError> {
        assert!(0 < limits.target && limits.target <= limits.max && 1024 <= limits.max, "{limits:?}");
        let input = BlobInput::new(input)?;
        if let Some(program) = unsupported_compression(input.prefix()) {
            return Err(LayerError::Compression(program));
        }
        let codec = Codec::sniff(input.prefix());
        let decoder = match codec {
            Codec::Tar => CodecDecoder::Stored { limits },
            Codec::Gzip => CodecDecoder::Gzip(Box::new(GzipSpans::new(limits))),
            Codec::Zstd => CodecDecoder::Zstd(Box::new(ZstdSpans::new(limits))),
        };
        Ok(Self { input, codec, decoder })
    }

    /// The blob's codec.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Number of bytes of the blob decoded so far; the blob's length once `next_span` has returned `None`.
    pub fn blob_offset(&self) -> BlobOffset {
        BlobOffset::new(self.input.offset())
    }

    /// Decodes the next span; `None` after the last one.
    ///
    /// # Errors
    ///
    /// The blob is damaged or incomplete, or cannot be read. All later calls fail, too.
    pub fn next_span(&mut self) -> Result<Option<DecodedSpan>, LayerError> {
        let span = match &mut self.decoder {
            CodecDecoder::Stored { limits } => stored_span(&mut self.input, *limits),
            CodecDecoder::Gzip(spans) => spans.next_span(&mut self.input),
            CodecDecoder::Zstd(spans) => spans.next_span(&mut self.input),
            CodecDecoder::Failed => return Err(LayerError::AlreadyFailed),
        };
        if span.is_err() {
            self.decoder = CodecDecoder::Failed;
        }
        span
    }

    /// Takes back the buffer of a span for reuse. A fresh buffer for each span would cost a page fault for every 4 KiB.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if let CodecDecoder::Gzip(spans) = &mut self.decoder {
            spans.recycle(bytes);
        }
    }

    /// Returns the reader. It has been read up to [`Self::blob_offset`], or [`Codec::SNIFF_LEN`] if that is more.
    pub fn into_inner(self) -> R {
        self.input.into_reader()
    }
}

/// The program that compressed a blob, if no layer of an image may be compressed with it.
fn unsupported_compression(prefix: &[u8]) -> Option<&'static str> {
    match prefix {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => Some("bzip2"),
        _ => None,
    }
}

fn stored_span<R: BufRead>(
    input: &mut BlobInput<R>,
    limits: SpanLimits,
) -> Result<Option<DecodedSpan>, LayerError> {
    let start = input.offset();
    let mut bytes = Vec::with_capacity(limits.target);
    while bytes.len() < limits.target {
        let chunk = input.fill()?;
        if chunk.is_empty() {
            break;
        }
        let take = chunk.len().min(limits.target - bytes.len());
        bytes.extend_from_slice(&chunk[..take]);
        input.consume(take);
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(DecodedSpan {
        checkpoint: Some(Checkpoint::Stored),
        blob: start..input.offset(),
        continues_frame: false,
        bytes,
    }))
}

#[cfg(test)]
mod tests;
