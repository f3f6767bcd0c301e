//! A tree image in a file, sealed with a header in the 1024 bytes that the format leaves unused.
//!
//! The kernel mounts only images that this program has made. The header says which version of it, and has a checksum, so that a
//! damaged or outdated image is found before the kernel sees it:
//!
//! ```text
//! 0   magic                  8 bytes
//! 8   version                u32, little-endian as all numbers
//! 12  zero                   u32
//! 16  length of the image    u64
//! 24  XXH3-64 of the bytes from 1024 to the end
//! 32  XXH3-64 of the bytes 0 to 32
//! ```

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use twox_hash::XxHash3_64;

use super::error::{ErofsError, TreeFileFault};
use super::format::{BLOCK, DEVICE_LEN, SUPER_LEN, SUPER_OFFSET};
use super::plan::TreeImage;
use crate::image::{Digest, LayerDigest};

/// The version of tree images. Changes whenever the same indexes give other bytes, so that images are made anew.
const VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"rcx-tree";
/// Bytes of the header.
const HEADER_LEN: usize = 40;
/// Bytes read at once while a checksum is computed.
const STEP: usize = 1 << 18;

/// A tree image whose header fits.
#[derive(Debug)]
pub struct TreeFile {
    file: File,
    size: u64,
    checksum: u64,
    devices: Vec<TreeDevice>,
}

/// A device that a tree image needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeDevice {
    /// The layer.
    pub layer: LayerDigest,
    /// The length of the layer's device in bytes.
    pub size: u64,
}

/// Passes bytes on, and hashes those behind the first 1024.
struct HashingWriter<'a> {
    out: &'a File,
    position: u64,
    hash: XxHash3_64,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all_at(bytes, self.position)?;
        let skipped = SUPER_OFFSET.saturating_sub(self.position).min(bytes.len() as u64);
        self.hash.write(&bytes[usize::try_from(skipped).unwrap_or(0)..]);
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: AsRef<[u8]>> TreeImage<'_, D> {
    /// Writes the image to an empty file, with the header that [`TreeFile::open`] requires.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_file(&self, uuid: [u8; 16], file: &File) -> Result<(), ErofsError> {
        let mut out = HashingWriter { out: file, position: 0, hash: XxHash3_64::new() };
        self.write(uuid, &mut out)?;
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&out.position.to_le_bytes());
        header[24..32].copy_from_slice(&out.hash.finish().to_le_bytes());
        let hash = XxHash3_64::oneshot(&header[..32]);
        header[32..].copy_from_slice(&hash.to_le_bytes());
        Ok(file.write_all_at(&header, 0)?)
    }
}

impl TreeFile {
    /// Opens a tree image. Checks its header and its length, but not its content: see [`TreeFile::verify`].
    ///
    /// # Errors
    /// The file is no tree image of this version, or is not complete.
    pub fn open(file: File) -> Result<Self, TreeFileFault> {
        let mut header = [0; HEADER_LEN];
        read_at(&file, &mut header, 0)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        if header[..8] != MAGIC || number(32) != XxHash3_64::oneshot(&header[..32]) {
            return Err(TreeFileFault::Damaged);
        }
        // The upper half of this number is zero.
        let version = number(8);
        if version != u64::from(VERSION) {
            return Err(TreeFileFault::Version { found: version, supported: VERSION });
        }
        let (size, checksum) = (number(16), number(24));
        let actual = file.metadata()?.len();
        if actual != size {
            return Err(TreeFileFault::Length { actual, declared: size });
        }
        let devices = read_devices(&file)?;
        Ok(Self { file, size, checksum, devices })
    }

    /// Compares the content with the checksum in the header.
    ///
    /// # Errors
    /// The content differs, or cannot be read.
    pub fn verify(&self) -> Result<(), TreeFileFault> {
        let mut hash = XxHash3_64::new();
        let mut buffer = vec![0; STEP];
        let mut at = SUPER_OFFSET;
        while at < self.size {
            let len = usize::try_from(self.size - at).map_or(STEP, |left| left.min(STEP));
            read_at(&self.file, &mut buffer[..len], at)?;
            hash.write(&buffer[..len]);
            at += len as u64;
        }
        if hash.finish() == self.checksum { Ok(()) } else { Err(TreeFileFault::Damaged) }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The devices, in the order in which the kernel expects them.
    #[must_use]
    pub fn devices(&self) -> &[TreeDevice] {
        &self.devices
    }
}

/// Reads the device table (fs/erofs/erofs_fs.h, `struct erofs_deviceslot`).
fn read_devices(file: &File) -> Result<Vec<TreeDevice>, TreeFileFault> {
    let mut count = [0; 2];
    read_at(file, &mut count, SUPER_OFFSET + 86)?;
    let mut table = vec![0; usize::from(u16::from_le_bytes(count)) * DEVICE_LEN];
    read_at(file, &mut table, SUPER_OFFSET + SUPER_LEN as u64)?;
    let device = |slot: &[u8]| {
        let tag = std::str::from_utf8(&slot[..64]).ok()?;
        let layer = LayerDigest::new(Digest::from_hex(tag)?);
        let blocks = u32::from_le_bytes([slot[64], slot[65], slot[66], slot[67]]);
        Some(TreeDevice { layer, size: u64::from(blocks) * BLOCK })
    };
    table.chunks_exact(DEVICE_LEN).map(device).collect::<Option<_>>().ok_or(TreeFileFault::Damaged)
}

/// Reads exactly these bytes. A file that ends before is damaged.
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), TreeFileFault> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => TreeFileFault::Damaged,
        _ => TreeFileFault::Io(error),
    })
}
