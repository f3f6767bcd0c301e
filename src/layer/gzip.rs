//! Decodes gzip and records where decoding can resume.
//!
//! Where possible, a span ends after a deflate block or a member. If a block is too long, the span ends between two of its
//! symbols. inflate cannot stop there, so a walk over the same data finds the position, and the bytes that inflate has
//! decoded after it become the start of the next span.

use std::collections::VecDeque;
use std::io::BufRead;

use super::bits::DeflateError;
use super::deflate::{CompressedBuffer, DeflateWalker};
use super::gzip_member::{check_trailer, read_header, skip_padding};
use super::inflate::{Inflate, StopCondition, StopReason};
use super::input::BlobInput;
use super::window::{REACH, WindowFinder};
use super::{BlobOffset, Checkpoint, Codec, DecodedSpan, LayerError, SpanLimits, Window};

/// Maximum number of compressed bytes that are kept for walks. Spans need this much only if the blob is filled with empty
/// blocks. Honest writers produce thousands of times fewer of them per 32 KiB of content.
const BUFFER_MAX: usize = 32 << 20;

/// Number of span buffers that are kept for reuse: as many as are in use at once.
const SPARE_MAX: usize = 8;

/// Decodes a gzip blob into spans.
#[derive(Debug)]
pub(super) struct GzipSpans {
    limits: SpanLimits,
    /// Maximum number of bytes of the blob in one span: more than the content of a span can need.
    blob_max: u64,
    inflate: Inflate,
    state: GzipState,
    /// Start of the current member in the blob.
    member: u64,
    /// Number of bytes decoded of the current member.
    member_len: u64,
    crc: crc32fast::Hasher,
    /// Compressed bytes of the current member.
    buffer: CompressedBuffer,
    /// The start of the current block, or the end of the last span if that is later.
    walker: DeflateWalker,
    finder: WindowFinder,
    /// Up to 32 KiB of the tar before the current span.
    history: Vec<u8>,
    /// The span that is being filled.
    span: CurrentSpan,
    /// The last position at which the current span could end.
    boundary: Option<SpanBoundary>,
    /// Filled spans, in order. Those whose window is known can be returned.
    filled: VecDeque<FilledSpan>,
    /// Buffers for the next spans.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GzipState {
    Header,
    Deflate,
    End,
}

