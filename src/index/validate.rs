//! Validates a whole index file, with checked arithmetic. Each check names the lookup that relies on it.

use std::cell::LazyCell;

use super::format::{
    ATTR_LEN, ENTRY_LEN, EXTENT_LEN, GROUP_LEN, KindByte, NO_BLOCK, NO_WINDOW, NO_XATTRS, NOT_SPARSE,
    SEGMENT_LEN, Section, SpanKind, TAR_BLOCK,
};
use super::is_hidden;
use super::open::{Index, IndexError};
use super::records::{attr_of, between, record, u16_at, u32_at, u64_at};
use crate::layer::is_leftover;

/// Longest span that a reader accepts, in bytes of tar; the builder makes shorter ones. Bounds the memory that decoding a span
/// allocates.
const SPAN_LIMIT: u64 = 2 << 20;

impl<D: AsRef<[u8]>> Index<D> {
    pub(super) fn validate(&self) -> Result<(), IndexError> {
        for (section, length) in [
            (Section::Spans, self.span_len()),
            (Section::Groups, GROUP_LEN),
            (Section::Entries, ENTRY_LEN),
            (Section::Attrs, ATTR_LEN),
            (Section::Dirs, 4),
            (Section::Extents, EXTENT_LEN),
            (Section::Segments, SEGMENT_LEN),
            (Section::Links, 8),
            (Section::XattrSets, 4),
            (Section::Markers, 8),
        ] {
            let bytes = self.section(section).len();
            // Ordinals are u32 everywhere (`EntryId`, `SpanId`).
            if !bytes.is_multiple_of(length) || u32::try_from(bytes / length).is_err() {
                return Err(IndexError::Inconsistent { record: "section", ordinal: section as usize });
            }
        }
        let all = |record, count: usize, valid: &dyn Fn(usize) -> Option<bool>| match (0..count)
            .find(|&ordinal| valid(ordinal) != Some(true))
        {
            Some(ordinal) => Err(IndexError::Inconsistent { record, ordinal }),
            None => Ok(()),
        };
        all("window group", self.count(Section::Groups, GROUP_LEN), &|n| self.group_is_valid(n))?;
        all("span", self.span_count(), &|n| self.span_is_valid(n))?;
        // `span_is_valid` checks that the last span ends at the end of the tar.
        if self.span_count() == 0 && self.tar_size() > 0 {
            return Err(IndexError::Inconsistent { record: "tar size", ordinal: 0 });
        }
        all("xattr set", self.count(Section::XattrSets, 4), &|n| self.xattr_set_is_valid(n))?;
        all("attributes", self.count(Section::Attrs, ATTR_LEN), &|n| {
            let attr = attr_of(record(self.section(Section::Attrs), n, ATTR_LEN))?;
            let sets = self.count(Section::XattrSets, 4);
            Some(
                attr.mode & !0o7777 == 0
                    && attr.mtime.nsec < 1_000_000_000
                    && (attr.xattrs == NO_XATTRS || (attr.xattrs as usize) < sets),
            )
        })?;
        let paths = self.section(Section::Paths);
        all("directory", self.count(Section::Dirs, 4), &|n| {
            Some(path_is_normal(paths.get(between(|n| self.dir_end(n), n))?))
        })?;
        all("segment", self.count(Section::Segments, SEGMENT_LEN), &|n| {
            let (logical, tar, length) = self.segment(n);
            logical.checked_add(length)?;
            Some(length > 0 && tar.checked_add(length)? <= self.tar_size())
        })?;
        all("extent", self.count(Section::Extents, EXTENT_LEN), &|n| self.extent_is_valid(n))?;
        let has_hidden = LazyCell::new(|| self.has_hidden_directory());
        all("entry", self.len(), &|n| self.entry_is_valid(n, &has_hidden))?;
        all("link count", self.count(Section::Links, 8), &|n| {
            let entry = |n| u32_at(record(self.section(Section::Links), n, 8), 0);
            // `own_nlink` uses bisection.
            Some((entry(n) as usize) < self.len() && (n == 0 || entry(n - 1) < entry(n)))
        })?;
        all("marker", self.count(Section::Markers, 8), &|n| {
            let marker = record(self.section(Section::Markers), n, 8);
            let opaque = u32_at(marker, 4);
            let path = self.checked_text(u32_at(marker, 0))?;
            Some(opaque <= 1 && path_is_normal(path) && (opaque == 1 || !path.is_empty()))
        })
    }

    /// Whether the index has a directory below a leftover of AUFS. Version 0.1 left out the hidden files to which hard
    /// links refer: such an index must be rebuilt.
    fn has_hidden_directory(&self) -> bool {
        let paths = self.section(Section::Paths);
        let components = |n| paths[between(|n| self.dir_end(n), n)].split(|&byte| byte == b'/');
        (0..self.count(Section::Dirs, 4)).any(|n| components(n).any(is_leftover))
    }

    fn group_is_valid(&self, ordinal: usize) -> Option<bool> {
        let bytes = record(self.section(Section::Groups), ordinal, GROUP_LEN);
        let end = u64_at(bytes, 0).checked_add(u32_at(bytes, 8).into())?;
        let heap = self.section(Section::Windows).len() as u64;
        // `window` allocates the uncompressed length.
        Some(end <= heap && u32_at(bytes, 12) <= super::windows::GROUP_LIMIT)
    }

