//! Opens an index: validates the whole file once with checked arithmetic, then answers look-ups that cannot fail.
//!
//! Every check names the look-up that relies on it. Look-ups read records with plain slicing; that is sound because the
//! file is never written again under its name (a new index replaces it by rename).

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;

use super::format::{
    ATTR_LEN, CHECKED_FROM, ENTRY_LEN, EXTENT_LEN, GROUP_LEN, HEADER_LEN, KindByte, MAGIC, NO_BLOCK,
    NO_WINDOW, NO_XATTRS, NOT_SPARSE, SECTIONS, SEGMENT_LEN, SPAN_LEN, Section, SpanKind, TAR_BLOCK, VERSION,
    padded,
};
use super::{EntryId, SpanId};
use crate::image::{DiffId, Digest, LayerDigest};
use crate::layer::tar::Timestamp;
use crate::layer::{Codec, TarOffset};

/// Longest span that a reader takes, in bytes of tar; the builder stays below. A decode allocates this much at most.
pub(super) const SPAN_LIMIT: u64 = 2 << 20;

/// Why a file is not a usable index. All of these are mended by building the index again from the blob.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Reading or mapping the file.
    #[error("index cannot be read")]
    Io(#[from] std::io::Error),
    /// Not an index at all.
    #[error("not an index file")]
    Foreign,
    /// Written by another version of this program.
    #[error("index has version {0}, not {VERSION}")]
    Version(u32),
    /// Shorter or longer than its header says.
    #[error("index has {actual} bytes where its header says {declared}")]
    Length {
        /// Bytes there are.
        actual: u64,
        /// Bytes there should be.
        declared: u64,
    },
    /// The checksum over the file does not match.
    #[error("index checksum does not match")]
    Checksum,
    /// The index of another layer.
    #[error("index belongs to layer {0}")]
    OtherLayer(LayerDigest),
    /// The file of what cannot be decoded from the blob is missing or too short.
    #[error("seekable file has {actual} bytes where the index says {declared}")]
    Seekable {
        /// Bytes there are.
        actual: u64,
        /// Bytes there should be.
        declared: u64,
    },
    /// A record that contradicts another one.
    #[error("index is inconsistent: {what} {ordinal}")]
    Inconsistent {
        /// What kind of record.
        what: &'static str,
        /// Which one.
        ordinal: usize,
    },
}

/// A validated index over bytes in memory or in a mapped file.
#[derive(Debug)]
pub struct Index<D> {
    data: D,
    sections: [Range<usize>; SECTIONS],
    codec: Codec,
    layer: LayerDigest,
    diff_id: DiffId,
    blob_size: u64,
    tar_size: u64,
    seekable_size: u64,
}

/// Maps the index file of a layer and validates it.
///
/// # Errors
/// Whatever is wrong with the file, among it that it is the index of another layer.
pub fn open_file(file: &File, layer: &LayerDigest) -> Result<Index<Mmap>, IndexError> {
    // SAFETY: The store writes an index under a temporary name and renames it; nothing writes to it afterwards, so the
    // bytes stay. Only root can truncate the file by hand: a look-up would then raise SIGBUS, and the process ends.
    #[expect(unsafe_code, reason = "mapping a file")]
    let map = unsafe { Mmap::map(file) }?;
    let index = Index::open(map)?;
    if index.layer() != layer {
        return Err(IndexError::OtherLayer(*index.layer()));
    }
    Ok(index)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("slice has the length asked for")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// Record `ordinal` of a section whose records have `length` bytes.
fn record(section: &[u8], ordinal: usize, length: usize) -> &[u8] {
    &section[ordinal * length..(ordinal + 1) * length]
}

/// The element of a heap whose ends stand in `end(ordinal)`.
fn between(end: impl Fn(usize) -> u32, ordinal: usize) -> Range<usize> {
    let start = if ordinal == 0 { 0 } else { end(ordinal - 1) };
    start as usize..end(ordinal) as usize
}

/// One span record, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanRecord {
    pub(super) tar: u64,
    pub(super) data: u64,
    pub(super) data_len: u64,
    pub(super) crc: u32,
    pub(super) kind: SpanKind,
    pub(super) skip_bits: u8,
    pub(super) window_ordinal: u16,
    pub(super) window_group: u32,
    pub(super) block_bits: u32,
    pub(super) block_start: u64,
    pub(super) stored_before: u16,
}

/// One window group record, decoded.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) heap: Range<usize>,
    pub(super) raw_len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Attr {
    kind: KindByte,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: u32,
}

