//! Writes a layer's device to a file, a *plain layer*: the kernel reads it without the daemon.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::device::{DevicePart, LayerDevice};
use crate::index::{Layer, Piece, ReadError};

/// The reason why a plain layer cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PlainLayerError {
    /// The layer cannot be decoded.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file cannot be written.
    #[error("cannot write the plain layer")]
    Write(#[from] io::Error),
}

impl PlainLayerError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> crate::error::ErrorCode {
        match self {
            Self::Read(error) => error.code(),
            Self::Write(error) => crate::error::ErrorCode::of_io(error),
        }
    }
}

/// Writes the decoded tar of a layer and the places of its sparse files to `out`, an empty file. Holes stay holes.
///
/// # Errors
/// The layer cannot be decoded, or `out` cannot be written. `out` then has an undefined part of the content.
pub fn write_plain<D: AsRef<[u8]>>(
    layer: &Layer<D>,
    device: &LayerDevice,
    out: &File,
) -> Result<(), PlainLayerError> {
    let index = layer.index();
    for span in index.spans() {
        out.write_all_at(&layer.decode_span(span)?, index.span_range(span).start)?;
    }
    let mut at = index.tar_size();
    for part in device.parts(at, u64::MAX) {
        let DevicePart::File { entry, from, len } = part else {
            let (DevicePart::Padding { len } | DevicePart::Tar { len, .. }) = part else { continue };
            at += len;
            continue;
        };
        let mut offset = from;
        for piece in index.pieces_from(entry, from, len) {
            let (Piece::Hole { len: piece_len } | Piece::Data { len: piece_len, .. }) = piece;
            if let Piece::Data { .. } = piece {
                copy_data(layer, entry, offset, piece_len, out, at + (offset - from))?;
            }
            offset += piece_len;
        }
        at += len;
    }
    out.set_len(device.size())?;
    Ok(())
}

/// Copies a range of a file that has no holes.
fn copy_data<D: AsRef<[u8]>>(
    layer: &Layer<D>,
    entry: crate::index::EntryId,
    mut offset: u64,
    len: u64,
    out: &File,
    mut at: u64,
) -> Result<(), PlainLayerError> {
    /// Bytes copied at once.
    const STEP: u64 = 1 << 20;
    let end = offset + len;
    while offset < end {
        let step = (end - offset).min(STEP);
        let bytes = layer.read(entry, offset, usize::try_from(step).unwrap_or(0))?;
        out.write_all_at(&bytes, at)?;
        offset += step;
        at += step;
    }
    Ok(())
}
