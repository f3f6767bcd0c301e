//! Reads the header of an index file, without mapping and validating the rest.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::format::{HEADER_LEN, MAGIC, VERSION};
use super::open::is_readable;
use super::records::{array, u32_at};
use crate::image::{DiffId, Digest, LayerDigest};

/// Reads the diff ID from the header of an index file, without mapping and validating the rest.
///
/// Returns `None` if the file is not an index of `layer` in a version that can be read. The checksum over the file is not
/// compared: the caller may only use the result to confirm a diff ID that it expects.
#[must_use]
pub fn recorded_diff_id(file: &File, layer: &LayerDigest) -> Option<DiffId> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).ok()?;
    let is_index = header[..8] == MAGIC && is_readable(u32_at(&header, 8));
    let is_of_layer = Digest::new(array(&header, 48)) == layer.digest();
    (is_index && is_of_layer).then(|| DiffId::new(Digest::new(array(&header, 80))))
}

/// Whether the file is an index that can be read, but has an older version than [`VERSION`]. Reads only the header.
#[must_use]
pub fn has_outdated_version(file: &File) -> bool {
    let mut header = [0; HEADER_LEN];
    let is_index = file.read_exact_at(&mut header, 0).is_ok() && header[..8] == MAGIC;
    let version = u32_at(&header, 8);
    is_index && is_readable(version) && version < VERSION
}
