//! Decodes gzip and records where that can resume.
//!
//! Spans end behind a deflate block or a member where they can. Where a block is too long for that, the span
//! ends between two of its symbols; inflate cannot stop there, so a walk over the same data finds the place,
//! and what inflate has decoded behind it becomes the start of the next span.

use std::collections::VecDeque;
use std::io::BufRead;

use super::deflate::{Astray, Tape, Walker};
use super::inflate::{Inflate, Stop, Until};
use super::spans::Input;
use super::window::{REACH, WindowFinder};
use super::{BlobOffset, Checkpoint, Codec, DecodedSpan, LayerError, SpanLimits, Window, member};

/// Compressed bytes that are kept for walks. Spans cannot need as much, unless blocks without content fill
/// the blob: an honest writer puts thousands of times less of them around 32 KiB of content.
const TAPE_MAX: usize = 32 << 20;

/// How many spans' memory is kept: as many as are under way at once.
const SPARE: usize = 8;

/// A gzip blob on the way to its spans.
#[derive(Debug)]
pub(super) struct GzipSpans {
    limits: SpanLimits,
    /// What a span may take of the blob: more than any content needs that fits into a span.
    blob_max: u64,
    inflate: Inflate,
    state: State,
    /// The current member: where it starts, and what has been decoded of it.
    member: u64,
    member_len: u64,
    crc: crc32fast::Hasher,
    /// Compressed bytes of the current member.
    tape: Tape,
    /// The start of the current block, or a later symbol of it: where the last span ended.
    walker: Walker,
    finder: WindowFinder,
    /// Up to 32 KiB of the tar before the span.
    history: Vec<u8>,
    /// The span that is being filled.
    span: Open,
    /// The last good place in it to end it.
    boundary: Option<Boundary>,
    /// Spans that are filled; the first ones are ready to be delivered.
    filled: VecDeque<Filled>,
    /// Memory for the next spans.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Deflate,
    End,
}

