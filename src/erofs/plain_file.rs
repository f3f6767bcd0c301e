//! A plain layer in a file: the bytes of a layer's device, sealed with one more block, the trailer.
//!
//! The kernel reads the device and knows nothing of the trailer. No checksum is compared at a read, as it is for a span of a lazy
//! layer: so whoever opens the file for the kernel checks the trailer and the length, and `verify` also the content.
//!
//! ```text
//! 0    magic                  8 bytes
//! 8    version                u32, little-endian as all numbers
//! 12   CRC-32 of the device   u32
//! 16   length of the device   u64
//! 24   digest of the layer    32 bytes
//! 56   zero
//! 508  CRC-32 of the trailer before this number
//! ```
//!
//! CRC-32 because the checksum of a hole then takes no time, however long the hole is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::format::BLOCK;
use crate::image::LayerDigest;

/// The version of plain layers. Changes whenever a layer has another device, so that plain layers are made anew.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"rcxplain";
#[expect(clippy::cast_possible_truncation, reason = "512")]
const TRAILER_LEN: usize = BLOCK as usize;
/// Where the checksum of the trailer is.
const SEAL: usize = TRAILER_LEN - 4;
/// Bytes read at once while a checksum is computed.
const STEP: usize = 1 << 18;

/// The checksum of the bytes of a device.
#[derive(Debug, Default)]
pub(super) struct DeviceChecksum {
    crc: crc32fast::Hasher,
}

impl DeviceChecksum {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    /// The same as [`DeviceChecksum::bytes`] with this many zero bytes, in a time that hardly depends on their number.
    pub(super) fn zeros(&mut self, len: u64) {
        const ZEROS: [u8; 1 << 12] = [0; 1 << 12];
        let mut run = crc32fast::Hasher::new();
        run.update(&ZEROS);
        // The run of zeros doubles in each step.
        let mut blocks = len / ZEROS.len() as u64;
        while blocks > 0 {
            if blocks & 1 == 1 {
                self.crc.combine(&run);
            }
            blocks >>= 1;
            if blocks > 0 {
                let half = run.clone();
                run.combine(&half);
            }
        }
        let rest = usize::try_from(len % ZEROS.len() as u64).unwrap_or(0);
        self.crc.update(&ZEROS[..rest]);
    }

    fn value(&self) -> u32 {
        self.crc.clone().finalize()
    }
}

/// The trailer of a layer's device.
pub(super) fn trailer(layer: &LayerDigest, size: u64, checksum: &DeviceChecksum) -> [u8; TRAILER_LEN] {
    let mut trailer = [0; TRAILER_LEN];
    trailer[..8].copy_from_slice(&MAGIC);
    trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
    trailer[12..16].copy_from_slice(&checksum.value().to_le_bytes());
    trailer[16..24].copy_from_slice(&size.to_le_bytes());
    trailer[24..56].copy_from_slice(layer.digest().as_bytes());
    let seal = crc32fast::hash(&trailer[..SEAL]);
    trailer[SEAL..].copy_from_slice(&seal.to_le_bytes());
    trailer
}

/// The reason why a file cannot be used as a plain layer. It is made anew.
#[derive(Debug, thiserror::Error)]
pub enum PlainFileFault {
    /// The file has no trailer, or the trailer does not have its checksum.
    #[error("it has no valid trailer: it is truncated or damaged")]
    Trailer,
    /// Another version of this program made it.
    #[error("it has format version {found}, not {supported}")]
    Version {
        /// The version of the file.
        found: u32,
        /// The version of this program.
        supported: u32,
    },
    /// The file is that of another layer.
    #[error("it has the content of another layer")]
    OtherLayer,
    /// The file is truncated or too long.
    #[error("it has {actual} bytes instead of {declared}")]
    Length {
        /// The length of the file in bytes.
        actual: u64,
        /// The length according to the trailer.
        declared: u64,
    },
    /// The content does not have its checksum.
    #[error("its content is damaged")]
    Content,
    /// The file cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// A plain layer whose trailer fits.
#[derive(Debug)]
pub struct PlainFile {
    file: File,
    device_size: u64,
    checksum: u32,
}

impl PlainFile {
    /// Opens the plain layer of `layer`. Checks its trailer and its length, but not its content: see [`PlainFile::verify`].
    ///
    /// # Errors
    /// The file is no plain layer of this version and this layer, or is not complete.
    pub fn open(file: File, layer: &LayerDigest) -> Result<Self, PlainFileFault> {
        let actual = file.metadata()?.len();
        let start = actual.checked_sub(BLOCK).ok_or(PlainFileFault::Trailer)?;
        let mut trailer = [0; TRAILER_LEN];
        file.read_exact_at(&mut trailer, start)?;
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&trailer[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&trailer[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        if trailer[..8] != MAGIC || word(SEAL) != crc32fast::hash(&trailer[..SEAL]) {
            return Err(PlainFileFault::Trailer);
        }
        if word(8) != VERSION {
            return Err(PlainFileFault::Version { found: word(8), supported: VERSION });
        }
        if trailer[24..56] != *layer.digest().as_bytes() {
            return Err(PlainFileFault::OtherLayer);
        }
        let device_size = long(16);
        if start != device_size {
            return Err(PlainFileFault::Length { actual, declared: device_size.saturating_add(BLOCK) });
        }
        Ok(Self { file, device_size, checksum: word(12) })
    }

    /// Compares the content with the checksum in the trailer. Does not read holes.
    ///
    /// # Errors
    /// The content differs, or cannot be read.
    pub fn verify(&self) -> Result<(), PlainFileFault> {
        let mut checksum = DeviceChecksum::default();
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        while at < self.device_size {
            let data = self.next(SeekFrom::Data(at))?;
            checksum.zeros(data - at);
            at = data;
            let hole = self.next(SeekFrom::Hole(at))?;
            while at < hole {
                let len = usize::try_from(hole - at).map_or(STEP, |left| left.min(STEP));
                self.file.read_exact_at(&mut buffer[..len], at)?;
                checksum.bytes(&buffer[..len]);
                at += len as u64;
            }
        }
        if checksum.value() == self.checksum { Ok(()) } else { Err(PlainFileFault::Content) }
    }

    /// The next data or the next hole, or the end of the device.
    fn next(&self, from: SeekFrom) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, from) {
            Ok(offset) => Ok(offset.min(self.device_size)),
            // No data is left.
            Err(Errno::NXIO) => Ok(self.device_size),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The length of the device in bytes.
    #[must_use]
    pub fn device_size(&self) -> u64 {
        self.device_size
    }

    /// The file, whose first [`PlainFile::device_size`] bytes are the device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same, taken out.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_hole_is_that_of_its_zero_bytes() {
        for len in [0, 1, 511, 4095, 4096, 4097, 12_288, 1 << 20, (5 << 20) + 77] {
            let (mut hole, mut bytes) = (DeviceChecksum::default(), DeviceChecksum::default());
            hole.bytes(b"before");
            hole.zeros(len);
            hole.bytes(b"after");
            bytes.bytes(b"before");
            bytes.bytes(&vec![0; usize::try_from(len).unwrap()]);
            bytes.bytes(b"after");
            assert_eq!(hole.value(), bytes.value(), "{len}");
        }
    }
}
