//! Decodes zstd and records which frames can be decoded again on their own.
//!
//! A zstd frame can be decoded only from its start. So spans consist of whole frames. A frame longer than the limit for spans
//! is split into spans without checkpoints.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::BufRead;

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::input::BlobInput;
use super::zstd_blocks::BlockCursor;
use super::{BlobOffset, Checkpoint, Codec, DecodedSpan, LayerError, SpanLimits};

/// Largest window, as a power of two: 128 MiB, the default limit of `zstd -d`.
const WINDOW_LOG_MAX: u32 = 27;

const MAGIC: u32 = 0xfd2f_b528;

/// Decodes a zstd blob into spans.
pub(super) struct ZstdSpans {
    limits: SpanLimits,
    /// Maximum number of bytes of the blob in one span: more than the content of a span can need.
    blob_max: u64,
    context: DCtx<'static>,
    state: ZstdState,
    /// The range of the blob from the start of the span to the end of its last whole frame.
    blob: std::ops::Range<u64>,
    /// Content of the span's whole frames, and the decoded part of the current frame.
    bytes: Vec<u8>,
    /// Content of the current frame that was not returned yet: the offset in the frame's content at which a part of it ends,
    /// and the end of the block in the blob that decodes to this part.
    decoded: VecDeque<(u64, u64)>,
    filled: VecDeque<DecodedSpan>,
}

#[derive(Debug, Clone, Copy)]
enum ZstdState {
    BetweenFrames,
    Frame(ZstdFrame),
    End,
}

/// The frame that is being decoded.
#[derive(Debug, Clone, Copy)]
struct ZstdFrame {
    /// Start in the blob.
    blob: u64,
    /// Start in the span.
    at: usize,
    /// Whether the frame is too long for one span and is returned in pieces.
    long: bool,
    /// The bytes of the frame's content that were returned in pieces.
    returned: u64,
    /// Where the blob range of the next piece starts.
    piece: u64,
    blocks: BlockCursor,
}

impl ZstdSpans {
    pub(super) fn new(limits: SpanLimits) -> Self {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .expect("zstd supports windows of 2^27 bytes");
        Self {
            limits,
            blob_max: limits.max as u64 * 2 + 4096,
            context,
            state: ZstdState::BetweenFrames,
            blob: 0..0,
            bytes: new_buffer(limits),
            decoded: VecDeque::new(),
            filled: VecDeque::new(),
        }
    }

    /// Decodes the next span; `None` after the last one.
    pub(super) fn next_span<R: BufRead>(
        &mut self,
        input: &mut BlobInput<R>,
    ) -> Result<Option<DecodedSpan>, LayerError> {
        loop {
            if let Some(span) = self.filled.pop_front() {
                return Ok(Some(span));
            }
            match self.state {
                ZstdState::BetweenFrames => self.start_frame(input)?,
                ZstdState::Frame(frame) => self.decode(input, frame)?,
                ZstdState::End => return Ok(None),
            }
        }
    }

    fn start_frame<R: BufRead>(&mut self, input: &mut BlobInput<R>) -> Result<(), LayerError> {
        let start = input.offset();
        if input.fill()?.is_empty() {
            self.state = ZstdState::End;
            self.close(self.bytes.len());
            return Ok(());
        }
        let mut header = ZstdHeader { bytes: [0; ZstdHeader::MAX], len: 0 };
        let magic = header.number(input, 4)?;
        if magic & !0xf == 0x184d_2a50 {
            let length = ZstdHeader { bytes: [0; ZstdHeader::MAX], len: 0 }.number(input, 4)?;
            return self.skip(input, length);
        }
        if magic != u64::from(MAGIC) {
            return Err(LayerError::TrailingGarbage { codec: Codec::Zstd, at: BlobOffset::new(start) });
        }
        let has_checksum = header.read(input, start)?;
        let mut source = InBuffer::around(&header.bytes[..header.len]);
        let mut no_output = OutBuffer::around(&mut [][..]);
        self.context
            .decompress_stream(&mut no_output, &mut source)
            .map_err(|code| damaged(start, input.offset(), code))?;
        if source.pos() != header.len {
            let problem = "the decoder rejects the header";
            return Err(LayerError::Zstd {
                frame: BlobOffset::new(start),
                at: BlobOffset::new(start),
                problem,
            });
        }
        self.decoded.clear();
        self.state = ZstdState::Frame(ZstdFrame {
            blob: start,
            at: self.bytes.len(),
            long: false,
            returned: 0,
            piece: start,
            blocks: BlockCursor::new(input.offset(), has_checksum),
        });
        Ok(())
    }