fn attr_of(bytes: &[u8]) -> Option<Attr> {
    Some(Attr {
        kind: KindByte::of(bytes[0])?,
        mode: u16_at(bytes, 2),
        uid: u32_at(bytes, 4),
        gid: u32_at(bytes, 8),
        mtime: Timestamp { nsec: u32_at(bytes, 12), sec: i64::from_le_bytes(array(bytes, 16)) },
        xattrs: u32_at(bytes, 24),
    })
}

impl<D: AsRef<[u8]>> Index<D> {
    /// Validates `data` as an index.
    ///
    /// # Errors
    /// The first thing that is wrong. An index that passes never makes a look-up panic.
    pub fn open(data: D) -> Result<Self, IndexError> {
        let bytes = data.as_ref();
        if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC {
            return Err(IndexError::Foreign);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let mut sections: [Range<usize>; SECTIONS] = std::array::from_fn(|_| 0..0);
        let actual = bytes.len() as u64;
        let mut end = HEADER_LEN as u64;
        for (ordinal, section) in sections.iter_mut().enumerate() {
            let length = u64_at(bytes, 136 + 8 * ordinal);
            let next = padded(length).and_then(|length| end.checked_add(length));
            let declared = next.unwrap_or(u64::MAX);
            if declared > actual {
                return Err(IndexError::Length { actual, declared });
            }
            let to_index = |at: u64| usize::try_from(at).map_err(|_| IndexError::Foreign);
            *section = to_index(end)?..to_index(end + length)?;
            end = declared;
        }
        if end != actual {
            return Err(IndexError::Length { actual, declared: end });
        }
        if Digest::of(&bytes[CHECKED_FROM..]).as_bytes() != &bytes[16..48] {
            return Err(IndexError::Checksum);
        }
        let codec = match (bytes[12], &bytes[13..16]) {
            (0, [0, 0, 0]) => Codec::Tar,
            (1, [0, 0, 0]) => Codec::Gzip,
            (2, [0, 0, 0]) => Codec::Zstd,
            _ => return Err(IndexError::Foreign),
        };
        let index = Self {
            sections,
            codec,
            layer: LayerDigest::new(Digest::new(array(bytes, 48))),
            diff_id: DiffId::new(Digest::new(array(bytes, 80))),
            blob_size: u64_at(bytes, 112),
            tar_size: u64_at(bytes, 120),
            seekable_size: u64_at(bytes, 128),
            data,
        };
        index.validate()?;
        Ok(index)
    }

    fn section(&self, section: Section) -> &[u8] {
        &self.data.as_ref()[self.sections[section as usize].clone()]
    }

    fn count(&self, section: Section, length: usize) -> usize {
        self.sections[section as usize].len() / length
    }

    fn validate(&self) -> Result<(), IndexError> {
        for (section, length) in [
            (Section::Spans, SPAN_LEN),
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
                return Err(IndexError::Inconsistent { what: "section", ordinal: section as usize });
            }
        }
        let all = |what, count: usize, valid: &dyn Fn(usize) -> Option<bool>| match (0..count)
            .find(|&ordinal| valid(ordinal) != Some(true))
        {
            Some(ordinal) => Err(IndexError::Inconsistent { what, ordinal }),
            None => Ok(()),
        };
        all("window group", self.count(Section::Groups, GROUP_LEN), &|n| self.group_is_valid(n))?;
        all("span", self.span_count(), &|n| self.span_is_valid(n))?;
        let covered = match self.span_count() {
            0 => 0,
            // `span_is_valid` saw that the last span ends within the tar; `span_range` takes the tar's end for its end.
            count => self.span_record(count - 1).tar + 1,
        };
        if covered > self.tar_size || (covered == 0 && self.tar_size > 0) {
            return Err(IndexError::Inconsistent { what: "tar size", ordinal: 0 });
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
            Some(length > 0 && tar.checked_add(length)? <= self.tar_size)
        })?;
        all("extent", self.count(Section::Extents, EXTENT_LEN), &|n| self.extent_is_valid(n))?;
        all("entry", self.len(), &|n| self.entry_is_valid(n))?;
        all("link count", self.count(Section::Links, 8), &|n| {
            let entry = |n| u32_at(record(self.section(Section::Links), n, 8), 0);
            // `own_nlink` searches by bisection.
            Some((entry(n) as usize) < self.len() && (n == 0 || entry(n - 1) < entry(n)))
        })?;
        all("marker", self.count(Section::Markers, 8), &|n| {
            let marker = record(self.section(Section::Markers), n, 8);
            let opaque = u32_at(marker, 4);
            let path = self.checked_text(u32_at(marker, 0))?;
            Some(opaque <= 1 && path_is_normal(path) && (opaque == 1 || !path.is_empty()))
        })
    }

    fn group_is_valid(&self, ordinal: usize) -> Option<bool> {
        let bytes = record(self.section(Section::Groups), ordinal, GROUP_LEN);
        let end = u64_at(bytes, 0).checked_add(u32_at(bytes, 8).into())?;
        let heap = self.section(Section::Windows).len() as u64;
        // `window` allocates the uncompressed length.
        Some(end <= heap && u32_at(bytes, 12) <= super::windows::GROUP_LIMIT)
    }

    fn span_is_valid(&self, ordinal: usize) -> Option<bool> {
        let bytes = record(self.section(Section::Spans), ordinal, SPAN_LEN);
        let kind = SpanKind::of(bytes[28])?;
        let span = self.span_record(ordinal);
        let end = match ordinal + 1 < self.span_count() {
            true => self.span_record(ordinal + 1).tar,
            false => self.tar_size,
        };
        let file = if kind == SpanKind::Seekable { self.seekable_size } else { self.blob_size };
        let groups = self.count(Section::Groups, GROUP_LEN);
        let block_is_valid = span.block_start == NO_BLOCK
            || span.block_start.checked_add(span.block_bits.into())? <= self.blob_size.checked_mul(8)?;
        Some(
            // `span_at` searches by bisection, `decode_span` allocates the length.
            (ordinal > 0 || span.tar == 0)
                && span.tar < end
                && end - span.tar <= SPAN_LIMIT
                && span.data.checked_add(span.data_len)? <= file
                && span.skip_bits < 8
                && (span.window_group == NO_WINDOW || (span.window_group as usize) < groups)
                && block_is_valid
                // `decode_span` reads the header whole; 320 code lengths of at most 7 + 7 bits are far below.
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
            return Some(content.checked_add(size)? <= self.tar_size);
        }
        let first = first as usize;
        let end = first.checked_add(count as usize)?;
        if end > self.count(Section::Segments, SEGMENT_LEN) {
            return None;
        }
        let mut covered = 0;
        for segment in first..end {
            let (logical, _, length) = self.segment(segment);
            if logical < covered {
                return None;
            }
            covered = logical + length;
        }
        Some(covered <= size)
    }

    fn entry_is_valid(&self, ordinal: usize) -> Option<bool> {
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
                    KindByte::Regular => header_end.checked_add(payload.into())? <= self.tar_size,
                    KindByte::Extended => (payload as usize) < self.count(Section::Extents, EXTENT_LEN),
                    KindByte::Symlink => !self.checked_text(payload)?.is_empty(),
                    KindByte::Hardlink => path_is_normal(self.checked_text(payload)?),
                    KindByte::Directory | KindByte::CharDevice | KindByte::BlockDevice | KindByte::Fifo => {
                        true
                    }
                },
        )
    }

    fn checked_text(&self, at: u32) -> Option<&[u8]> {
        let texts = self.section(Section::Texts).get(at as usize..)?;
        let length = u16_at(texts.get(..2)?, 0);
        texts.get(2..2 + usize::from(length))
    }

    fn text(&self, at: u32) -> &[u8] {
        self.checked_text(at).expect("texts were validated at open")
    }

    fn name_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::Entries), ordinal, ENTRY_LEN), 4)
    }

    fn dir_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::Dirs), ordinal, 4), 0)
    }

    fn xattr_set_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::XattrSets), ordinal, 4), 0)
    }

    /// Size, offset of the content, first segment, number of segments.
    pub(super) fn extent(&self, ordinal: usize) -> (u64, u64, u32, u32) {
        let bytes = record(self.section(Section::Extents), ordinal, EXTENT_LEN);
        (u64_at(bytes, 0), u64_at(bytes, 8), u32_at(bytes, 16), u32_at(bytes, 20))
    }

    /// Offset in the file, offset in the tar, length.
    pub(super) fn segment(&self, ordinal: usize) -> (u64, u64, u64) {
        let bytes = record(self.section(Section::Segments), ordinal, SEGMENT_LEN);
        (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16))
    }

    pub(super) fn span_record(&self, ordinal: usize) -> SpanRecord {
        let bytes = record(self.section(Section::Spans), ordinal, SPAN_LEN);
        SpanRecord {
            tar: u64_at(bytes, 0),
            data: u64_at(bytes, 8),
            data_len: u64_at(bytes, 16),
            crc: u32_at(bytes, 24),
            kind: SpanKind::of(bytes[28]).unwrap_or(SpanKind::Stored),
            skip_bits: bytes[29],
            window_ordinal: u16_at(bytes, 30),
            window_group: u32_at(bytes, 32),
            block_bits: u32_at(bytes, 36),
            block_start: u64_at(bytes, 40),
            stored_before: u16_at(bytes, 48),
        }
    }

    pub(super) fn group(&self, ordinal: u32) -> Group {
        let bytes = record(self.section(Section::Groups), ordinal as usize, GROUP_LEN);
        let start = usize::try_from(u64_at(bytes, 0)).expect("groups were validated at open");
        Group { heap: start..start + u32_at(bytes, 8) as usize, raw_len: u32_at(bytes, 12) as usize }
    }

    pub(super) fn window_heap(&self, group: &Group) -> &[u8] {
        &self.section(Section::Windows)[group.heap.clone()]
    }

    /// The layer's blob.
    pub fn layer(&self) -> &LayerDigest {
        &self.layer
    }

    /// Digest of the layer's tar.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// How the blob is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Bytes of the blob.
    pub fn blob_size(&self) -> u64 {
        self.blob_size
    }

    /// Bytes of the tar.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Bytes of the seekable file that stands beside the index; 0 where none is needed.
    pub fn seekable_size(&self) -> u64 {
        self.seekable_size
    }

    /// Bytes of the index file.
    pub fn file_size(&self) -> u64 {
        self.data.as_ref().len() as u64
    }

    /// Bytes of each section of the file, for `inspect`.
    pub fn section_sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.sections.iter().map(ExactSizeIterator::len)
    }

    /// How many entries there are, markers not counted.
    pub fn len(&self) -> usize {
        self.count(Section::Entries, ENTRY_LEN)
    }

    /// Whether the layer has no entries (it may still have markers).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many spans there are.
    pub fn span_count(&self) -> usize {
        self.count(Section::Spans, SPAN_LEN)
    }

    /// Whether `id` is an entry of this layer. Ids from outside (inode numbers) have to pass here first.
    pub fn contains(&self, id: EntryId) -> bool {
        id.index() < self.len()
    }

    /// One entry.
    ///
    /// # Panics
    /// When `id` is not of this layer: see [`Index::contains`].
    pub fn entry(&self, id: EntryId) -> Entry<'_> {
        let ordinal = id.index();
        let bytes = record(self.section(Section::Entries), ordinal, ENTRY_LEN);
        let attr = record(self.section(Section::Attrs), u32_at(bytes, 8) as usize, ATTR_LEN);
        let attr = attr_of(attr).expect("attributes were validated at open");
        let payload = u32_at(bytes, 16);
        let kind = match attr.kind {
            KindByte::Directory => Kind::Directory,
            KindByte::Regular => Kind::Regular { size: payload.into() },
            KindByte::Extended => Kind::Regular { size: self.extent(payload as usize).0 },
            KindByte::Symlink => Kind::Symlink { target: self.text(payload) },
            KindByte::Hardlink => Kind::Hardlink { target: self.text(payload) },
            KindByte::CharDevice => Kind::CharDevice { major: payload >> 20, minor: payload & 0xf_ffff },
            KindByte::BlockDevice => Kind::BlockDevice { major: payload >> 20, minor: payload & 0xf_ffff },
            KindByte::Fifo => Kind::Fifo,
        };
        let xattrs: &[u8] = match attr.xattrs {
            NO_XATTRS => &[],
            set => &self.section(Section::Xattrs)[between(|n| self.xattr_set_end(n), set as usize)],
        };
        Entry {
            dir: &self.section(Section::Paths)[between(|n| self.dir_end(n), u32_at(bytes, 0) as usize)],
            name: &self.section(Section::Names)[between(|n| self.name_end(n), ordinal)],
            kind,
            attr,
            xattrs,
            header: u64::from(u32_at(bytes, 12)) * TAR_BLOCK,
            extent: (attr.kind == KindByte::Extended).then_some(payload),
        }
    }

    /// All entries in the order of the tar.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (EntryId, Entry<'_>)> {
        // `validate` saw that the ordinals fit.
        #[expect(clippy::cast_possible_truncation, reason = "the number of entries fits, see `validate`")]
        (0..self.len()).map(|ordinal| {
            let id = EntryId::new(ordinal as u32);
            (id, self.entry(id))
        })
    }

    fn markers(&self, opaque: u32) -> impl Iterator<Item = &[u8]> {
        (0..self.count(Section::Markers, 8)).filter_map(move |ordinal| {
            let marker = record(self.section(Section::Markers), ordinal, 8);
            (u32_at(marker, 4) == opaque).then(|| self.text(u32_at(marker, 0)))
        })
    }

    /// Paths that this layer's whiteouts hide in the layers below.
    pub fn whiteouts(&self) -> impl Iterator<Item = &[u8]> {
        self.markers(0)
    }

    /// Directories in which this layer hides all that the layers below put there; the root is the empty path.
    pub fn opaques(&self) -> impl Iterator<Item = &[u8]> {
        self.markers(1)
    }

    /// How many names `id` has within its layer alone.
    pub fn own_nlink(&self, id: EntryId) -> u32 {
        let links = self.section(Section::Links);
        let (mut low, mut high) = (0, links.len() / 8);
        while low < high {
            let middle = low.midpoint(high);
            let link = record(links, middle, 8);
            match u32_at(link, 0).cmp(&id.get()) {
                std::cmp::Ordering::Equal => return u32_at(link, 4),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        1
    }

    /// All spans, in the order of the tar.
    pub fn spans(&self) -> impl Iterator<Item = SpanId> + use<D> {
        let count = u32::try_from(self.span_count()).expect("ordinals were validated at open");
        (0..count).map(SpanId::new)
    }

    /// The span that holds a byte of the tar; `None` behind the tar's end.
    pub fn span_at(&self, at: TarOffset) -> Option<SpanId> {
        if at.get() >= self.tar_size {
            return None;
        }
        let (mut low, mut high) = (0, self.span_count());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.span_record(middle).tar <= at.get() {
                low = middle;
            } else {
                high = middle;
            }
        }
        u32::try_from(low).ok().map(SpanId::new)
    }

    /// The bytes of the tar that a span holds.
    ///
    /// # Panics
    /// When `id` is not of this layer.
    pub fn span_range(&self, id: SpanId) -> Range<u64> {
        let end = match id.index() + 1 < self.span_count() {
            true => self.span_record(id.index() + 1).tar,
            false => self.tar_size,
        };
        self.span_record(id.index()).tar..end
    }
}

