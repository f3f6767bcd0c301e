//! Makes a layer's index in one pass over its blob.
//!
//! The blob is pulled through as spans; each span's bytes go to the tar walk, the CRC and the diffID's hash (on a thread of
//! its own) and are then dropped. What stays in memory grows with the number of entries and, through [`thin`], with no more
//! than the size budget of the windows.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use sha2::Digest as _;

use super::format::{
    CHECKED_FROM, HEADER_LEN, KindByte, MAGIC, NO_BLOCK, NO_WINDOW, NO_XATTRS, NOT_SPARSE, SECTIONS, Section,
    SpanKind, TAR_BLOCK, VERSION,
};
use super::thin::{Draft, thin};
use super::windows::Groups;
use crate::image::{DiffId, Digest, LayerDigest};
use crate::layer::name::Member;
use crate::layer::tar::{Content, EntryKind, TarEntry, TarError, Walk, Xattrs};
use crate::layer::{Checkpoint, Codec, LayerError, SpanDecoder, SpanLimits, TarOffset};

/// Longest span, in bytes of tar, that thinning makes.
pub const SPAN_MAX: u64 = 1 << 20;
/// What an index should take at most of its blob: one part in this many.
const BUDGET_PART: u64 = 100;
/// What windows may take even where the entries alone use up the budget: one part in this many of the blob. At spans of
/// [`SPAN_MAX`] real layers stay below.
const WINDOWS_PART: u64 = 250;
/// Windows held in memory before thinning starts ahead of the end, in bytes.
const WINDOWS_IN_MEMORY: u64 = 64 << 20;
/// Level of the frames of the seekable file: fast to make, and as fast to decode as any other.
const SEEKABLE_LEVEL: i32 = 3;
/// Spans on their way to the hash thread.
const HASH_QUEUE: usize = 4;

/// Why a layer has no index.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The blob is not what a layer can be: decoding it.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The tar in it.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Writing the seekable form.
    #[error("seekable form of the layer")]
    Seekable(#[source] io::Error),
    /// A limit of the format.
    #[error("entry at offset {offset} of the tar: {what} is beyond what an index holds")]
    TooLarge {
        /// The entry's header.
        offset: TarOffset,
        /// What there is too much of.
        what: &'static str,
    },
    /// What was built does not pass as an index: a defect of this program, or of the disk between.
    #[error("index that was just built")]
    Unusable(#[source] super::IndexError),
    /// Compressing windows.
    #[error("compressing checkpoints")]
    Windows(#[source] io::Error),
}

/// How an index is built.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// How long spans are before thinning.
    pub limits: SpanLimits,
    /// Whether checkpoints are dropped to meet the size goal. Tests keep them all.
    pub thin: bool,
}

impl Default for Build {
    fn default() -> Self {
        Self { limits: SpanLimits::PRODUCTION, thin: true }
    }
}

/// An index, but for the digest of its blob.
#[derive(Debug)]
pub struct Built {
    codec: Codec,
    diff_id: DiffId,
    blob_size: u64,
    tar_size: u64,
    seekable_size: u64,
    drafts: Vec<Draft>,
    tables: Tables,
    thin: bool,
}

/// Reads a layer's blob to its end and makes its index.
///
/// `seekable` opens the file for what cannot be decoded from the blob in pieces; it is called when the first such frame
/// shows up, and the writer comes back with the result, for the caller to commit.
///
/// # Errors
/// Whatever is wrong with the layer, with its place; I/O errors of `input` and of the seekable file.
pub fn build<R: BufRead, W: Write>(
    input: R,
    options: &Build,
    seekable: impl FnOnce() -> io::Result<W>,
) -> Result<(Built, Option<W>), BuildError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Arc<Vec<u8>>>(HASH_QUEUE);
        let hash = scope.spawn(move || {
            let mut sha256 = sha2::Sha256::new();
            receiver.iter().for_each(|bytes| sha256.update(bytes.as_slice()));
            Digest::new(sha256.finalize().into())
        });
        let decoder = SpanDecoder::new(Counted { input, count: 0 }, options.limits)?;
        let mut stream = SpanStream {
            decoder,
            options: *options,
            current: Arc::default(),
            retired: VecDeque::new(),
            at: 0,
            drafts: Vec::new(),
            windows: 0,
            tar_end: 0,
            seekable_end: 0,
            open_seekable: Some(seekable),
            seekable: None,
            hash: sender,
            failed: None,
        };
        let mut tables = Tables::default();
        let walked = walk(&mut stream, &mut tables);
        if let Some(error) = stream.failed.take() {
            return Err(error);
        }
        walked?;
        let SpanStream { decoder, drafts, tar_end, seekable_end, mut seekable, hash: sender, .. } = stream;
        drop(sender);
        let diff_id = DiffId::new(hash.join().expect("hashing does not panic"));
        if let Some(writer) = &mut seekable {
            writer.flush().map_err(BuildError::Seekable)?;
        }
        tables.count_links();
        let codec = decoder.codec();
        let built = Built {
            codec,
            diff_id,
            blob_size: decoder.into_inner().count,
            tar_size: tar_end,
            seekable_size: seekable_end,
            drafts,
            tables,
            thin: options.thin,
        };
        Ok((built, seekable))
    })
}