    /// Skips the content of a skippable frame.
    fn skip<R: BufRead>(&mut self, input: &mut BlobInput<R>, mut length: u64) -> Result<(), LayerError> {
        while length > 0 {
            let available = input.fill()?.len();
            if available == 0 {
                return Err(input.truncated(Codec::Zstd, "skippable frame"));
            }
            let take = usize::try_from(length).unwrap_or(usize::MAX).min(available);
            input.consume(take);
            length -= take as u64;
        }
        if input.offset() - self.blob.start > self.blob_max || self.bytes.is_empty() {
            self.close(self.bytes.len());
            self.blob = input.offset()..input.offset();
        }
        Ok(())
    }

    fn decode<R: BufRead>(
        &mut self,
        input: &mut BlobInput<R>,
        mut frame: ZstdFrame,
    ) -> Result<(), LayerError> {
        let before = self.bytes.len();
        let offset = input.offset();
        let chunk = input.fill()?;
        let at_end = chunk.is_empty();
        // zstd decodes whole blocks. It gets one part of a block at a time, so that what it returns is known to come from this
        // block, whatever chunks the reader returns.
        let part = &chunk[..frame.blocks.left().min(chunk.len())];
        let mut source = InBuffer::around(part);
        // The buffer has room for one byte more than the limit for spans. If that byte is used, the frame is too long.
        let mut out = OutBuffer::around_pos(&mut self.bytes, before);
        let hint = self
            .context
            .decompress_stream(&mut out, &mut source)
            .map_err(|code| damaged(frame.blob, offset, code))?;
        let consumed = source.pos();
        let produced = self.bytes.len() - before;
        if produced > 0 {
            let content = frame.returned + (self.bytes.len() - frame.at) as u64;
            match self.decoded.back_mut() {
                Some((end, block_end)) if *block_end == frame.blocks.block_end() => *end = content,
                _ => self.decoded.push_back((content, frame.blocks.block_end())),
            }
        }
        frame.blocks.advance(&part[..consumed]);
        input.consume(consumed);
        let ended = hint == 0;
        if !ended && consumed == 0 && produced == 0 {
            return Err(if at_end {
                input.truncated(Codec::Zstd, "zstd frame")
            } else {
                let (frame, at) = (BlobOffset::new(frame.blob), BlobOffset::new(offset));
                LayerError::Zstd { frame, at, problem: "the decoder makes no progress" }
            });
        }
        let blob_end = input.offset();
        if !frame.long {
            let exceeds_blob_max = blob_end - frame.blob > self.blob_max;
            if frame.at > 0 && (self.bytes.len() > self.limits.max || exceeds_blob_max) {
                self.close(frame.at);
                self.blob = frame.blob..frame.blob;
                frame.at = 0;
            }
            frame.long = self.bytes.len() > self.limits.max || exceeds_blob_max;
        }
        if frame.long {
            // `bytes` holds only this frame, because a long frame does not share a span.
            while self.bytes.len() > self.limits.target || (ended && !self.bytes.is_empty()) {
                let bytes = self.take(self.limits.target.min(self.bytes.len()));
                let continues_frame = frame.returned > 0;
                frame.returned += bytes.len() as u64;
                while self.decoded.front().is_some_and(|(end, _)| *end < frame.returned) {
                    self.decoded.pop_front();
                }
                let blob_end = self.decoded.front().map_or(blob_end, |(_, block_end)| *block_end);
                let blob = std::mem::replace(&mut frame.piece, blob_end)..blob_end;
                self.filled.push_back(DecodedSpan { checkpoint: None, blob, continues_frame, bytes });
            }
        }
        self.state = ZstdState::Frame(frame);
        if ended {
            self.state = ZstdState::BetweenFrames;
            if frame.long {
                self.blob = blob_end..blob_end;
            } else {
                self.blob.end = blob_end;
                let exceeds_blob_max = blob_end - self.blob.start > self.blob_max;
                if self.bytes.len() >= self.limits.target / 4 * 3 || exceeds_blob_max {
                    self.close(self.bytes.len());
                    self.blob = blob_end..blob_end;
                }
            }
        }
        Ok(())
    }

