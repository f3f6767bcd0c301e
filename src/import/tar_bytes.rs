//! The bytes of a tar at any position.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::compressed::CompressedTar;

/// The bytes of a tar, or of a file of a directory.
#[derive(Debug)]
pub(super) enum TarBytes {
    Plain(File),
    Compressed(CompressedTar),
    /// A document that was generated for the archive.
    Memory(Vec<u8>),
}

impl TarBytes {
    /// The length in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        match self {
            Self::Plain(file) => Ok(file.metadata()?.len()),
            Self::Compressed(tar) => Ok(tar.length()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Reads bytes at a position: some if there are any, none at the end.
    pub(super) fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read_at(buffer, position),
            Self::Compressed(tar) => tar.read_at(buffer, position),
            Self::Memory(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                io::Read::read(&mut &bytes[start..], buffer)
            }
        }
    }

    /// Fills the buffer. Fails with `UnexpectedEof` at the end.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], mut position: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(&mut buffer[filled..], position) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    filled += length;
                    position += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
