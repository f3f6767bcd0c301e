//! Reads a compressed tar at any position.
//!
//! The file is decoded once, front to back, as the blob of a layer is: this checks it and finds the positions at which decoding
//! can resume. So an archive needs no disk space for its decompressed form. Only what cannot be decoded from the middle (a
//! zstd frame of the whole archive, xz, bzip2) is written to a temporary file, compressed again in parts.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bzip2::bufread::MultiBzDecoder;
use lzma_rust2::XzReader;
use rustix::fs::{Mode, OFlags};

use super::ImportError;
use crate::layer::{Checkpoint, Codec, SpanDecoder, SpanLimits, decode_span};
use crate::os::ignore_poison;

/// Lengths of spans. Archives are mostly read front to back, so spans are longer than those of layers, and their checkpoints
/// take less memory.
const SPANS: SpanLimits = SpanLimits { target: 2 << 20, max: 5 << 19 };

/// Maximum memory for checkpoints, in bytes. Real archives need some 5 KiB for each span.
const CHECKPOINTS_MAX: usize = 256 << 20;

/// Most bytes of tar per byte of the file, for tars longer than [`RATIO_FROM`]. The files in an archive are images, whose layers
/// are compressed by a factor of three.
const RATIO_MAX: u64 = 200;
const RATIO_FROM: u64 = 1 << 30;

/// Maximum memory of the xz decoder, in KiB: the highest preset of `xz` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// Number of decoded spans in memory: one for each thread that loads a layer.
const CACHE: usize = 8;

/// zstd level of the temporary file: the fastest one.
const TEMPORARY_LEVEL: i32 = 1;

/// Bytes of the file that are read at once.
const READ: usize = 1 << 20;

/// A compressed tar.
#[derive(Debug)]
pub(super) struct CompressedTar {
    file: File,
    /// The parts that cannot be decoded from the file, one zstd frame each.
    temporary: Option<File>,
    spans: Vec<ArchiveSpan>,
    length: u64,
    /// Decoded spans by number, the last one used at the end.
    cache: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

#[derive(Debug)]
struct ArchiveSpan {
    /// Position in the tar.
    start: u64,
    length: usize,
    /// The bytes to decode, in the file or, without a checkpoint, in the temporary file.
    data: std::ops::Range<u64>,
    checkpoint: Option<Checkpoint>,
}

/// The compression of an archive as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveCompression {
    /// gzip or zstd, as in layers.
    OfLayers,
    /// xz, any number of streams.
    Xz,
    /// bzip2, any number of streams.
    Bzip2,
}

impl ArchiveCompression {
    /// Recognises the compression by the first bytes of a file; `None` if it is not compressed.
    pub(super) fn sniff(start: &[u8]) -> Option<Self> {
        match start {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::Bzip2),
            _ => (Codec::sniff(start) != Codec::Tar).then_some(Self::OfLayers),
        }
    }
}