fn walk<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>>(
    stream: &mut SpanStream<R, W, F>,
    tables: &mut Tables,
) -> Result<(), BuildError> {
    let mut walk = Walk::new(&mut *stream);
    while let Some(entry) = walk.next_entry()? {
        tables.add(entry)?;
    }
    // What stands behind the end blocks is ignored, but it belongs to the blob and to the diffID.
    while stream.fill()? {
        stream.at = stream.current.len();
    }
    Ok(())
}

/// Counts what is read of the blob.
#[derive(Debug)]
struct Counted<R> {
    input: R,
    count: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(out)?;
        self.count += length as u64;
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.input.consume(amount);
    }
}

/// The tar as a stream; pulling at it makes spans.
struct SpanStream<R: BufRead, W, F> {
    decoder: SpanDecoder<Counted<R>>,
    options: Build,
    current: Arc<Vec<u8>>,
    /// Spans that the hash thread may still have.
    retired: VecDeque<Arc<Vec<u8>>>,
    at: usize,
    drafts: Vec<Draft>,
    windows: u64,
    tar_end: u64,
    seekable_end: u64,
    open_seekable: Option<F>,
    seekable: Option<W>,
    hash: SyncSender<Arc<Vec<u8>>>,
    /// What a `Read` cannot say: the walk sees a plain I/O error in its place.
    failed: Option<BuildError>,
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> SpanStream<R, W, F> {
    /// Makes sure that there are bytes to read; false at the end of the tar.
    fn fill(&mut self) -> Result<bool, BuildError> {
        if self.at < self.current.len() {
            return Ok(true);
        }
        let Some(span) = self.decoder.next_span()? else { return Ok(false) };
        let data = match span.checkpoint {
            Some(_) => span.blob,
            None => self.keep(&span.bytes).map_err(BuildError::Seekable)?,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&span.bytes);
        let tar_len = span.bytes.len() as u64;
        let draft = Draft { tar: self.tar_end, tar_len, data, crc, checkpoint: span.checkpoint };
        self.tar_end += tar_len;
        self.windows += draft.cost();
        self.drafts.push(draft);
        if self.options.thin && self.windows > WINDOWS_IN_MEMORY {
            self.drafts = thin(std::mem::take(&mut self.drafts), WINDOWS_IN_MEMORY / 2);
            self.windows = self.drafts.iter().map(Draft::cost).sum();
        }
        self.retired.push_back(std::mem::replace(&mut self.current, Arc::new(span.bytes)));
        if self.retired.len() > HASH_QUEUE + 1
            && let Some(bytes) = self.retired.pop_front().and_then(Arc::into_inner)
        {
            self.decoder.recycle(bytes);
        }
        self.at = 0;
        // The receiver lives until this sender is dropped.
        let _ = self.hash.send(Arc::clone(&self.current));
        Ok(true)
    }

    /// Writes a span into the seekable file.
    fn keep(&mut self, bytes: &[u8]) -> io::Result<std::ops::Range<u64>> {
        if let Some(open) = self.open_seekable.take() {
            self.seekable = Some(open()?);
        }
        let writer = self.seekable.as_mut().ok_or_else(|| io::Error::other("was not opened"))?;
        let frame = zstd::bulk::compress(bytes, SEEKABLE_LEVEL)?;
        writer.write_all(&frame)?;
        let start = self.seekable_end;
        self.seekable_end += frame.len() as u64;
        Ok(start..self.seekable_end)
    }
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> Read for SpanStream<R, W, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead, W: Write, F: FnOnce() -> io::Result<W>> BufRead for SpanStream<R, W, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.fill() {
            Ok(_) => Ok(&self.current[self.at..]),
            Err(error) => {
                let message = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(message))
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

/// An attribute record before it is written; equal ones are written once.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AttrKey {
    kind: KindByte,
    mode: u16,
    uid: u32,
    gid: u32,
    sec: i64,
    nsec: u32,
    xattrs: u32,
}

/// Everything of the index but its spans.
#[derive(Debug, Default)]
struct Tables {
    sections: [Vec<u8>; SECTIONS],
    dirs: HashMap<Box<[u8]>, u32>,
    last_dir: Option<(Box<[u8]>, u32)>,
    attrs: HashMap<AttrKey, u32>,
    xattr_sets: HashMap<Vec<u8>, u32>,
    entries: u32,
    extents: u32,
    segments: u32,
    hardlinks: Vec<(u32, Box<[u8]>)>,
}

impl Tables {
    fn section(&mut self, section: Section) -> &mut Vec<u8> {
        &mut self.sections[section as usize]
    }

    fn put(&mut self, section: Section, fields: &[u32]) {
        let bytes = self.section(section);
        fields.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    }

    fn add(&mut self, entry: TarEntry) -> Result<(), BuildError> {
        let offset = entry.offset;
        let too_large = |what| BuildError::TooLarge { offset, what };
        let path = match entry.member {
            Member::Whiteout(path) => return self.marker(path.as_bytes(), 0).ok_or(too_large("text")),
            Member::Opaque(path) => return self.marker(path.as_bytes(), 1).ok_or(too_large("text")),
            Member::Dropped => return Ok(()),
            Member::Plain(path) => path,
        };
        let dir = self.dir(path.parent()).ok_or(too_large("directory"))?;
        let block = u32::try_from(offset.get() / TAR_BLOCK).map_err(|_| too_large("tar"))?;
        let (kind, payload) = match entry.kind {
            EntryKind::Directory => (KindByte::Directory, 0),
            EntryKind::Regular { size, content: Content::Contiguous(start) }
                if start.get() == (u64::from(block) + 1) * TAR_BLOCK && u32::try_from(size).is_ok() =>
            {
                (KindByte::Regular, u32::try_from(size).map_err(|_| too_large("size"))?)
            }
            EntryKind::Regular { size, content } => {
                (KindByte::Extended, self.extent(size, &content).ok_or(too_large("sparse map"))?)
            }
            EntryKind::Symlink { target } => {
                (KindByte::Symlink, self.text(&target).ok_or(too_large("link target"))?)
            }
            EntryKind::Hardlink { target } => {
                let text = self.text(target.as_bytes()).ok_or(too_large("link target"))?;
                self.hardlinks.push((self.entries, target.as_bytes().into()));
                (KindByte::Hardlink, text)
            }
            EntryKind::CharDevice { major, minor } => {
                (KindByte::CharDevice, device(major, minor).ok_or(too_large("device number"))?)
            }
            EntryKind::BlockDevice { major, minor } => {
                (KindByte::BlockDevice, device(major, minor).ok_or(too_large("device number"))?)
            }
            EntryKind::Fifo => (KindByte::Fifo, 0),
        };
        let xattrs = self.xattr_set(&entry.xattrs).ok_or(too_large("extended attributes"))?;
        let (sec, nsec) = (entry.mtime.sec, entry.mtime.nsec);
        let attr =
            self.attr(AttrKey { kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, sec, nsec, xattrs });
        self.section(Section::Names).extend_from_slice(path.file_name());
        let name_end = u32::try_from(self.section(Section::Names).len()).map_err(|_| too_large("name"))?;
        self.put(Section::Entries, &[dir, name_end, attr, block, payload]);
        self.entries =
            self.entries.checked_add(1).filter(|&count| count < u32::MAX).ok_or(too_large("entry"))?;
        Ok(())
    }

    fn marker(&mut self, path: &[u8], opaque: u32) -> Option<()> {
        let text = self.text(path)?;
        self.put(Section::Markers, &[text, opaque]);
        Some(())
    }

    fn dir(&mut self, path: &[u8]) -> Option<u32> {
        if let Some((last, ordinal)) = &self.last_dir
            && **last == *path
        {
            return Some(*ordinal);
        }
        let ordinal = match self.dirs.get(path) {
            Some(&ordinal) => ordinal,
            None => {
                let ordinal = u32::try_from(self.dirs.len()).ok()?;
                self.section(Section::Paths).extend_from_slice(path);
                let end = u32::try_from(self.section(Section::Paths).len()).ok()?;
                self.put(Section::Dirs, &[end]);
                self.dirs.insert(path.into(), ordinal);
                ordinal
            }
        };
        self.last_dir = Some((path.into(), ordinal));
        Some(ordinal)
    }

    fn text(&mut self, text: &[u8]) -> Option<u32> {
        let at = u32::try_from(self.section(Section::Texts).len()).ok()?;
        let length = u16::try_from(text.len()).ok()?;
        self.section(Section::Texts).extend_from_slice(&length.to_le_bytes());
        self.section(Section::Texts).extend_from_slice(text);
        Some(at)
    }

    fn extent(&mut self, size: u64, content: &Content) -> Option<u32> {
        let (start, first, count) = match content {
            Content::Contiguous(start) => (start.get(), 0, NOT_SPARSE),
            Content::Sparse(segments) => {
                let first = self.segments;
                for segment in segments {
                    for field in [segment.logical, segment.tar.get(), segment.len] {
                        self.section(Section::Segments).extend_from_slice(&field.to_le_bytes());
                    }
                }
                let count = u32::try_from(segments.len()).ok().filter(|&count| count != NOT_SPARSE)?;
                self.segments = self.segments.checked_add(count)?;
                (0, first, count)
            }
        };
        let extents = self.section(Section::Extents);
        extents.extend_from_slice(&size.to_le_bytes());
        extents.extend_from_slice(&start.to_le_bytes());
        self.put(Section::Extents, &[first, count]);
        self.extents = self.extents.checked_add(1)?;
        Some(self.extents - 1)
    }

    fn xattr_set(&mut self, xattrs: &Xattrs) -> Option<u32> {
        if xattrs.is_empty() {
            return Some(NO_XATTRS);
        }
        let mut sorted: Vec<_> = xattrs.iter().collect();
        sorted.sort();
        let mut set = Vec::new();
        for (name, value) in sorted {
            set.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
            set.extend_from_slice(value);
        }
        if let Some(&ordinal) = self.xattr_sets.get(&set) {
            return Some(ordinal);
        }
        let ordinal = u32::try_from(self.xattr_sets.len()).ok().filter(|&ordinal| ordinal != NO_XATTRS)?;
        self.section(Section::Xattrs).extend_from_slice(&set);
        let end = u32::try_from(self.section(Section::Xattrs).len()).ok()?;
        self.put(Section::XattrSets, &[end]);
        self.xattr_sets.insert(set, ordinal);
        Some(ordinal)
    }

    fn attr(&mut self, key: AttrKey) -> u32 {
        if let Some(&ordinal) = self.attrs.get(&key) {
            return ordinal;
        }
        let ordinal = u32::try_from(self.attrs.len()).expect("no more attributes than entries");
        let bytes = self.section(Section::Attrs);
        bytes.extend_from_slice(&[key.kind as u8, 0]);
        bytes.extend_from_slice(&key.mode.to_le_bytes());
        bytes.extend_from_slice(&key.uid.to_le_bytes());
        bytes.extend_from_slice(&key.gid.to_le_bytes());
        bytes.extend_from_slice(&key.nsec.to_le_bytes());
        bytes.extend_from_slice(&key.sec.to_le_bytes());
        bytes.extend_from_slice(&key.xattrs.to_le_bytes());
        self.attrs.insert(key, ordinal);
        ordinal
    }

    /// Counts the names of entries within the layer, by path. Where the layer's own symlinks or duplicates make the merge
    /// see it otherwise, the two counts differ and the image numbers the file itself: slower, never wrong.
    fn count_links(&mut self) {
        if self.hardlinks.is_empty() {
            return;
        }
        let ends = |bytes: &[u8]| -> Vec<usize> {
            bytes
                .chunks_exact(4)
                .map(|end| u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize)
                .collect()
        };
        let dirs = ends(&self.sections[Section::Dirs as usize]);
        let paths = &self.sections[Section::Paths as usize];
        let names = &self.sections[Section::Names as usize];
        let wanted: std::collections::HashSet<&[u8]> =
            self.hardlinks.iter().map(|(_, target)| &**target).collect();
        // Latest entry of each path that is linked to, and of each link.
        let mut entry_of: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut counts: std::collections::BTreeMap<u32, u32> = std::collections::BTreeMap::new();
        let mut links = self.hardlinks.iter().peekable();
        let mut name_start = 0;
        let records = self.sections[Section::Entries as usize].chunks_exact(super::format::ENTRY_LEN);
        for (ordinal, fields) in (0u32..).zip(records) {
            let fields = ends(&fields[..8]);
            let (dir, name_end) = (fields[0], fields[1]);
            let name = &names[name_start..name_end];
            name_start = name_end;
            let dir = &paths[if dir == 0 { 0 } else { dirs[dir - 1] }..dirs[dir]];
            let path = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
            match links.peek() {
                Some((link, target)) if *link == ordinal => {
                    if let Some(&entry) = entry_of.get(&**target) {
                        *counts.entry(entry).or_insert(1) += 1;
                        entry_of.insert(path, entry);
                    }
                    links.next();
                }
                _ if wanted.contains(path.as_slice()) => {
                    entry_of.insert(path, ordinal);
                }
                _ => {}
            }
        }
        let fields: Vec<u32> = counts.into_iter().flat_map(|(entry, count)| [entry, count]).collect();
        self.put(Section::Links, &fields);
    }
}

/// A device number as the kernel packs it (`include/linux/kdev_t.h`, `MKDEV`).
fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(major << 20 | minor)
}

impl Built {
    /// Digest of the tar.
    #[must_use]
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// Bytes of the blob.
    #[must_use]
    pub fn blob_size(&self) -> u64 {
        self.blob_size
    }