#[derive(Debug)]
struct CurrentSpan {
    resume: ResumePoint,
    /// The byte of the blob that holds the span's first bit.
    blob: u64,
    /// Start of the span in the tar.
    tar: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct FilledSpan {
    resume: ResumePoint,
    blob: std::ops::Range<u64>,
    tar: u64,
    bytes: Vec<u8>,
}

/// A position at which the current span can end.
#[derive(Debug)]
struct SpanBoundary {
    /// Length of the span if it ends here.
    len: usize,
    /// End of the span in the blob.
    blob_end: u64,
    /// Start of the next span.
    next: SpanStart,
}

/// A position at which a span can start.
#[derive(Debug)]
enum SpanStart {
    /// A member at this position of the blob.
    Member(u64),
    /// A position inside a deflate stream.
    Deflate(DeflateWalker),
}

/// The state needed to resume at the start of a span.
#[derive(Debug)]
enum ResumePoint {
    Member,
    /// The window is not known yet. Finding it requires the 32 KiB after `start`, or all bytes to the end of the
    /// member.
    PendingWindow {
        start: DeflateWalker,
        history: Vec<u8>,
    },
    Deflate {
        start: DeflateWalker,
        window: Window,
    },
}

impl GzipSpans {
    pub(super) fn new(limits: SpanLimits) -> Self {
        let bytes = Vec::with_capacity(limits.max);
        Self {
            limits,
            // A symbol for one byte has at most 15 bits, and a block header less than 300 bytes.
            blob_max: limits.max as u64 * 2 + 4096,
            inflate: Inflate::new(),
            state: GzipState::Header,
            member: 0,
            member_len: 0,
            crc: crc32fast::Hasher::new(),
            buffer: CompressedBuffer::new(),
            walker: DeflateWalker::before_block(0, 0),
            finder: WindowFinder::new(),
            history: Vec::new(),
            span: CurrentSpan { resume: ResumePoint::Member, blob: 0, tar: 0, bytes },
            boundary: None,
            filled: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Takes back the buffer of a returned span.
    pub(super) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() >= self.limits.max && self.spare.len() < SPARE_MAX {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Decodes the next span; `None` after the last one.
    pub(super) fn next_span<R: BufRead>(
        &mut self,
        input: &mut BlobInput<R>,
    ) -> Result<Option<DecodedSpan>, LayerError> {
        loop {
            let decoded = self.decoded();
            if let Some(first) = self.filled.front_mut() {
                if decoded >= first.tar + REACH as u64 {
                    first.resume.find_window(&self.buffer, &mut self.finder)?;
                }
                if first.resume.is_complete() {
                    return Ok(self.filled.pop_front().map(FilledSpan::into_decoded));
                }
            } else if self.state == GzipState::End {
                return Ok(None);
            }
            match self.state {
                GzipState::Header => self.start_member(input)?,
                GzipState::Deflate => self.decode(input)?,
                GzipState::End => {}
            }
        }
    }

    /// Number of bytes of the tar decoded so far.
    fn decoded(&self) -> u64 {
        self.span.tar + self.span.bytes.len() as u64
    }

    fn start_member<R: BufRead>(&mut self, input: &mut BlobInput<R>) -> Result<(), LayerError> {
        self.member = input.offset();
        self.member_len = 0;
        read_header(input)?;
        self.crc = crc32fast::Hasher::new();
        self.inflate.reset();
        self.buffer.restart(input.offset());
        self.walker = DeflateWalker::before_block(input.offset() * 8, self.decoded());
        self.state = GzipState::Deflate;
        Ok(())
    }

    fn decode<R: BufRead>(&mut self, input: &mut BlobInput<R>) -> Result<(), LayerError> {
        let room = self.limits.max - self.span.bytes.len();
        let offset = input.offset();
        let chunk = input.fill()?;
        if chunk.is_empty() {
            return Err(input.truncated(Codec::Gzip, "gzip member"));
        }
        let before = self.span.bytes.len();
        let progress = self
            .inflate
            .append(chunk, &mut self.span.bytes, room, StopCondition::BlockEnd)
            .map_err(|error| LayerError::Deflate { at: BlobOffset::new(offset), problem: error.0 })?;
        let decoded = &self.span.bytes[before..];
        self.crc.update(decoded);
        self.member_len += decoded.len() as u64;
        self.buffer.extend(&chunk[..progress.consumed]);
        let input_left = progress.consumed < chunk.len();
        input.consume(progress.consumed);
        match progress.stop {
            StopReason::BlockEnd { last: false } => {
                let bit = input.offset() * 8 - u64::from(progress.unused_bits);
                self.walker = DeflateWalker::before_block(bit, self.decoded());
                self.at_boundary(input.offset(), SpanStart::Deflate(self.walker.clone()));
            }
            StopReason::BlockEnd { last: true } | StopReason::StreamEnd => self.end_member(input)?,
            // If the input is used up, the next byte may still end the block. The end of a span must not depend on the
            // chunks that the reader returns.
            StopReason::Exhausted if progress.produced == room && input_left => self.end_inside_block()?,
            StopReason::Exhausted => {
                if progress.consumed == 0 && progress.produced == 0 {
                    let problem = "the decoder makes no progress".to_owned();
                    return Err(LayerError::Deflate { at: BlobOffset::new(offset), problem });
                }
            }
        }
        if self.buffer.len() > BUFFER_MAX {
            let problem = "too many empty blocks".to_owned();
            return Err(LayerError::Deflate { at: BlobOffset::new(offset), problem });
        }
        Ok(())
    }

    fn end_member<R: BufRead>(&mut self, input: &mut BlobInput<R>) -> Result<(), LayerError> {
        let blob_end = input.offset();
        for span in &mut self.filled {
            span.resume.find_window(&self.buffer, &mut self.finder)?;
        }
        self.span.resume.find_window(&self.buffer, &mut self.finder)?;
        self.buffer.restart(blob_end);
        check_trailer(input, self.member, self.crc.clone().finalize(), self.member_len)?;
        let has_padding = skip_padding(input)?;
        if input.fill()?.is_empty() {
            self.state = GzipState::End;
            if !self.span.bytes.is_empty() {
                self.cut(self.span.bytes.len(), blob_end, SpanStart::Member(input.offset()));
            }
            return Ok(());
        }
        self.state = GzipState::Header;
        let next = SpanStart::Member(input.offset());
        match self.span.bytes.len() {
            // No span contains padding, which may be long: decoding a span again reads all of its blob.
            0 if has_padding => drop(self.start_span(next, self.span.tar)),
            len if has_padding => self.cut(len, blob_end, next),
            _ => self.at_boundary(blob_end, next),
        }
        Ok(())
    }

    /// Ends the span if it is long enough. Called after each block and member.
    fn at_boundary(&mut self, blob_end: u64, next: SpanStart) {
        let len = self.span.bytes.len();
        let blob_len = blob_end - self.span.blob;
        if len >= self.limits.target / 4 * 3 || (blob_len > self.blob_max && len > 0) {
            self.cut(len, blob_end, next);
        } else if blob_len > self.blob_max {
            // The span has only empty blocks or members so far. They need not be decoded again.
            self.start_span(next, self.span.tar);
        } else {
            self.boundary = Some(SpanBoundary { len, blob_end, next });
        }
    }

    /// Ends a span that has reached its maximum inside a block: at the last boundary if the span is then long enough,
    /// otherwise between two symbols.
    fn end_inside_block(&mut self) -> Result<(), LayerError> {
        if let Some(SpanBoundary { len, blob_end, next }) = self.boundary.take()
            && len >= self.limits.target / 2
        {
            self.cut(len, blob_end, next);
            return Ok(());
        }
        let end = self.decoded();
        let at = self.walker.bit() / 8;
        self.walker.walk(&self.buffer, end, end, |_, _, _| {}).map_err(|error| error.at(at))?;
        let len = usize::try_from(self.walker.tar() - self.span.tar).unwrap_or(0);
        if len == 0 {
            return Err(DeflateError("a symbol is longer than a span").at(at));
        }
        self.cut(len, self.walker.bit().div_ceil(8), SpanStart::Deflate(self.walker.clone()));
        Ok(())
    }

    /// Ends the span after `len` bytes. The remaining bytes become the start of the next span, which starts at `next`.
    fn cut(&mut self, len: usize, blob_end: u64, next: SpanStart) {
        let mut rest = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.limits.max));
        rest.extend_from_slice(&self.span.bytes[len..]);
        let mut bytes = std::mem::replace(&mut self.span.bytes, rest);
        bytes.truncate(len);
        if len < REACH {
            let kept = REACH - len;
            self.history.drain(..self.history.len().saturating_sub(kept));
        } else {
            self.history.clear();
        }
        self.history.extend_from_slice(&bytes[len.saturating_sub(REACH)..]);
        let (blob, tar) = (self.span.blob..blob_end, self.span.tar);
        let resume = self.start_span(next, tar + len as u64);
        self.filled.push_back(FilledSpan { resume, blob, tar, bytes });
    }

    /// Moves the start of the current span to `next`, and returns the resume point of its previous start.
    fn start_span(&mut self, next: SpanStart, tar: u64) -> ResumePoint {
        let (blob, resume) = match next {
            SpanStart::Member(at) => (at, ResumePoint::Member),
            SpanStart::Deflate(start) => {
                (start.bit() / 8, ResumePoint::PendingWindow { start, history: self.history.clone() })
            }
        };
        self.boundary = None;
        self.span.blob = blob;
        self.span.tar = tar;
        let previous = std::mem::replace(&mut self.span.resume, resume);
        self.trim_buffer(&previous);
        previous
    }

    /// Drops the compressed bytes that no walk needs any more. `other` is a resume point that currently belongs to no
    /// span.
    fn trim_buffer(&mut self, other: &ResumePoint) {
        let points = self.filled.iter().map(|span| &span.resume).chain([&self.span.resume, other]);
        let first = points.filter_map(ResumePoint::first_needed).min().unwrap_or(u64::MAX);
        self.buffer.forget_before(first.min(self.walker.bit() / 8));
    }
}

impl ResumePoint {
    /// Finds the window, if that is pending.
    fn find_window(
        &mut self,
        buffer: &CompressedBuffer,
        finder: &mut WindowFinder,
    ) -> Result<(), LayerError> {
        if let Self::PendingWindow { start, history } = self {
            let window = finder.find(start, buffer, history).map_err(|error| error.at(start.bit() / 8))?;
            *self = Self::Deflate { start: start.clone(), window };
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.first_needed().is_none()
    }

    /// The first byte of the blob that is needed to find the window; `None` if the window is known or not needed.
    fn first_needed(&self) -> Option<u64> {
        match self {
            Self::PendingWindow { start, .. } => Some(start.bit() / 8),
            Self::Member | Self::Deflate { .. } => None,
        }
    }
}

impl FilledSpan {
    fn into_decoded(self) -> DecodedSpan {
        let checkpoint = match self.resume {
            ResumePoint::Deflate { start, window } => {
                Checkpoint::Deflate { skip_bits: (start.bit() % 8) as u8, block: start.block(), window }
            }
            ResumePoint::Member => Checkpoint::GzipMember,
            ResumePoint::PendingWindow { .. } => {
                unreachable!("spans are returned only after their window is known")
            }
        };
        DecodedSpan {
            checkpoint: Some(checkpoint),
            blob: self.blob,
            continues_frame: false,
            bytes: self.bytes,
        }
    }
}

impl DeflateError {
    fn at(self, at: u64) -> LayerError {
        LayerError::Deflate { at: BlobOffset::new(at), problem: self.0.to_owned() }
    }
}
