//! Opens an index: validates the whole file once with checked arithmetic, so that lookups cannot fail.
//!
//! Lookups slice records without further checks. This is sound because an index file is never modified: a new index
//! replaces it by rename.

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;

use super::EntryId;
use super::entry::{Entry, IndexedKind};
use super::format::{
    ATTR_LEN, CHECKED_FROM, ENTRY_LEN, EXTENT_LEN, GROUP_LEN, HEADER_LEN, KindByte, MAGIC, NO_XATTRS,
    OLDEST_VERSION, SECTIONS, SEGMENT_LEN, Section, TAR_BLOCK, VERSION, padded,
};
use super::records::{GroupRecord, array, attr_of, between, record, u16_at, u32_at, u64_at};
use crate::error::ErrorCode;
use crate::image::{DiffId, Digest, LayerDigest};
use crate::layer::Codec;

/// The reason why a file is not a usable index. Rebuilding the index from the blob fixes each of these errors.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read or mapped.
    #[error("cannot read the index")]
    Io(#[from] std::io::Error),
    /// The file is not an index.
    #[error("the file is not an index")]
    Foreign,
    /// The index has another version of the format.
    #[error("index has version {0}, not {OLDEST_VERSION} or {VERSION}")]
    Version(u32),
    /// The index is shorter or longer than its header declares.
    #[error("index has {actual} bytes, but its header declares {declared}")]
    Length {
        /// The length of the file in bytes.
        actual: u64,
        /// The length in the header.
        declared: u64,
    },
    /// The checksum does not match.
    #[error("index checksum does not match")]
    Checksum,
    /// The index belongs to another layer.
    #[error("index belongs to layer {0}")]
    OtherLayer(LayerDigest),
    /// The seekable file is missing or too short.
    #[error("seekable file has {actual} bytes, but the index declares {declared}")]
    Seekable {
        /// The length of the file in bytes; 0 if it is missing.
        actual: u64,
        /// The length in the index.
        declared: u64,
    },
    /// A record contradicts another one.
    #[error("index is inconsistent: {record} {ordinal}")]
    Inconsistent {
        /// The kind of the record.
        record: &'static str,
        /// The ordinal of the record.
        ordinal: usize,
    },
}

impl IndexError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(_) => ErrorCode::Io,
            Self::Foreign
            | Self::Version(_)
            | Self::Length { .. }
            | Self::Checksum
            | Self::OtherLayer(_)
            | Self::Seekable { .. }
            | Self::Inconsistent { .. } => ErrorCode::Index,
        }
    }
}

/// A validated index, over bytes in memory or a mapped file.
#[derive(Debug)]
pub struct Index<D> {
    data: D,
    version: u32,
    sections: [Range<usize>; SECTIONS],
    codec: Codec,
    layer: LayerDigest,
    diff_id: DiffId,
    blob_size: u64,
    tar_size: u64,
    seekable_size: u64,
}

/// Maps and validates the index file of a layer.
///
/// # Errors
/// The file is not a valid index of this layer.
pub fn open_file(file: &File, layer: &LayerDigest) -> Result<Index<Mmap>, IndexError> {
    // SAFETY: The store writes an index under a temporary name and renames it. Nothing writes to it afterwards, so the bytes do
    // not change. Only the owner of the store can truncate the file by hand; a lookup then raises SIGBUS and ends the process.
    #[expect(unsafe_code, reason = "mapping a file")]
    let map = unsafe { Mmap::map(file) }?;
    let index = Index::open(map)?;
    if index.layer() != layer {
        return Err(IndexError::OtherLayer(*index.layer()));
    }
    Ok(index)
}

pub(super) fn is_readable(version: u32) -> bool {
    (OLDEST_VERSION..=VERSION).contains(&version)
}

