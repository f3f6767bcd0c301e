//! A layer as an EROFS device: the address space that the extents of regular files point into.
//!
//! The decoded tar comes first, so the content of a file in one piece is addressed where it stands in the tar. The places of
//! sparse files follow, in the order of their entries, each at a multiple of the block size: there a file stands as its reader
//! sees it, with its holes. In a lazy layer these places exist only as answers to reads; in a plain layer they are holes of the
//! disk's filesystem around the segments.

use super::format::BLOCK;
use crate::index::{EntryId, Index, StoredContent};
use crate::layer::TarOffset;

/// The address space of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDevice {
    tar_size: u64,
    /// The files that do not stand in one piece in the tar, in the order of their entries.
    places: Box<[ExpandedPlace]>,
    size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpandedPlace {
    entry: EntryId,
    start: u64,
    size: u64,
}

/// A range of a device, in the order of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePart {
    /// Bytes of the tar.
    Tar {
        /// The offset of the first byte.
        from: TarOffset,
        /// The number of bytes.
        len: u64,
    },
    /// Bytes of a file, with its holes.
    File {
        /// The entry of the file.
        entry: EntryId,
        /// The offset in the file.
        from: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Zero bytes between two places.
    Padding {
        /// The number of bytes.
        len: u64,
    },
}

impl LayerDevice {
    /// The address space of a layer. A function of the layer's tar alone.
    #[must_use]
    pub fn of<D: AsRef<[u8]>>(index: &Index<D>) -> Self {
        let tar_size = index.tar_size();
        let mut size = tar_size.next_multiple_of(BLOCK);
        let mut places = Vec::new();
        // Few layers have sparse files: do not walk over the entries of the others.
        if index.has_extents() {
            for (entry, _) in index.entries() {
                let StoredContent::Sparse { size: bytes } = index.stored_content(entry) else { continue };
                places.push(ExpandedPlace { entry, start: size, size: bytes });
                size = size.saturating_add(bytes).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            }
        }
        Self { tar_size, places: places.into(), size }
    }

    /// The length in bytes, a multiple of [`BLOCK`]; `u64::MAX` if the sparse files of the layer are longer than any disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The number of files that do not stand in one piece in the tar.
    pub(super) fn sparse_files(&self) -> usize {
        self.places.len()
    }

    /// The offset of a file's content; `None` if the file has no content, or nothing but holes.
    ///
    /// # Panics
    /// `entry` is not an entry of `index`, the index of this layer.
    #[must_use]
    pub fn offset_of<D: AsRef<[u8]>>(&self, index: &Index<D>, entry: EntryId) -> Option<u64> {
        match index.stored_content(entry) {
            StoredContent::None | StoredContent::Hole { .. } => None,
            StoredContent::Tar { from, .. } => Some(from.get()),
            StoredContent::Sparse { .. } => {
                let at = self.places.binary_search_by_key(&entry, |place| place.entry);
                Some(self.places[at.expect("every sparse entry has a place")].start)
            }
        }
    }

    /// The parts of the range `offset..offset + len`, up to the end of the device.
    pub fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = DevicePart> + '_ {
        let end = offset.saturating_add(len).min(self.size);
        let mut at = offset;
        let mut next = self.places.partition_point(|place| place.start.saturating_add(place.size) <= offset);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let from = at;
            if at < self.tar_size {
                at = end.min(self.tar_size);
                return Some(DevicePart::Tar { from: TarOffset::new(from), len: at - from });
            }
            match self.places.get(next) {
                Some(place) if place.start <= at => {
                    next += 1;
                    at = end.min(place.start + place.size);
                    Some(DevicePart::File { entry: place.entry, from: from - place.start, len: at - from })
                }
                place => {
                    at = end.min(place.map_or(self.size, |place| place.start));
                    Some(DevicePart::Padding { len: at - from })
                }
            }
        })
    }
}
