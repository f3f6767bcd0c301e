//! Reads a blob as a sequence of spans, whatever its compression.

use std::io::{self, BufRead};

use super::gzip::GzipSpans;
use super::zstd::ZstdSpans;
use super::{BlobOffset, Checkpoint, Codec, DecodedSpan, LayerError, SpanLimits};

/// Decodes a blob once, front to back, into spans that follow each other without a gap in the tar.
///
/// Verifies all that the format lets it verify: a blob that was read to `None` is complete and undamaged.
/// Spans that were delivered before an error are good as bytes, but their blob is not.
///
/// Needs memory for about three spans and what zstd's window takes, whatever the blob says.
#[derive(Debug)]
pub struct SpanDecoder<R> {
    input: Input<R>,
    codec: Codec,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Stored {
        limits: SpanLimits,
    },
    Gzip(Box<GzipSpans>),
    Zstd(Box<ZstdSpans>),
    /// An error was returned.
    GivenUp,
}

impl<R: BufRead> SpanDecoder<R> {
    /// Looks at the blob's first bytes to tell how it is compressed.
    ///
    /// # Panics
    ///
    /// If `limits` make no sense: `max` below `target`, or less than 1024, which a few matches of deflate can
    /// fill.
    pub fn new(input: R, limits: SpanLimits) -> Result<Self, LayerError> {
        assert!(0 < limits.target && limits.target <= limits.max && 1024 <= limits.max, "{limits:?}");
        let input = Input::new(input)?;
        if input.prefix().is_empty() {
            return Err(LayerError::Empty);
        }
        let codec = Codec::sniff(input.prefix());
        let format = match codec {
            Codec::Tar => Format::Stored { limits },
            Codec::Gzip => Format::Gzip(Box::new(GzipSpans::new(limits))),
            Codec::Zstd => Format::Zstd(Box::new(ZstdSpans::new(limits))),
        };
        Ok(Self { input, codec, format })
    }

    /// How the blob is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How much of the blob has been read. Once `next_span` has returned `None`, that is all of it.
    pub fn blob_offset(&self) -> BlobOffset {
        BlobOffset::new(self.input.offset())
    }

    /// Decodes up to the end of the next span; `None` behind the last one.
    ///
    /// # Errors
    ///
    /// A blob that is damaged, not complete, or cannot be read. All later calls fail, too.
    pub fn next_span(&mut self) -> Result<Option<DecodedSpan>, LayerError> {
        let span = match &mut self.format {
            Format::Stored { limits } => stored_span(&mut self.input, *limits),
            Format::Gzip(spans) => spans.next_span(&mut self.input),
            Format::Zstd(spans) => spans.next_span(&mut self.input),
            Format::GivenUp => return Err(LayerError::GivenUp),
        };
        if span.is_err() {
            self.format = Format::GivenUp;
        }
        span
    }

    /// Takes back the bytes of a span that is done with, to fill them again: fresh memory for each span costs a page
    /// fault for every 4 KiB.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if let Format::Gzip(spans) = &mut self.format {
            spans.recycle(bytes);
        }
    }

    /// The reader, of which everything up to [`Self::blob_offset`] is consumed (at least the first four
    /// bytes).
    pub fn into_inner(self) -> R {
        self.input.inner
    }
}

fn stored_span<R: BufRead>(
    input: &mut Input<R>,
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
    Ok(Some(DecodedSpan { checkpoint: Some(Checkpoint::Stored), blob: start..input.offset(), bytes }))
}

/// A blob as it is read: knows its position, and gives back the bytes that were looked at.
#[derive(Debug)]
pub(super) struct Input<R> {
    inner: R,
    prefix: [u8; Codec::SNIFF_LEN],
    given: usize,
    filled: usize,
    offset: u64,
}

impl<R: BufRead> Input<R> {
    pub(super) fn new(mut inner: R) -> Result<Self, LayerError> {
        let mut prefix = [0; Codec::SNIFF_LEN];
        let mut filled = 0;
        while filled < prefix.len() {
            let chunk = fill(&mut inner, filled as u64)?;
            if chunk.is_empty() {
                break;
            }
            let take = chunk.len().min(prefix.len() - filled);
            prefix[filled..filled + take].copy_from_slice(&chunk[..take]);
            inner.consume(take);
            filled += take;
        }
        Ok(Self { inner, prefix, given: 0, filled, offset: 0 })
    }

    fn prefix(&self) -> &[u8] {
        &self.prefix[self.given..self.filled]
    }

    /// Bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes; none at the end of the blob.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.given < self.filled {
            return Ok(&self.prefix[self.given..self.filled]);
        }
        fill(&mut self.inner, self.offset)
    }

    /// Goes on behind bytes that `fill` returned.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.offset += bytes as u64;
        if self.given < self.filled {
            self.given += bytes;
        } else {
            self.inner.consume(bytes);
        }
    }

    /// The next byte, where the blob must not end.
    pub(super) fn byte(&mut self, codec: Codec, part: &'static str) -> Result<u8, LayerError> {
        match *self.fill()? {
            [byte, ..] => {
                self.consume(1);
                Ok(byte)
            }
            [] => Err(self.truncated(codec, part)),
        }
    }

    /// The error for a blob that ends here.
    pub(super) fn truncated(&self, codec: Codec, part: &'static str) -> LayerError {
        LayerError::Truncated { codec, part, at: BlobOffset::new(self.offset) }
    }
}

fn fill<R: BufRead>(inner: &mut R, offset: u64) -> Result<&[u8], LayerError> {
    let failed = |source| LayerError::Read { at: BlobOffset::new(offset), source };
    loop {
        match inner.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // Returns what the call above has buffered; the borrow checker does not let that be returned from the
    // loop.
    inner.fill_buf().map_err(failed)
}

#[cfg(test)]
mod tests;