impl CompressedTar {
    /// Decodes the whole file and verifies it.
    pub(super) fn open(file: File, compression: ArchiveCompression) -> Result<Self, ImportError> {
        let size = file.metadata().map_err(ImportError::Open)?.len();
        let reader = BufReader::with_capacity(READ, file.try_clone().map_err(ImportError::Open)?);
        let mut tar =
            Self { file, temporary: None, spans: Vec::new(), length: 0, cache: Mutex::new(VecDeque::new()) };
        let limit = size.saturating_mul(RATIO_MAX).max(RATIO_FROM);
        match compression {
            ArchiveCompression::OfLayers => tar.add_spans(reader, limit)?,
            ArchiveCompression::Xz => {
                let decoder = XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB);
                tar.copy("xz", decoder, limit)?;
            }
            ArchiveCompression::Bzip2 => tar.copy("bzip2", MultiBzDecoder::new(reader), limit)?,
        }
        Ok(tar)
    }

    /// Finds the positions at which decoding can resume.
    fn add_spans(&mut self, reader: BufReader<File>, limit: u64) -> Result<(), ImportError> {
        let mut decoder = SpanDecoder::new(reader, SPANS).map_err(ImportError::Compression)?;
        let mut checkpoints = 0;
        while let Some(span) = decoder.next_span().map_err(ImportError::Compression)? {
            if let Some(Checkpoint::Deflate { window, .. }) = &span.checkpoint {
                checkpoints += window.bytes.len() + size_of_val(&*window.runs);
            }
            if checkpoints > CHECKPOINTS_MAX {
                return Err(ImportError::Checkpoints);
            }
            let data = match span.checkpoint {
                Some(_) => span.blob,
                None => self.append(&span.bytes)?,
            };
            self.add(data, span.bytes.len(), span.checkpoint, limit)?;
            decoder.recycle(span.bytes);
        }
        Ok(())
    }

    /// Copies the decoded bytes to the temporary file.
    fn copy(&mut self, program: &'static str, mut decoder: impl Read, limit: u64) -> Result<(), ImportError> {
        loop {
            let mut part = Vec::with_capacity(SPANS.target);
            let read = decoder.by_ref().take(SPANS.target as u64).read_to_end(&mut part);
            read.map_err(|source| ImportError::Decompression { program, source })?;
            if part.is_empty() {
                return Ok(());
            }
            let data = self.append(&part)?;
            self.add(data, part.len(), None, limit)?;
        }
    }

    fn add(
        &mut self,
        data: std::ops::Range<u64>,
        length: usize,
        checkpoint: Option<Checkpoint>,
        limit: u64,
    ) -> Result<(), ImportError> {
        self.spans.push(ArchiveSpan { start: self.length, length, data, checkpoint });
        self.length += length as u64;
        if self.length > limit { Err(ImportError::Bomb { ratio: RATIO_MAX }) } else { Ok(()) }
    }

    /// Writes a part of the tar to the temporary file, and returns its range there.
    fn append(&mut self, bytes: &[u8]) -> Result<std::ops::Range<u64>, ImportError> {
        let directory = temporary_directory();
        let failed = |source| ImportError::Temporary { directory: directory.clone(), source };
        let file = match &mut self.temporary {
            Some(file) => file,
            none => none.insert(temporary_file(&directory).map_err(failed)?),
        };
        let frame = zstd::bulk::compress(bytes, TEMPORARY_LEVEL).map_err(failed)?;
        let start = file.stream_position().map_err(failed)?;
        file.write_all(&frame).map_err(failed)?;
        Ok(start..start + frame.len() as u64)
    }

    /// The length of the tar in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads bytes at a position of the tar: some if there are any, none at its end.
    pub(super) fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        let number = self.spans.partition_point(|span| span.start <= position);
        let Some(number) = number.checked_sub(1) else { return Ok(0) };
        let span = &self.spans[number];
        let offset = usize::try_from(position - span.start).unwrap_or(usize::MAX);
        if offset >= span.length {
            return Ok(0);
        }
        let bytes = self.decoded(number)?;
        let mut rest = &bytes[offset..];
        rest.read(out)
    }

    fn decoded(&self, number: usize) -> io::Result<Arc<Vec<u8>>> {
        let mut cache = ignore_poison(self.cache.lock());
        if let Some(at) = cache.iter().position(|(other, _)| *other == number)
            && let Some(found) = cache.remove(at)
        {
            let bytes = Arc::clone(&found.1);
            cache.push_back(found);
            return Ok(bytes);
        }
        // Other threads decode their spans meanwhile.
        drop(cache);
        let bytes = Arc::new(self.decode(&self.spans[number])?);
        let mut cache = ignore_poison(self.cache.lock());
        if cache.len() >= CACHE {
            cache.pop_front();
        }
        cache.push_back((number, Arc::clone(&bytes)));
        Ok(bytes)
    }

    fn decode(&self, span: &ArchiveSpan) -> io::Result<Vec<u8>> {
        let Some(checkpoint) = &span.checkpoint else {
            let file = self.temporary.as_ref().ok_or_else(|| io::Error::other("no temporary file"))?;
            return zstd::bulk::decompress(&read_range(file, &span.data)?, span.length);
        };
        let header = match checkpoint {
            Checkpoint::Deflate { block: Some(block), .. } => read_range(&self.file, &block.bytes())?,
            _ => Vec::new(),
        };
        let mut bytes = vec![0; span.length];
        decode_span(checkpoint, &header, &read_range(&self.file, &span.data)?, &mut bytes)
            .map_err(io::Error::other)?;
        Ok(bytes)
    }
}

