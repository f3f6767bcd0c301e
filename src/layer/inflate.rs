//! Raw deflate decoding: the one place that calls zlib-rs, behind a safe type.
#![expect(unsafe_code, reason = "zlib-rs offers block boundaries and priming through its C interface only")]

use std::ffi::{CStr, c_int};

use libz_rs_sys as z;

/// A raw inflate stream (no zlib or gzip wrapper).
pub(super) struct Inflate {
    stream: Box<z::z_stream>,
}

// SAFETY: the stream owns all that it points to (its state, made by `inflateInit2_` with the default
// allocator); `next_in` and `next_out` are set anew before each use, and nothing in it belongs to a thread.
unsafe impl Send for Inflate {}

/// How far one call may decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until input or room is used up, or the stream ends.
    Exhausted,
    /// The same, but also stop behind each block.
    BlockEnd,
}

/// Where a call stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somewhere in a block, for want of input or room.
    Inside,
    /// Behind a block.
    BlockEnd {
        /// Whether it was the stream's last.
        last: bool,
    },
    /// Behind the last block; the last byte's other bits are dropped.
    StreamEnd,
}

/// What a call did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Input bytes taken.
    pub(super) consumed: usize,
    /// Output bytes made.
    pub(super) produced: usize,
    /// Bits of the last byte taken that were not used yet.
    pub(super) unused_bits: u8,
    /// Where it stopped.
    pub(super) stop: Stop,
}

/// Why data is not deflate data, in zlib's words.
#[derive(Debug)]
pub(super) struct NotDeflate(pub(super) String);

/// zlib counts what it is given in 32 bits.
const MOST_AT_ONCE: usize = 1 << 30;

impl Inflate {
    /// A stream at its start.
    pub(super) fn new() -> Self {
        let mut stream = Box::new(z::z_stream::default());
        let size = c_int::try_from(size_of::<z::z_stream>()).expect("z_stream is about a hundred bytes");
        // SAFETY: `stream` is a valid z_stream with the default allocator and no state; the version string is
        // static and the size is that of the type.
        let code = unsafe { z::inflateInit2_(&raw mut *stream, -15, z::zlibVersion(), size) };
        // The arguments are constants, so that want of memory is what is left, as for any other allocation.
        assert_eq!(code, z::Z_OK, "memory for an inflate stream");
        Self { stream }
    }

    /// Goes back to the start of a stream, and keeps the memory.
    pub(super) fn reset(&mut self) {
        // SAFETY: the stream was initialised in `new`, and nothing but `drop` ends it.
        let code = unsafe { z::inflateReset2(&raw mut *self.stream, -15) };
        assert_eq!(code, z::Z_OK, "the stream is initialised");
    }

    /// Gives the bytes before the stream's position, at most 32 KiB, that may be referred to.
    pub(super) fn set_history(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("history is at most 32 KiB");
        // SAFETY: the stream is initialised; pointer and length are those of a slice.
        let code = unsafe { z::inflateSetDictionary(&raw mut *self.stream, bytes.as_ptr(), len) };
        assert_eq!(code, z::Z_OK, "a raw stream takes a dictionary at any time");
    }

    /// Puts up to 8 bits in front of the next input byte. Not more than twice between two calls that decode.
    pub(super) fn prime(&mut self, bits: u8, value: u8) {
        // SAFETY: the stream is initialised.
        let code = unsafe { z::inflatePrime(&raw mut *self.stream, c_int::from(bits), c_int::from(value)) };
        assert_eq!(code, z::Z_OK, "16 bits fit beside what a byte leaves over");
    }

    /// Decodes into `out`.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        until: Until,
    ) -> Result<Progress, NotDeflate> {
        // SAFETY: `out` is valid for writes of its length.
        unsafe { self.call(input, out.as_mut_ptr(), out.len(), until) }
    }

    /// Decodes up to `room` bytes to the end of `out`.
    pub(super) fn append(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        room: usize,
        until: Until,
    ) -> Result<Progress, NotDeflate> {
        out.reserve(room);
        let spare = &mut out.spare_capacity_mut()[..room];
        // SAFETY: `spare` is valid for writes of `room` bytes; inflate does not read what it has not written.
        let progress = unsafe { self.call(input, spare.as_mut_ptr().cast(), room, until) }?;
        assert!(progress.produced <= room);
        // SAFETY: `produced` bytes behind the length were written just now, within the capacity.
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
        until: Until,
    ) -> Result<Progress, NotDeflate> {
        let flush = match until {
            Until::Exhausted => z::Z_NO_FLUSH,
            Until::BlockEnd => z::Z_BLOCK,
        };
        let given = u32::try_from(input.len().min(MOST_AT_ONCE)).expect("bounded above");
        let offered = u32::try_from(room.min(MOST_AT_ONCE)).expect("bounded above");
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given;
        self.stream.next_out = out;
        self.stream.avail_out = offered;
        // SAFETY: the stream is initialised; `next_in` is valid for reads of `avail_in` bytes and `next_out`
        // for writes of `avail_out` bytes (by the caller), and both outlive the call.
        let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
        let consumed = (given - self.stream.avail_in) as usize;
        let produced = (offered - self.stream.avail_out) as usize;
        let state = self.stream.data_type;
        let stop = match code {
            z::Z_STREAM_END => Stop::StreamEnd,
            // A "buffer error" only says that nothing could be done; the caller sees that from the numbers.
            z::Z_OK | z::Z_BUF_ERROR if state & 128 != 0 => Stop::BlockEnd { last: state & 64 != 0 },
            z::Z_OK | z::Z_BUF_ERROR => Stop::Inside,
            _ => return Err(NotDeflate(self.message(code))),
        };
        let unused_bits = u8::try_from(state & 63).expect("masked");
        Ok(Progress { consumed, produced, unused_bits, stop })
    }

    fn message(&self, code: c_int) -> String {
        if self.stream.msg.is_null() {
            return format!("zlib error {code}");
        }
        // SAFETY: zlib-rs sets `msg` to null or to one of its static strings, which end in NUL.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_string_lossy().into_owned()
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised in `new` and is ended here only.
        unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}
