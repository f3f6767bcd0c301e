//! Decodes raw deflate data. The only file that calls zlib-rs; wraps it in a safe type.
#![expect(unsafe_code, reason = "zlib-rs offers block boundaries and priming only through its C interface")]

use std::ffi::{CStr, c_int};

use libz_rs_sys as z;

/// A raw inflate stream (no zlib or gzip wrapper).
pub(super) struct Inflate {
    stream: Box<z::z_stream>,
}

// SAFETY: the stream owns everything it points to (its state, which `inflateInit2_` creates with the default
// allocator). `next_in` and `next_out` are set before each use. Nothing in the stream is tied to a thread.
unsafe impl Send for Inflate {}

/// The condition on which a call stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCondition {
    /// If the input or the output space is used up, or the stream ends.
    Exhausted,
    /// Like [`Exhausted`](StopCondition::Exhausted), and also after each block.
    BlockEnd,
}

/// The position at which a call stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// Inside a block: the input or the output space is used up.
    Exhausted,
    /// After a block.
    BlockEnd {
        /// Whether it was the last block of the stream.
        last: bool,
    },
    /// After the last block. The remaining bits of the last byte are dropped.
    StreamEnd,
}

/// The result of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct InflateProgress {
    /// Number of input bytes consumed.
    pub(super) consumed: usize,
    /// Number of output bytes produced.
    pub(super) produced: usize,
    /// Number of bits of the last consumed byte that are not decoded yet.
    pub(super) unused_bits: u8,
    /// Where the call stopped.
    pub(super) stop: StopReason,
}

/// The data is not deflate data. Holds zlib's message.
#[derive(Debug)]
pub(super) struct InflateError(pub(super) String);

/// Maximum number of bytes that one call passes to zlib, which counts in 32 bits.
const CALL_MAX: usize = 1 << 30;

impl Inflate {
    /// Creates a stream at its start.
    pub(super) fn new() -> Self {
        let mut stream = Box::new(z::z_stream::default());
        let size = c_int::try_from(size_of::<z::z_stream>()).expect("z_stream is about a hundred bytes");
        // SAFETY: `stream` is a valid z_stream with the default allocator and no state; the version string is
        // static and the size is that of the type.
        let code = unsafe { z::inflateInit2_(&raw mut *stream, -15, z::zlibVersion(), size) };
        // The arguments are constants, so only a failed allocation is possible. It panics, as every other failed allocation
        // does.
        assert_eq!(code, z::Z_OK, "out of memory for an inflate stream");
        Self { stream }
    }

    /// Returns to the start of a stream. Keeps the memory.
    pub(super) fn reset(&mut self) {
        // SAFETY: the stream was initialised in `new`, and only `drop` ends it.
        let code = unsafe { z::inflateReset2(&raw mut *self.stream, -15) };
        assert_eq!(code, z::Z_OK, "the stream is initialised");
    }

    /// Sets the bytes before the current position that matches may refer to, at most 32 KiB.
    pub(super) fn set_history(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("history is at most 32 KiB");
        // SAFETY: the stream is initialised; pointer and length are those of a slice.
        let code = unsafe { z::inflateSetDictionary(&raw mut *self.stream, bytes.as_ptr(), len) };
        assert_eq!(code, z::Z_OK, "a raw stream accepts a dictionary at any time");
    }

    /// Inserts up to 8 bits before the next input byte. Must not be called more than twice between two decoding calls.
    pub(super) fn prime(&mut self, bits: u8, value: u8) {
        // SAFETY: the stream is initialised.
        let code = unsafe { z::inflatePrime(&raw mut *self.stream, c_int::from(bits), c_int::from(value)) };
        assert_eq!(code, z::Z_OK, "16 bits fit beside the unused bits of a byte");
    }

    /// Decodes `input` into `out`.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        stop_at: StopCondition,
    ) -> Result<InflateProgress, InflateError> {
        // SAFETY: `out` is valid for writes of its length.
        unsafe { self.call(input, out.as_mut_ptr(), out.len(), stop_at) }
    }

    /// Decodes `input` and appends at most `room` bytes to `out`.
    pub(super) fn append(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        room: usize,
        stop_at: StopCondition,
    ) -> Result<InflateProgress, InflateError> {
        out.reserve(room);
        let spare = &mut out.spare_capacity_mut()[..room];
        // SAFETY: `spare` is valid for writes of `room` bytes. inflate never reads output that it has not written.
        let progress = unsafe { self.call(input, spare.as_mut_ptr().cast(), room, stop_at) }?;
        assert!(progress.produced <= room);
        // SAFETY: inflate has just written `produced` bytes after the length, within the capacity.
        unsafe { out.set_len(out.len() + progress.produced) };
        Ok(progress)
    }

    /// # Safety
    ///
    /// `out` must not be null and must be valid for writes of `room` bytes.
    unsafe fn call(
        &mut self,
        input: &[u8],
        out: *mut u8,
        room: usize,
        stop_at: StopCondition,
    ) -> Result<InflateProgress, InflateError> {
        let flush = match stop_at {
            StopCondition::Exhausted => z::Z_NO_FLUSH,
            StopCondition::BlockEnd => z::Z_BLOCK,
        };
        let avail_in = u32::try_from(input.len().min(CALL_MAX)).expect("bounded above");
        let avail_out = u32::try_from(room.min(CALL_MAX)).expect("bounded above");
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = avail_in;
        self.stream.next_out = out;
        self.stream.avail_out = avail_out;
        // SAFETY: the stream is initialised; `next_in` is valid for reads of `avail_in` bytes and `next_out`
        // for writes of `avail_out` bytes (promised by the caller), and both outlive the call.
        let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
        let consumed = (avail_in - self.stream.avail_in) as usize;
        let produced = (avail_out - self.stream.avail_out) as usize;
        let state = self.stream.data_type;
        let stop = match code {
            z::Z_STREAM_END => StopReason::StreamEnd,
            // A "buffer error" only means no progress, which the caller sees from the counts.
            z::Z_OK | z::Z_BUF_ERROR if state & 128 != 0 => StopReason::BlockEnd { last: state & 64 != 0 },
            z::Z_OK | z::Z_BUF_ERROR => StopReason::Exhausted,
            _ => return Err(InflateError(self.message(code))),
        };
        let unused_bits = u8::try_from(state & 63).expect("masked");
        Ok(InflateProgress { consumed, produced, unused_bits, stop })
    }

    fn message(&self, code: c_int) -> String {
        if self.stream.msg.is_null() {
            return format!("zlib error {code}");
        }
        // SAFETY: zlib-rs sets `msg` to null or to one of its static, NUL-terminated strings.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_string_lossy().into_owned()
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised in `new` and is ended only here.
        unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}