    /// Ends the span after `len` bytes, at the end of its last whole frame.
    fn close(&mut self, len: usize) {
        if len > 0 {
            let bytes = self.take(len);
            let checkpoint = Some(Checkpoint::ZstdFrame);
            let (blob, continues_frame) = (self.blob.clone(), false);
            self.filled.push_back(DecodedSpan { checkpoint, blob, continues_frame, bytes });
        }
    }

    /// Removes and returns the first `len` bytes.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut rest = new_buffer(self.limits);
        rest.extend_from_slice(&self.bytes[len..]);
        let mut bytes = std::mem::replace(&mut self.bytes, rest);
        bytes.truncate(len);
        bytes
    }
}

impl fmt::Debug for ZstdSpans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdSpans")
            .field("state", &self.state)
            .field("blob", &self.blob)
            .finish_non_exhaustive()
    }
}

fn new_buffer(limits: SpanLimits) -> Vec<u8> {
    Vec::with_capacity(limits.max + 1)
}

fn damaged(frame: u64, at: u64, code: usize) -> LayerError {
    let problem = zstd_safe::get_error_name(code);
    LayerError::Zstd { frame: BlobOffset::new(frame), at: BlobOffset::new(at), problem }
}

/// The part of a frame's header that has been read (RFC 8878, 3.1.1.1).
struct ZstdHeader {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl ZstdHeader {
    const MAX: usize = 18;

    /// Reads a little-endian number.
    fn number<R: BufRead>(&mut self, input: &mut BlobInput<R>, size: usize) -> Result<u64, LayerError> {
        let mut number = [0; 8];
        for slot in &mut number[..size] {
            let byte = input.byte(Codec::Zstd, "frame header")?;
            *slot = byte;
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(u64::from_le_bytes(number))
    }

    /// Reads the header after the magic number, and returns whether a checksum follows the last block. Refuses some frames that
    /// zstd would also refuse, to give a clearer message.
    fn read<R: BufRead>(&mut self, input: &mut BlobInput<R>, start: u64) -> Result<bool, LayerError> {
        let at = BlobOffset::new(start);
        let descriptor = self.number(input, 1)?;
        let single_segment = descriptor & 0x20 != 0;
        let mut window = 0;
        if !single_segment {
            let byte = self.number(input, 1)?;
            let base = 1u64 << (10 + (byte >> 3));
            window = base + base / 8 * (byte & 7);
        }
        let id = self.number(input, [0, 1, 2, 4][(descriptor & 3) as usize])?;
        let content_size = match descriptor >> 6 {
            0 if single_segment => self.number(input, 1)?,
            0 => 0,
            1 => self.number(input, 2)? + 256,
            2 => self.number(input, 4)?,
            _ => self.number(input, 8)?,
        };
        if single_segment {
            window = content_size;
        }
        if window > 1 << WINDOW_LOG_MAX {
            return Err(LayerError::ZstdWindow { at, size: window, limit: 1 << WINDOW_LOG_MAX });
        }
        match u32::try_from(id).expect("at most 4 bytes") {
            0 => Ok(descriptor & 4 != 0),
            id => Err(LayerError::ZstdDictionary { at, id }),
        }
    }
}

/// Decodes whole frames until `out` is full.
pub(super) fn decode_frames(mut blob: &[u8], out: &mut [u8]) -> Result<(), LayerError> {
    thread_local! {
        static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    }
    CONTEXT.with_borrow_mut(|context| {
        let mut filled = 0;
        while filled < out.len() {
            if blob.is_empty() {
                return Err(LayerError::SPAN_TOO_SHORT);
            }
            let failed = |code| LayerError::Span { problem: zstd_safe::get_error_name(code) };
            let length = zstd_safe::find_frame_compressed_size(blob).map_err(failed)?;
            let (frame, rest) = blob.split_at_checked(length).ok_or(LayerError::SPAN_TOO_SHORT)?;
            filled += context.decompress(&mut out[filled..], frame).map_err(failed)?;
            blob = rest;
        }
        Ok(())
    })
}