fn path_is_normal(path: &[u8]) -> bool {
    path.is_empty()
        || path.split(|&byte| byte == b'/').all(|name| {
            !name.is_empty() && name.len() <= 255 && name != b"." && name != b".." && !name.contains(&0)
        })
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Directory.
    Directory,
    /// Regular file.
    Regular {
        /// Its length in bytes.
        size: u64,
    },
    /// Symbolic link.
    Symlink {
        /// What it points to, as it stands in the tar.
        target: &'a [u8],
    },
    /// One more name for another entry.
    Hardlink {
        /// Normalised path of the other name.
        target: &'a [u8],
    },
    /// Character device.
    CharDevice {
        /// Driver number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Driver number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

/// One entry of a layer, as its index tells it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    dir: &'a [u8],
    name: &'a [u8],
    kind: Kind<'a>,
    attr: Attr,
    xattrs: &'a [u8],
    header: u64,
    extent: Option<u32>,
}

impl<'a> Entry<'a> {
    /// Path of the directory it stands in, normalised; empty for the root.
    #[must_use]
    pub fn dir(&self) -> &'a [u8] {
        self.dir
    }

    /// Last component of its path; empty for the root directory itself.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Its whole path, normalised.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        if self.dir.is_empty() { self.name.to_vec() } else { [self.dir, b"/", self.name].concat() }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind<'a> {
        self.kind
    }

    /// Permission bits with set-uid, set-gid and sticky: 0 to 07777.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.attr.mode
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.attr.uid
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.attr.gid
    }

    /// Time of the last change of content.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.attr.mtime
    }

    /// Extended attributes as (name, value), names ascending.
    #[must_use = "iterators are lazy"]
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.xattrs;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(2)?;
            let (name, tail) = tail.split_at(u16_at(head, 0).into());
            let (head, tail) = tail.split_at(4);
            let (value, tail) = tail.split_at(u32_at(head, 0) as usize);
            rest = tail;
            Some((name, value))
        })
    }

    /// Where its header starts in the tar (the last one, behind PAX and GNU extension headers).
    #[must_use]
    pub fn offset(&self) -> TarOffset {
        TarOffset::new(self.header)
    }

    /// Where its content starts in the tar, if it is in one piece right behind the header.
    pub(super) fn content_start(&self) -> u64 {
        self.header + TAR_BLOCK
    }

    /// Ordinal of its extent record, where it has one.
    pub(super) fn extent(&self) -> Option<u32> {
        self.extent
    }
}