#[derive(Debug)]
struct Open {
    entrance: Entrance,
    /// The byte that holds its first bit.
    blob: u64,
    tar: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Filled {
    entrance: Entrance,
    blob: std::ops::Range<u64>,
    tar: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Boundary {
    /// Bytes of the span before it.
    len: usize,
    /// Where the blob's bytes of those end.
    blob_end: u64,
    /// Where what follows starts.
    next: Place,
}

/// A place that a span can start at.
#[derive(Debug)]
enum Place {
    Member(u64),
    Inside(Walker),
}

/// What resuming at the start of a span takes.
#[derive(Debug)]
enum Entrance {
    Member,
    /// Waits for 32 KiB behind it, or for the end of the member, to tell what of the history is needed.
    Unsettled {
        start: Walker,
        history: Vec<u8>,
    },
    Inside {
        start: Walker,
        window: Window,
    },
}

impl GzipSpans {
    pub(super) fn new(limits: SpanLimits) -> Self {
        let bytes = Vec::with_capacity(limits.max);
        Self {
            limits,
            // A symbol of one byte has at most 15 bits, and a block header less than 300 bytes.
            blob_max: limits.max as u64 * 2 + 4096,
            inflate: Inflate::new(),
            state: State::Header,
            member: 0,
            member_len: 0,
            crc: crc32fast::Hasher::new(),
            tape: Tape::new(),
            walker: Walker::before_block(0, 0),
            finder: WindowFinder::new(),
            history: Vec::new(),
            span: Open { entrance: Entrance::Member, blob: 0, tar: 0, bytes },
            boundary: None,
            filled: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Keeps the memory of a span that was delivered.
    pub(super) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() >= self.limits.max && self.spare.len() < SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    pub(super) fn next_span<R: BufRead>(
        &mut self,
        input: &mut Input<R>,
    ) -> Result<Option<DecodedSpan>, LayerError> {
        loop {
            let decoded = self.decoded();
            if let Some(first) = self.filled.front_mut() {
                if decoded >= first.tar + REACH as u64 {
                    first.entrance.settle(&self.tape, &mut self.finder)?;
                }
                if first.entrance.is_settled() {
                    return Ok(self.filled.pop_front().map(Filled::deliver));
                }
            } else if self.state == State::End {
                return Ok(None);
            }
            match self.state {
                State::Header => self.start_member(input)?,
                State::Deflate => self.decode(input)?,
                State::End => {}
            }
        }
    }

    /// Bytes of the tar decoded so far.
    fn decoded(&self) -> u64 {
        self.span.tar + self.span.bytes.len() as u64
    }

    fn start_member<R: BufRead>(&mut self, input: &mut Input<R>) -> Result<(), LayerError> {
        self.member = input.offset();
        self.member_len = 0;
        member::read_header(input)?;
        self.crc = crc32fast::Hasher::new();
        self.inflate.reset();
        self.tape.restart(input.offset());
        self.walker = Walker::before_block(input.offset() * 8, self.decoded());
        self.state = State::Deflate;
        Ok(())
    }

    fn decode<R: BufRead>(&mut self, input: &mut Input<R>) -> Result<(), LayerError> {
        let room = self.limits.max - self.span.bytes.len();
        let offset = input.offset();
        let chunk = input.fill()?;
        if chunk.is_empty() {
            return Err(input.truncated(Codec::Gzip, "gzip member"));
        }
        let before = self.span.bytes.len();
        let progress = self
            .inflate
            .append(chunk, &mut self.span.bytes, room, Until::BlockEnd)
            .map_err(|error| LayerError::Deflate { at: BlobOffset::new(offset), problem: error.0 })?;
        let fresh = &self.span.bytes[before..];
        self.crc.update(fresh);
        self.member_len += fresh.len() as u64;
        self.tape.extend(&chunk[..progress.consumed]);
        let input_left = progress.consumed < chunk.len();
        input.consume(progress.consumed);
        match progress.stop {
            Stop::BlockEnd { last: false } => {
                let bit = input.offset() * 8 - u64::from(progress.unused_bits);
                self.walker = Walker::before_block(bit, self.decoded());
                self.at_boundary(input.offset(), Place::Inside(self.walker.clone()))?;
            }
            Stop::BlockEnd { last: true } | Stop::StreamEnd => self.end_member(input)?,
            // Without input left, the next byte may still end the block: where a span ends must not depend on
            // how the reader cuts the blob.
            Stop::Inside if progress.produced == room && input_left => self.overflow()?,
            Stop::Inside => {
                if progress.consumed == 0 && progress.produced == 0 {
                    let problem = "no progress".to_owned();
                    return Err(LayerError::Deflate { at: BlobOffset::new(offset), problem });
                }
            }
        }
        if self.tape.len() > TAPE_MAX {
            let problem = "too many blocks that hold nothing".to_owned();
            return Err(LayerError::Deflate { at: BlobOffset::new(offset), problem });
        }
        Ok(())
    }

    fn end_member<R: BufRead>(&mut self, input: &mut Input<R>) -> Result<(), LayerError> {
        let blob_end = input.offset();
        for span in &mut self.filled {
            span.entrance.settle(&self.tape, &mut self.finder)?;
        }
        self.span.entrance.settle(&self.tape, &mut self.finder)?;
        self.tape.restart(blob_end);
        member::check_trailer(input, self.member, self.crc.clone().finalize(), self.member_len)?;
        if input.fill()?.is_empty() {
            self.state = State::End;
            if !self.span.bytes.is_empty() {
                self.cut(self.span.bytes.len(), blob_end, Place::Member(input.offset()));
            }
            return Ok(());
        }
        self.state = State::Header;
        self.at_boundary(blob_end, Place::Member(input.offset()))
    }

    /// Behind a block or member: ends the span if it is long enough.
    fn at_boundary(&mut self, blob_end: u64, next: Place) -> Result<(), LayerError> {
        let len = self.span.bytes.len();
        let blob_len = blob_end - self.span.blob;
        if len >= self.limits.target / 4 * 3 || (blob_len > self.blob_max && len > 0) {
            self.cut(len, blob_end, next);
        } else if blob_len > self.blob_max {
            // Nothing but empty blocks or members so far: they need not be decoded again.
            self.open(next, self.span.tar);
        } else {
            self.boundary = Some(Boundary { len, blob_end, next });
        }
        Ok(())
    }

    /// The span is as long as it may be, and its last block has not ended.
    fn overflow(&mut self) -> Result<(), LayerError> {
        if let Some(Boundary { len, blob_end, next }) = self.boundary.take()
            && len >= self.limits.target / 2
        {
            self.cut(len, blob_end, next);
            return Ok(());
        }
        let end = self.decoded();
        let at = self.walker.bit() / 8;
        self.walker.walk(&self.tape, end, end, |_, _, _| {}).map_err(|astray| astray.at(at))?;
        let len = usize::try_from(self.walker.tar() - self.span.tar).unwrap_or(0);
        if len == 0 {
            return Err(Astray("a symbol longer than a span").at(at));
        }
        self.cut(len, self.walker.bit().div_ceil(8), Place::Inside(self.walker.clone()));
        Ok(())
    }

    /// Ends the span after `len` bytes; what follows is the start of the next one, at `next`.
    fn cut(&mut self, len: usize, blob_end: u64, next: Place) {
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
        let entrance = self.open(next, tar + len as u64);
        self.filled.push_back(Filled { entrance, blob, tar, bytes });
    }

    /// Lets the span start at `next`, and returns how it would have been entered where it started before.
    fn open(&mut self, next: Place, tar: u64) -> Entrance {
        let (blob, entrance) = match next {
            Place::Member(at) => (at, Entrance::Member),
            Place::Inside(start) => {
                (start.bit() / 8, Entrance::Unsettled { start, history: self.history.clone() })
            }
        };
        self.boundary = None;
        self.span.blob = blob;
        self.span.tar = tar;
        let before = std::mem::replace(&mut self.span.entrance, entrance);
        self.trim(&before);
        before
    }

    /// Forgets the compressed bytes that no walk needs any more.
    fn trim(&mut self, also: &Entrance) {
        let entrances = self.filled.iter().map(|span| &span.entrance).chain([&self.span.entrance, also]);
        let first = entrances.filter_map(Entrance::needs).min().unwrap_or(u64::MAX);
        self.tape.forget_before(first.min(self.walker.bit() / 8));
    }
}

impl Entrance {
    /// Finds out what of the history is needed.
    fn settle(&mut self, tape: &Tape, finder: &mut WindowFinder) -> Result<(), LayerError> {
        if let Self::Unsettled { start, history } = self {
            let window = finder.find(start, tape, history).map_err(|astray| astray.at(start.bit() / 8))?;
            *self = Self::Inside { start: start.clone(), window };
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.needs().is_none()
    }

    /// From where on it needs the blob's bytes to be settled.
    fn needs(&self) -> Option<u64> {
        match self {
            Self::Unsettled { start, .. } => Some(start.bit() / 8),
            Self::Member | Self::Inside { .. } => None,
        }
    }
}

impl Filled {
    fn deliver(self) -> DecodedSpan {
        let checkpoint = match self.entrance {
            Entrance::Inside { start, window } => {
                Checkpoint::Deflate { skip_bits: (start.bit() % 8) as u8, block: start.block(), window }
            }
            Entrance::Member => Checkpoint::GzipMember,
            Entrance::Unsettled { .. } => unreachable!("spans are delivered once they are settled"),
        };
        DecodedSpan { checkpoint: Some(checkpoint), blob: self.blob, bytes: self.bytes }
    }
}

impl Astray {
    fn at(self, at: u64) -> LayerError {
        LayerError::Deflate { at: BlobOffset::new(at), problem: self.0.to_owned() }
    }
}