impl<D: AsRef<[u8]>> Index<D> {
    /// Validates `data` as an index. Lookups in a validated index never panic.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn open(data: D) -> Result<Self, IndexError> {
        let bytes = data.as_ref();
        if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC {
            return Err(IndexError::Foreign);
        }
        let version = u32_at(bytes, 8);
        if !is_readable(version) {
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
            version,
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

    pub(super) fn section(&self, section: Section) -> &[u8] {
        &self.data.as_ref()[self.sections[section as usize].clone()]
    }

    pub(super) fn count(&self, section: Section, length: usize) -> usize {
        self.sections[section as usize].len() / length
    }

    pub(super) fn checked_text(&self, at: u32) -> Option<&[u8]> {
        let texts = self.section(Section::Texts).get(at as usize..)?;
        let length = u16_at(texts.get(..2)?, 0);
        texts.get(2..2 + usize::from(length))
    }

    fn text(&self, at: u32) -> &[u8] {
        self.checked_text(at).expect("texts were validated at open")
    }

    pub(super) fn name_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::Entries), ordinal, ENTRY_LEN), 4)
    }

    pub(super) fn dir_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::Dirs), ordinal, 4), 0)
    }

    pub(super) fn xattr_set_end(&self, ordinal: usize) -> u32 {
        u32_at(record(self.section(Section::XattrSets), ordinal, 4), 0)
    }

    /// Returns the size, the offset of the content, the first segment and the number of segments of an extent.
    pub(super) fn extent(&self, ordinal: usize) -> (u64, u64, u32, u32) {
        let bytes = record(self.section(Section::Extents), ordinal, EXTENT_LEN);
        (u64_at(bytes, 0), u64_at(bytes, 8), u32_at(bytes, 16), u32_at(bytes, 20))
    }

    /// Returns the offset in the file, the offset in the tar and the length of a segment.
    pub(super) fn segment(&self, ordinal: usize) -> (u64, u64, u64) {
        let bytes = record(self.section(Section::Segments), ordinal, SEGMENT_LEN);
        (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16))
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the index has an older version than [`VERSION`]: it can be read, but lacks the hashes of its spans, and should be
    /// rebuilt when there is time.
    pub fn is_outdated(&self) -> bool {
        self.version < VERSION
    }

    pub(super) fn group(&self, ordinal: u32) -> GroupRecord {
        let bytes = record(self.section(Section::Groups), ordinal as usize, GROUP_LEN);
        let start = usize::try_from(u64_at(bytes, 0)).expect("groups were validated at open");
        GroupRecord { heap: start..start + u32_at(bytes, 8) as usize, raw_len: u32_at(bytes, 12) as usize }
    }

    pub(super) fn window_heap(&self, group: &GroupRecord) -> &[u8] {
        &self.section(Section::Windows)[group.heap.clone()]
    }

    /// The digest of the layer's blob.
    pub fn layer(&self) -> &LayerDigest {
        &self.layer
    }

    /// The digest of the layer's tar.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// The compression of the blob.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The length of the blob in bytes.
    pub fn blob_size(&self) -> u64 {
        self.blob_size
    }

    /// The length of the tar in bytes.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// The length of the seekable file in bytes; 0 if the layer needs none.
    pub fn seekable_size(&self) -> u64 {
        self.seekable_size
    }

    /// The length of the index file in bytes.
    pub fn file_size(&self) -> u64 {
        self.data.as_ref().len() as u64
    }

    /// The length of each section in bytes, for `inspect`.
    pub fn section_sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.sections.iter().map(ExactSizeIterator::len)
    }

    /// The number of entries, without markers.
    pub fn len(&self) -> usize {
        self.count(Section::Entries, ENTRY_LEN)
    }

    /// Whether the layer has no entries (it may still have markers).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `id` is an entry of this layer. Check IDs from outside, such as inode numbers, here first.
    pub fn contains(&self, id: EntryId) -> bool {
        id.index() < self.len()
    }

    /// Returns an entry.
    ///
    /// # Panics
    /// `id` is not an entry of this layer; see [`Index::contains`].
    pub fn entry(&self, id: EntryId) -> Entry<'_> {
        let ordinal = id.index();
        let bytes = record(self.section(Section::Entries), ordinal, ENTRY_LEN);
        let attr = record(self.section(Section::Attrs), u32_at(bytes, 8) as usize, ATTR_LEN);
        let attr = attr_of(attr).expect("attributes were validated at open");
        let payload = u32_at(bytes, 16);
        let kind = match attr.kind {
            KindByte::Directory => IndexedKind::Directory,
            KindByte::Regular => IndexedKind::Regular { size: payload.into() },
            KindByte::Extended => IndexedKind::Regular { size: self.extent(payload as usize).0 },
            KindByte::Symlink => IndexedKind::Symlink { target: self.text(payload) },
            KindByte::Hardlink => IndexedKind::Hardlink { target: self.text(payload) },
            KindByte::CharDevice => {
                IndexedKind::CharDevice { major: payload >> 20, minor: payload & 0xf_ffff }
            }
            KindByte::BlockDevice => {
                IndexedKind::BlockDevice { major: payload >> 20, minor: payload & 0xf_ffff }
            }
            KindByte::Fifo => IndexedKind::Fifo,
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
            set: xattrs,
            header: u64::from(u32_at(bytes, 12)) * TAR_BLOCK,
            extent: (attr.kind == KindByte::Extended).then_some(payload),
        }
    }

    /// All entries in the order of the tar.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (EntryId, Entry<'_>)> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`validate` checks that ordinals fit into 32 bits"
        )]
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

    /// Directories whose content in the layers below is hidden by this layer's opaque markers. The root is the empty path.
    pub fn opaques(&self) -> impl Iterator<Item = &[u8]> {
        self.markers(1)
    }

    /// The number of whiteouts and opaque markers.
    pub fn marker_count(&self) -> usize {
        self.count(Section::Markers, 8)
    }

    /// The number of names that `id` has within this layer.
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
}