    /// Bytes of the tar.
    #[must_use]
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Bytes of the seekable file.
    #[must_use]
    pub fn seekable_size(&self) -> u64 {
        self.seekable_size
    }

    /// How the blob is compressed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The index file of the layer, once its blob's digest is known.
    ///
    /// # Errors
    /// Compressing the windows, for want of memory.
    pub fn finish(self, layer: &LayerDigest) -> Result<Vec<u8>, BuildError> {
        let Self {
            codec,
            diff_id,
            blob_size,
            tar_size,
            seekable_size,
            mut drafts,
            mut tables,
            thin: thinning,
        } = self;
        let entries: u64 = tables.sections.iter().map(|section| section.len() as u64).sum();
        if thinning {
            let budget = (blob_size / BUDGET_PART).saturating_sub(entries).max(blob_size / WINDOWS_PART);
            drafts = thin(drafts, budget);
        }
        let mut groups = Groups::default();
        for draft in &drafts {
            let span = span_record(draft, &mut groups).map_err(BuildError::Windows)?;
            tables.section(Section::Spans).extend_from_slice(&span);
        }
        groups.close().map_err(BuildError::Windows)?;
        for (offset, length, raw_len) in &groups.records {
            tables.section(Section::Groups).extend_from_slice(&offset.to_le_bytes());
            tables.put(Section::Groups, &[*length, *raw_len]);
        }
        *tables.section(Section::Windows) = groups.heap;

        let mut file = Vec::with_capacity(HEADER_LEN);
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.extend_from_slice(&[codec as u8, 0, 0, 0]);
        file.extend_from_slice(&[0; 32]);
        file.extend_from_slice(layer.digest().as_bytes());
        file.extend_from_slice(diff_id.digest().as_bytes());
        for size in [blob_size, tar_size, seekable_size] {
            file.extend_from_slice(&size.to_le_bytes());
        }
        for section in &tables.sections {
            file.extend_from_slice(&(section.len() as u64).to_le_bytes());
        }
        debug_assert_eq!(file.len(), HEADER_LEN);
        for section in &tables.sections {
            file.extend_from_slice(section);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        let checksum = Digest::of(&file[CHECKED_FROM..]);
        file[16..CHECKED_FROM].copy_from_slice(checksum.as_bytes());
        Ok(file)
    }
}

fn span_record(draft: &Draft, groups: &mut Groups) -> io::Result<[u8; super::format::SPAN_LEN]> {
    let (mut skip, mut header, mut place) = (0, (0, NO_BLOCK, 0), (NO_WINDOW, 0));
    let kind = match &draft.checkpoint {
        Some(Checkpoint::Stored) => SpanKind::Stored,
        Some(Checkpoint::GzipMember) => SpanKind::GzipMember,
        Some(Checkpoint::ZstdFrame) => SpanKind::ZstdFrame,
        None => SpanKind::Seekable,
        Some(Checkpoint::Deflate { skip_bits, block, window }) => {
            skip = *skip_bits;
            if let Some(block) = block {
                header = (block.bits, block.start_bit, block.stored_before);
            }
            if !window.runs.is_empty() {
                place = groups.push(window)?;
            }
            SpanKind::Deflate
        }
    };
    let mut record = [0; super::format::SPAN_LEN];
    record[..8].copy_from_slice(&draft.tar.to_le_bytes());
    record[8..16].copy_from_slice(&draft.data.start.to_le_bytes());
    record[16..24].copy_from_slice(&(draft.data.end - draft.data.start).to_le_bytes());
    record[24..28].copy_from_slice(&draft.crc.clone().finalize().to_le_bytes());
    record[28] = kind as u8;
    record[29] = skip;
    record[30..32].copy_from_slice(&place.1.to_le_bytes());
    record[32..36].copy_from_slice(&place.0.to_le_bytes());
    record[36..40].copy_from_slice(&header.0.to_le_bytes());
    record[40..48].copy_from_slice(&header.1.to_le_bytes());
    record[48..50].copy_from_slice(&header.2.to_le_bytes());
    Ok(record)
}
