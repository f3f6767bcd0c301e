//! Builds the index of a layer in one pass over its blob.
//!
//! The blob is decoded span by span. The bytes of each span go to the tar walk, the CRC and the hash of the diff ID (in its own
//! thread), and are then dropped. Memory grows with the number of entries, and with the size budget of the windows ([`thin`]).

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use sha2::Digest as _;

use super::limits::TarLimit;
use super::tables::Tables;
use super::thin::{SpanDraft, thin};
use crate::error::ErrorCode;
use crate::image::{DiffId, Digest};
use crate::layer::{
    BlobOffset, Codec, LayerError, MemberName, Printable, SpanDecoder, SpanLimits, TarEntry, TarError,
    TarOffset, TarWalk,
};

/// Size of the windows in memory, in bytes, at which thinning starts before the end of the blob.
const WINDOWS_IN_MEMORY: u64 = 64 << 20;
/// zstd level of the seekable file: fast to compress, and as fast to decode as any other level.
const SEEKABLE_LEVEL: i32 = 3;
/// Maximum number of spans in the queue to the hash thread.
const HASH_QUEUE: usize = 4;

/// The reason why a layer cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The blob cannot be decoded.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The tar is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The seekable file cannot be written.
    #[error("cannot write the seekable file of the layer")]
    Seekable(#[source] io::Error),
    /// The tar is longer than the limit for any layer, or for a blob of this size.
    #[error("tar is longer than {limit}, at byte {at} of the blob")]
    TooLong {
        /// The limit.
        limit: TarLimit,
        /// The offset in the blob at which the tar exceeds the limit.
        at: BlobOffset,
    },
    /// An entry exceeds a limit of the index format.
    #[error("entry `{}` at offset {offset} of the tar: {quantity} exceeds the limit of an index", Printable(.path))]
    TooLarge {
        /// The offset of the entry's header.
        offset: TarOffset,
        /// The path of the entry; for a marker, the path that it hides.
        path: Box<[u8]>,
        /// The quantity that exceeds its limit.
        quantity: &'static str,
    },
    /// The blob cannot be read again after it was decoded.
    #[error("cannot read the blob again to hash its spans")]
    Blob(#[source] io::Error),
    /// The new index is not valid: a bug in this program, or a faulty disk.
    #[error("the new index is not valid")]
    Unusable(#[source] super::IndexError),
    /// The windows of the checkpoints cannot be compressed.
    #[error("cannot compress the checkpoints")]
    Windows(#[source] io::Error),
}

impl BuildError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Layer(source) => source.code(),
            Self::Tar(source) => source.code(),
            Self::TooLong { .. } | Self::TooLarge { .. } => ErrorCode::LayerLimit,
            Self::Seekable(_) | Self::Blob(_) => ErrorCode::Io,
            Self::Unusable(source) => source.code(),
            Self::Windows(_) => ErrorCode::Internal,
        }
    }
}

/// Options for building an index.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions {
    /// The length of spans before thinning.
    pub limits: SpanLimits,
    /// Whether checkpoints are dropped to meet the size budget. Some tests keep them all.
    pub thin: bool,
    /// The longest tar that is accepted.
    pub tar_limit: TarLimit,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { limits: SpanLimits::PRODUCTION, thin: true, tar_limit: TarLimit::default() }
    }
}

/// An index that lacks only the digest of its blob and the hashes of its spans; see [`BuiltIndex::finish`].
#[derive(Debug)]
pub struct BuiltIndex {
    pub(super) codec: Codec,
    pub(super) diff_id: DiffId,
    pub(super) blob_size: u64,
    pub(super) tar_size: u64,
    pub(super) seekable_size: u64,
    pub(super) drafts: Vec<SpanDraft>,
    pub(super) tables: Tables,
    pub(super) thin: bool,
}

/// Reads the blob of a layer to its end and builds the index.
///
/// `seekable` opens the seekable file, for content that cannot be decoded from the blob in pieces. It is called at the first
/// such frame. The writer is returned with the index; the caller commits it.
///
/// # Errors
/// The layer is malformed or too large, or `input` or the seekable file fails.
pub fn build<R: BufRead, W: Write>(
    input: R,
    options: &BuildOptions,
    seekable: impl FnOnce() -> io::Result<W>,
) -> Result<(BuiltIndex, Option<W>), BuildError> {
    build_and_pass_on(input, options, seekable, |_| ())
}

/// Does the same, and passes the bytes of the tar on to `tar` in the thread that hashes them.
///
/// # Errors
/// As [`build`]. `tar` has then received a part of the tar.
pub fn build_and_pass_on<R: BufRead, W: Write>(
    input: R,
    options: &BuildOptions,
    seekable: impl FnOnce() -> io::Result<W>,
    mut tar: impl FnMut(&[u8]) + Send,
) -> Result<(BuiltIndex, Option<W>), BuildError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Arc<Vec<u8>>>(HASH_QUEUE);
        let hash = scope.spawn(move || {
            let mut sha256 = sha2::Sha256::new();
            for bytes in receiver {
                sha256.update(bytes.as_slice());
                tar(&bytes);
            }
            Digest::new(sha256.finalize().into())
        });
        let decoder = SpanDecoder::new(CountingReader { input, count: 0 }, options.limits)?;
        let mut stream = SpanStream {
            decoder,
            options: *options,
            current: Arc::default(),
            retired: VecDeque::new(),
            at: 0,
            drafts: Vec::new(),
            windows: 0,
            tar_end: 0,
            seekable_end: 0,
            open_seekable: Some(seekable),
            seekable: None,
            hash: sender,
            failed: None,
        };
        let mut tables = Tables::default();
        let walk_result = walk(&mut stream, &mut tables);
        if let Some(error) = stream.failed.take() {
            return Err(error);
        }
        walk_result?;
        let SpanStream { decoder, drafts, tar_end, seekable_end, mut seekable, hash: sender, .. } = stream;
        drop(sender);
        let diff_id = DiffId::new(hash.join().expect("hashing does not panic"));
        if let Some(writer) = &mut seekable {
            writer.flush().map_err(BuildError::Seekable)?;
        }
        tables.close();
        let codec = decoder.codec();
        let built = BuiltIndex {
            codec,
            diff_id,
            blob_size: decoder.into_inner().count,
            tar_size: tar_end,
            seekable_size: seekable_end,
            drafts,
            tables,
            thin: options.thin,
        };
        Ok((built, seekable))
    })
}

