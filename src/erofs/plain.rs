//! Writes a layer's device to a file, a *plain layer*: the kernel reads it without the daemon.

use std::io;
use std::os::unix::fs::FileExt;

use super::device::{DevicePart, LayerDevice};
use super::format::{BLOCK, HOLE};
use super::plain_file::{DeviceChecksum, trailer};
use crate::index::{EntryId, Index, Layer, Piece, ReadError};
use crate::layer::TarOffset;

/// The longest device: block addresses have 32 bits, and the last one means a hole.
const DEVICE_MAX: u64 = (HOLE as u64 - 1) * BLOCK;
/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// The reason why a plain layer cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PlainLayerError {
    /// The layer cannot be decoded.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file cannot be written.
    #[error("cannot write the plain layer")]
    Write(#[from] io::Error),
    /// The kernel cannot use a device of this length.
    #[error("its device takes {bytes} bytes, but EROFS has devices of at most {DEVICE_MAX} bytes")]
    TooLarge {
        /// The length of the device.
        bytes: u64,
    },
}

impl PlainLayerError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> crate::error::ErrorCode {
        match self {
            Self::Read(error) => error.code(),
            Self::Write(error) => crate::error::ErrorCode::of_io(error),
            Self::TooLarge { .. } => crate::error::ErrorCode::UnsupportedImage,
        }
    }
}

/// Writes a plain layer while its tar is decoded: first the whole tar in order ([`PlainWriter::append`]), then all else, for which
/// it needs the index ([`PlainWriter::finish`]).
///
/// Writes to an empty file and never twice to the same place, so holes stay holes.
#[derive(Debug, Default)]
pub struct PlainWriter {
    /// The bytes of the device so far.
    at: u64,
    checksum: DeviceChecksum,
}

impl PlainWriter {
    /// Starts with the first byte of the tar.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the next bytes of the tar.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, bytes: &[u8], out: &impl FileExt) -> io::Result<()> {
        self.checksum.bytes(bytes);
        out.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Expands the sparse files, whose bytes it reads back from the tar, and writes the trailer.
    ///
    /// # Errors
    /// The file cannot be read or written, or does not have the whole tar, or the device is too large.
    pub fn finish<D: AsRef<[u8]>>(
        mut self,
        index: &Index<D>,
        device: &LayerDevice,
        out: &impl FileExt,
    ) -> Result<(), PlainLayerError> {
        check_size(device)?;
        if self.at != index.tar_size() {
            let text = format!("{} bytes of the tar were written instead of {}", self.at, index.tar_size());
            return Err(io::Error::other(text).into());
        }
        for part in device.parts(self.at, u64::MAX) {
            match part {
                DevicePart::File { entry, from, len } => self.expand(index, entry, from, len, out)?,
                DevicePart::Padding { len } | DevicePart::Tar { len, .. } => self.skip(len),
            }
        }
        Ok(out.write_all_at(&trailer(index.layer(), device.size(), &self.checksum), device.size())?)
    }

    /// Writes a range of a file with its holes.
    fn expand<D: AsRef<[u8]>>(
        &mut self,
        index: &Index<D>,
        entry: EntryId,
        from: u64,
        len: u64,
        out: &impl FileExt,
    ) -> io::Result<()> {
        for piece in index.pieces_from(entry, from, len) {
            match piece {
                Piece::Hole { len } => self.skip(len),
                Piece::Data { tar, len } => self.copy(tar, len, out)?,
            }
        }
        Ok(())
    }

    fn copy(&mut self, tar: TarOffset, len: u64, out: &impl FileExt) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(len.min(STEP)).unwrap_or(0)];
        let mut copied = 0;
        while copied < len {
            let step = usize::try_from((len - copied).min(STEP)).unwrap_or(0);
            let bytes = &mut buffer[..step];
            out.read_exact_at(bytes, tar.get() + copied)?;
            self.append(bytes, out)?;
            copied += step as u64;
        }
        Ok(())
    }

    fn skip(&mut self, len: u64) {
        self.checksum.zeros(len);
        self.at += len;
    }
}

fn check_size(device: &LayerDevice) -> Result<(), PlainLayerError> {
    match device.size() {
        bytes if bytes > DEVICE_MAX => Err(PlainLayerError::TooLarge { bytes }),
        _ => Ok(()),
    }
}

/// Writes the device of a layer and its trailer to `out`, an empty file.
///
/// # Errors
/// The layer cannot be decoded, or `out` cannot be written. `out` then has an undefined part of the content.
pub fn write_plain<D: AsRef<[u8]>>(
    layer: &Layer<D>,
    device: &LayerDevice,
    out: &impl FileExt,
) -> Result<(), PlainLayerError> {
    // First, because the rest decodes the layer.
    check_size(device)?;
    let index = layer.index();
    let mut writer = PlainWriter::new();
    for span in index.spans() {
        writer.append(&layer.decode_span(span)?, out)?;
    }
    writer.finish(index, device, out)
}