fn read_range(file: &File, range: &std::ops::Range<u64>) -> io::Result<Vec<u8>> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// The directory for temporary files that may be large: `/tmp` is often in memory.
fn temporary_directory() -> PathBuf {
    std::env::var_os("TMPDIR")
        .filter(|path| !path.is_empty())
        .map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// Makes a file without a name, which disappears with its last descriptor.
fn temporary_file(directory: &std::path::Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn open(bytes: &[u8]) -> Result<CompressedTar, ImportError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        CompressedTar::open(file, ArchiveCompression::sniff(bytes).unwrap())
    }

    /// Bytes that compress to about a third.
    fn tar() -> Vec<u8> {
        let mut state = 7u32;
        let mut bytes = Vec::new();
        while bytes.len() < 9 << 20 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(format!("line {:03}\n", (state >> 20) % 500).as_bytes());
        }
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The output of a program that compresses.
    fn by_program(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let output = std::process::Command::new(program).arg("-1c").stdin(file).output().unwrap();
        assert!(output.status.success(), "{program}");
        output.stdout
    }

    #[test]
    fn every_position_of_a_compressed_tar_can_be_read() {
        let tar = tar();
        let frames: Vec<u8> =
            tar.chunks(700_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
        let (first, second) = tar.split_at(3_000_000);
        for blob in [
            gzip(&tar),
            [gzip(first), gzip(second), vec![0; 512]].concat(),
            zstd::bulk::compress(&tar, 3).unwrap(),
            frames,
            by_program("xz", &tar),
            by_program("bzip2", &tar),
            [by_program("bzip2", first), by_program("bzip2", second)].concat(),
            [by_program("xz", first), by_program("xz", second)].concat(),
        ] {
            let archive = open(&blob).unwrap();
            assert_eq!(archive.length(), tar.len() as u64);
            for position in (0..tar.len()).step_by(777_777).chain([tar.len() - 1, 5]) {
                let mut out = vec![0; 3000];
                let length = archive.read_at(&mut out, position as u64).unwrap();
                assert!(length > 0 && out[..length] == tar[position..position + length], "{position}");
            }
            assert_eq!(archive.read_at(&mut [0; 9], tar.len() as u64).unwrap(), 0);
        }
    }

    #[test]
    fn truncated_or_damaged_file_is_an_error() {
        let blob = gzip(&tar());
        let mut flipped = blob.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 4;
        for program in ["xz", "bzip2"] {
            let blob = by_program(program, &tar()[..100_000]);
            for length in [7, blob.len() / 2, blob.len() - 1] {
                let error = open(&blob[..length]).map(|_| ()).unwrap_err();
                assert!(matches!(error, ImportError::Decompression { .. }), "{program} {length}: {error}");
            }
        }
        for bad in [&blob[..blob.len() - 1], &blob[..middle], &flipped, &[&blob[..], b"garbage"].concat()] {
            assert!(matches!(open(bad), Err(ImportError::Compression(_))), "{:?}", open(bad).map(|_| ()));
        }
    }

    #[test]
    fn file_that_expands_beyond_the_ratio_is_refused() {
        // A gigabyte of zeros compresses to a megabyte with gzip, and so twice to a kilobyte with zstd.
        let zeros = vec![0; 64 << 20];
        let bomb: Vec<u8> = zstd::bulk::compress(&zeros, 1).unwrap().repeat(17);
        assert!(matches!(open(&bomb), Err(ImportError::Bomb { .. })));
        assert!(open(&zstd::bulk::compress(&zeros, 1).unwrap().repeat(16)).is_ok());
    }
}