fn walk<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>>(
    stream: &mut SpanStream<R, W, F>,
    tables: &mut Tables,
) -> Result<(), BuildError> {
    let mut walk = TarWalk::new(&mut *stream);
    while let Some(entry) = walk.next_entry()? {
        tables.add(&entry).map_err(|quantity| too_large(&entry, quantity))?;
    }
    // Content after the end-of-archive blocks is ignored, but belongs to the blob and to the diff ID.
    while stream.fill()? {
        stream.at = stream.current.len();
    }
    Ok(())
}

fn too_large(entry: &TarEntry, quantity: &'static str) -> BuildError {
    let path = match &entry.member {
        MemberName::Plain(path)
        | MemberName::Hidden(path)
        | MemberName::Whiteout(path)
        | MemberName::Opaque(path) => path.as_bytes(),
        MemberName::Dropped => b"",
    };
    BuildError::TooLarge { offset: entry.offset, path: path.into(), quantity }
}

/// Counts the bytes that are read from the blob.
#[derive(Debug)]
struct CountingReader<R> {
    input: R,
    count: u64,
}

impl<R: BufRead> Read for CountingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(out)?;
        self.count += length as u64;
        Ok(length)
    }
}

impl<R: BufRead> BufRead for CountingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.input.consume(amount);
    }
}

/// The tar as a stream. Reading from it decodes the blob and records the spans.
struct SpanStream<R: BufRead, W, F> {
    decoder: SpanDecoder<CountingReader<R>>,
    options: BuildOptions,
    current: Arc<Vec<u8>>,
    /// Spans that the hash thread may still read.
    retired: VecDeque<Arc<Vec<u8>>>,
    at: usize,
    drafts: Vec<SpanDraft>,
    windows: u64,
    tar_end: u64,
    seekable_end: u64,
    open_seekable: Option<F>,
    seekable: Option<W>,
    hash: SyncSender<Arc<Vec<u8>>>,
    /// The error behind the plain I/O error that the tar walk sees.
    failed: Option<BuildError>,
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> SpanStream<R, W, F> {
    /// Decodes the next span if the current one is used up. Returns false at the end of the tar.
    fn fill(&mut self) -> Result<bool, BuildError> {
        if self.at < self.current.len() {
            return Ok(true);
        }
        let Some(span) = self.decoder.next_span()? else { return Ok(false) };
        // Check first, so that memory and the seekable file stay within the limit.
        if self.tar_end + span.bytes.len() as u64 > self.options.tar_limit.bytes() {
            let (limit, at) = (self.options.tar_limit, self.decoder.blob_offset());
            return Err(BuildError::TooLong { limit, at });
        }
        let seekable = match span.checkpoint {
            Some(_) => 0..0,
            None => self.write_seekable(&span.bytes).map_err(BuildError::Seekable)?,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&span.bytes);
        let tar_len = span.bytes.len() as u64;
        let draft = SpanDraft {
            tar: self.tar_end,
            tar_len,
            blob: span.blob,
            seekable,
            continues_frame: span.continues_frame,
            crc,
            checkpoint: span.checkpoint,
        };
        self.tar_end += tar_len;
        self.windows += draft.cost();
        self.drafts.push(draft);
        if self.options.thin && self.windows > WINDOWS_IN_MEMORY {
            self.drafts = thin(std::mem::take(&mut self.drafts), WINDOWS_IN_MEMORY / 2);
            self.windows = self.drafts.iter().map(SpanDraft::cost).sum();
        }
        self.retired.push_back(std::mem::replace(&mut self.current, Arc::new(span.bytes)));
        if self.retired.len() > HASH_QUEUE + 1
            && let Some(bytes) = self.retired.pop_front().and_then(Arc::into_inner)
        {
            self.decoder.recycle(bytes);
        }
        self.at = 0;
        // The receiver lives until this sender is dropped.
        let _ = self.hash.send(Arc::clone(&self.current));
        Ok(true)
    }

    /// Writes a span to the seekable file, and returns its range there.
    fn write_seekable(&mut self, bytes: &[u8]) -> io::Result<std::ops::Range<u64>> {
        if let Some(open) = self.open_seekable.take() {
            self.seekable = Some(open()?);
        }
        let writer =
            self.seekable.as_mut().ok_or_else(|| io::Error::other("the seekable file is not open"))?;
        let frame = zstd::bulk::compress(bytes, SEEKABLE_LEVEL)?;
        writer.write_all(&frame)?;
        let start = self.seekable_end;
        self.seekable_end += frame.len() as u64;
        Ok(start..self.seekable_end)
    }
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> Read for SpanStream<R, W, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> BufRead for SpanStream<R, W, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.fill() {
            Ok(_) => Ok(&self.current[self.at..]),
            Err(error) => {
                let message = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(message))
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}