    fn span_is_valid(&self, ordinal: usize) -> Option<bool> {
        let bytes = record(self.section(Section::Spans), ordinal, self.span_len());
        let kind = SpanKind::of(bytes[28])?;
        let span = self.span_record(ordinal);
        let end = match ordinal + 1 < self.span_count() {
            true => self.span_record(ordinal + 1).tar,
            false => self.tar_size(),
        };
        // `blob_range` relies on this: the ranges of a frame follow each other.
        let continues = match kind {
            SpanKind::LongFrameRest if ordinal == 0 || self.is_outdated() => return None,
            SpanKind::LongFrameRest => {
                let previous = self.span_record(ordinal - 1);
                previous.kind.is_seekable() && previous.blob.checked_add(previous.blob_len)? == span.blob
            }
            _ => true,
        };
        // The header is in the window group, see `Layer::decode`.
        let has_header = span.block_start == NO_BLOCK || span.window_group != NO_WINDOW || self.is_outdated();
        let groups = self.count(Section::Groups, GROUP_LEN);
        let block_is_valid = span.block_start == NO_BLOCK
            || span.block_start.checked_add(span.block_bits.into())? <= self.blob_size().checked_mul(8)?;
        Some(
            // `span_at` uses bisection; `decode_span` allocates the length.
            (ordinal > 0 || span.tar == 0)
                && span.tar < end
                && end - span.tar <= SPAN_LIMIT
                && span.blob.checked_add(span.blob_len)? <= self.blob_size()
                && span.seekable.checked_add(span.seekable_len)? <= self.seekable_size()
                && continues
                && has_header
                && span.skip_bits < 8
                && (span.window_group == NO_WINDOW || (span.window_group as usize) < groups)
                && block_is_valid
                // `decode_span` reads the whole header; 320 code lengths of at most 7 + 7 bits are far shorter.
                && span.block_bits <= 1 << 16,
        )
    }

    fn xattr_set_is_valid(&self, ordinal: usize) -> Option<bool> {
        let mut set = self.section(Section::Xattrs).get(between(|n| self.xattr_set_end(n), ordinal))?;
        while !set.is_empty() {
            let name_len = usize::from(u16_at(set.get(..2)?, 0));
            let value_at = 2 + name_len + 4;
            let value_len = u32_at(set.get(..value_at)?, 2 + name_len) as usize;
            set = set.get(value_at.checked_add(value_len)?..)?;
            if name_len == 0 {
                return None;
            }
        }
        Some(true)
    }

    fn extent_is_valid(&self, ordinal: usize) -> Option<bool> {
        let (size, content, first, count) = self.extent(ordinal);
        if count == NOT_SPARSE {
            return Some(content.checked_add(size)? <= self.tar_size());
        }
        let first = first as usize;
        let end = first.checked_add(count as usize)?;
        if end > self.count(Section::Segments, SEGMENT_LEN) {
            return None;
        }
        let (mut covered, mut stored) = (0, None);
        for segment in first..end {
            let (logical, tar, length) = self.segment(segment);
            // `stored_size` relies on segments without gaps: it uses only the first and the last one.
            if logical < covered || stored.is_some_and(|end| end != tar) {
                return None;
            }
            (covered, stored) = (logical + length, Some(tar + length));
        }
        Some(covered <= size)
    }

    fn entry_is_valid(
        &self,
        ordinal: usize,
        has_hidden: &LazyCell<bool, impl FnOnce() -> bool>,
    ) -> Option<bool> {
        let bytes = record(self.section(Section::Entries), ordinal, ENTRY_LEN);
        let name = self.section(Section::Names).get(between(|n| self.name_end(n), ordinal))?;
        let dir = u32_at(bytes, 0) as usize;
        let attr = u32_at(bytes, 8) as usize;
        if dir >= self.count(Section::Dirs, 4) || attr >= self.count(Section::Attrs, ATTR_LEN) {
            return None;
        }
        let kind = attr_of(record(self.section(Section::Attrs), attr, ATTR_LEN))?.kind;
        let is_root = name.is_empty()
            && self.section(Section::Paths)[between(|n| self.dir_end(n), dir)].is_empty()
            && kind == KindByte::Directory;
        let name_is_valid = is_root || (!name.is_empty() && !name.contains(&b'/') && path_is_normal(name));
        let payload = u32_at(bytes, 16);
        let header_end = u64::from(u32_at(bytes, 12)).checked_add(1)?.checked_mul(TAR_BLOCK)?;
        Some(
            name_is_valid
                && match kind {
                    KindByte::Regular => header_end.checked_add(payload.into())? <= self.tar_size(),
                    KindByte::Extended => (payload as usize) < self.count(Section::Extents, EXTENT_LEN),
                    KindByte::Symlink => !self.checked_text(payload)?.is_empty(),
                    KindByte::Hardlink => {
                        let target = self.checked_text(payload)?;
                        path_is_normal(target) && (!is_hidden(target) || **has_hidden)
                    }
                    KindByte::Directory | KindByte::CharDevice | KindByte::BlockDevice | KindByte::Fifo => {
                        true
                    }
                },
        )
    }
}

fn path_is_normal(path: &[u8]) -> bool {
    path.is_empty()
        || path.split(|&byte| byte == b'/').all(|name| {
            !name.is_empty() && name.len() <= 255 && name != b"." && name != b".." && !name.contains(&0)
        })
}
