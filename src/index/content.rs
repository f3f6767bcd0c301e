//! Where the content of a regular file stands in the tar.

use super::format::{NOT_SPARSE, Section, TAR_BLOCK};
use super::{EntryId, Index, IndexedKind, SpanId};
use crate::layer::TarOffset;

/// A range of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Zero bytes that are not stored.
    Hole {
        /// The number of bytes.
        len: u64,
    },
    /// Bytes of the tar.
    Data {
        /// The offset of the first byte.
        tar: TarOffset,
        /// The number of bytes.
        len: u64,
    },
}

/// The stored bytes of a sequence of pieces that one span contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanSlice {
    /// The span.
    pub span: SpanId,
    /// The offset of the first byte from the start of the sequence, with its holes.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
}

/// The content of an entry as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredContent {
    /// Not a regular file, or an empty one.
    None,
    /// Nothing but zero bytes that are not stored.
    Hole {
        /// The size of the file.
        size: u64,
    },
    /// One piece of the tar that starts at a multiple of [`TAR_BLOCK`].
    Tar {
        /// The offset of the first byte.
        from: TarOffset,
        /// The size of the file.
        size: u64,
    },
    /// Several pieces.
    Sparse {
        /// The size of the file, with its holes.
        size: u64,
    },
}

impl<D: AsRef<[u8]>> Index<D> {
    /// Whether the layer has files that are sparse or at least 4 GiB long.
    pub fn has_extents(&self) -> bool {
        !self.section(Section::Extents).is_empty()
    }

    /// Where the content of an entry stands.
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn stored_content(&self, entry: EntryId) -> StoredContent {
        let entry = self.entry(entry);
        let IndexedKind::Regular { size } = entry.kind() else { return StoredContent::None };
        let from = match entry.extent().map(|extent| self.extent(extent as usize)) {
            _ if size == 0 => return StoredContent::None,
            Some((_, _, _, 0)) => return StoredContent::Hole { size },
            Some((_, _, _, count)) if count != NOT_SPARSE => return StoredContent::Sparse { size },
            Some((_, content, ..)) => content,
            None => entry.content_start(),
        };
        if from % TAR_BLOCK == 0 {
            StoredContent::Tar { from: TarOffset::new(from), size }
        } else {
            StoredContent::Sparse { size }
        }
    }

    /// Returns the pieces of the range `offset..offset + len` of a regular file, in order, up to the end of the file. Other
    /// entries have no pieces. The iterator is lazy: a file can have a million pieces.
    ///
    /// # Panics
    /// `entry` is not an entry of this layer.
    pub fn pieces_from(&self, entry: EntryId, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
        let entry = self.entry(entry);
        let size = if let IndexedKind::Regular { size } = entry.kind() { size } else { 0 };
        let end = offset.saturating_add(len).min(size);
        // A file that is not sparse is treated as one segment.
        let sparse = entry.extent().map(|extent| self.extent(extent as usize));
        let (segments, content) = match sparse {
            Some((_, _, first, count)) if count != NOT_SPARSE => {
                (first as usize..first as usize + count as usize, None)
            }
            Some((_, content, ..)) => (0..1, Some(content)),
            None => (0..1, Some(entry.content_start())),
        };
        let segment = move |at: usize| match content {
            Some(start) => (0, start, size),
            None => self.segment(at),
        };
        // Segments ascend: skip those before `offset` by bisection.
        let (mut next, mut high) = (segments.start, segments.end);
        while next < high {
            let middle = next.midpoint(high);
            let (logical, _, length) = segment(middle);
            if logical + length <= offset { next = middle + 1 } else { high = middle }
        }
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = match (next < segments.end).then(|| segment(next)) {
                Some((logical, tar, length)) if logical <= at => {
                    next += 1;
                    let stop = (logical + length).min(end);
                    Piece::Data { tar: TarOffset::new(tar + (at - logical)), len: stop - at }
                }
                Some((logical, ..)) => Piece::Hole { len: logical.min(end) - at },
                None => Piece::Hole { len: end - at },
            };
            let (Piece::Hole { len } | Piece::Data { len, .. }) = piece;
            at += len;
            Some(piece)
        })
    }

    /// Returns the slices of a sequence of pieces, span by span. Holes are in no span.
    pub fn span_slices(&self, pieces: impl Iterator<Item = Piece>) -> impl Iterator<Item = SpanSlice> {
        let mut next = 0;
        pieces.flat_map(move |piece| {
            let mut offset = next;
            let (mut at, len) = match piece {
                Piece::Hole { len } => (None, len),
                Piece::Data { tar, len } => (Some(tar), len),
            };
            next += len;
            std::iter::from_fn(move || {
                let from = at.filter(|_| offset < next)?;
                let span = self.span_at(from)?;
                let len = (self.span_range(span).end - from.get()).min(next - offset);
                let slice = SpanSlice { span, offset, len };
                offset += len;
                at = Some(TarOffset::new(from.get() + len));
                Some(slice)
            })
        })
    }
}
