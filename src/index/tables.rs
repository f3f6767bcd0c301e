//! Collects the entries of a layer in the sections of its index: names and paths, attributes, links, extents, xattrs.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::format::{ENTRY_LEN, KindByte, NO_XATTRS, NOT_SPARSE, SECTIONS, Section, TAR_BLOCK};
use super::is_hidden;
use crate::layer::{EntryKind, FileContent, LayerPath, MemberName, TarEntry, Xattrs};

/// Maximum number of bytes that the entries of one layer may take in its index. An entry takes some 60, so the limit allows
/// more than eight million entries, four times as many as the largest images have. A build holds up to four copies of parts of
/// the index (keys for deduplication, the assembled file), so this limits its memory to 2 GiB for any layer: a blob of a few
/// megabytes can contain a path of 4 KiB for each of a million entries.
pub const TABLES_MAX: usize = 512 << 20;

/// An attribute record before it is written. Equal records are written once.
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

/// All sections of an index except its spans.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) sections: [Vec<u8>; SECTIONS],
    dirs: HashMap<Box<[u8]>, u32>,
    last_dir: Option<(Box<[u8]>, u32)>,
    attrs: HashMap<AttrKey, u32>,
    xattr_sets: HashMap<Vec<u8>, u32>,
    entries: u32,
    extents: u32,
    segments: u32,
    /// The hard links: entry, and offset of the target in the texts.
    hardlinks: Vec<(u32, u32)>,
}

impl Tables {
    pub(super) fn section(&mut self, section: Section) -> &mut Vec<u8> {
        &mut self.sections[section as usize]
    }

    pub(super) fn put(&mut self, section: Section, fields: &[u32]) {
        let bytes = self.section(section);
        fields.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    }

    /// Adds an entry or a marker. An error names the quantity that exceeds its limit.
    pub(super) fn add(&mut self, entry: &TarEntry) -> Result<(), &'static str> {
        match &entry.member {
            MemberName::Whiteout(path) => self.marker(path.as_bytes(), 0).ok_or("text")?,
            MemberName::Opaque(path) => self.marker(path.as_bytes(), 1).ok_or("text")?,
            MemberName::Dropped => {}
            MemberName::Plain(path) | MemberName::Hidden(path) => self.add_plain(path, entry)?,
        }
        let size: usize = self.sections.iter().map(Vec::len).sum();
        if size > TABLES_MAX { Err("metadata of all entries together (512 MiB)") } else { Ok(()) }
    }

    fn add_plain(&mut self, path: &LayerPath, entry: &TarEntry) -> Result<(), &'static str> {
        let dir = self.dir(path.parent()).ok_or("directory")?;
        let block = u32::try_from(entry.offset.get() / TAR_BLOCK).map_err(|_| "tar")?;
        let (kind, payload) = match &entry.kind {
            EntryKind::Directory => (KindByte::Directory, 0),
            EntryKind::Regular { size, content: FileContent::Contiguous(start) }
                if start.get() == (u64::from(block) + 1) * TAR_BLOCK && u32::try_from(*size).is_ok() =>
            {
                (KindByte::Regular, u32::try_from(*size).map_err(|_| "size")?)
            }
            EntryKind::Regular { size, content } => {
                (KindByte::Extended, self.extent(*size, content).ok_or("sparse map")?)
            }
            EntryKind::Symlink { target } => (KindByte::Symlink, self.text(target).ok_or("link target")?),
            EntryKind::Hardlink { target } => {
                if is_hidden(target.as_bytes()) {
                    // Shows the reader that the index contains the hidden files of the layer, see `validate`.
                    self.dir(target.parent()).ok_or("directory")?;
                }
                let text = self.text(target.as_bytes()).ok_or("link target")?;
                self.hardlinks.push((self.entries, text));
                (KindByte::Hardlink, text)
            }
            EntryKind::CharDevice { major, minor } => {
                (KindByte::CharDevice, device(*major, *minor).ok_or("device number")?)
            }
            EntryKind::BlockDevice { major, minor } => {
                (KindByte::BlockDevice, device(*major, *minor).ok_or("device number")?)
            }
            EntryKind::Fifo => (KindByte::Fifo, 0),
        };
        let xattrs = self.xattr_set(&entry.xattrs).ok_or("extended attributes")?;
        let (sec, nsec) = (entry.mtime.sec, entry.mtime.nsec);
        let attr =
            self.attr(AttrKey { kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, sec, nsec, xattrs });
        self.section(Section::Names).extend_from_slice(path.file_name());
        let name_end = u32::try_from(self.section(Section::Names).len()).map_err(|_| "name")?;
        self.put(Section::Entries, &[dir, name_end, attr, block, payload]);
        self.entries = self.entries.checked_add(1).filter(|&count| count < u32::MAX).ok_or("entry")?;
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

    fn extent(&mut self, size: u64, content: &FileContent) -> Option<u32> {
        let (start, first, count) = match content {
            FileContent::Contiguous(start) => (start.get(), 0, NOT_SPARSE),
            FileContent::Sparse(segments) => {
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
        let ordinal =
            u32::try_from(self.attrs.len()).expect("there are at most as many attributes as entries");
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

    /// Counts links, and frees the maps that were needed for deduplication. The caller must call this after the last `add`.
    pub(super) fn close(&mut self) {
        self.count_links();
        self.hardlinks = Vec::new();
        (self.dirs, self.attrs, self.xattr_sets) = Default::default();
    }

    /// Counts the names of entries within the layer, by path. If the layer has symlinks or duplicate entries, the count of the
    /// merge can differ. The file then has its own inode number in the image, which is slower but never wrong.
    fn count_links(&mut self) {
        if self.hardlinks.is_empty() {
            return;
        }
        let (names, texts) =
            (&self.sections[Section::Names as usize], &self.sections[Section::Texts as usize]);
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        // Represent a path as the ordinal of its directory and a name: a whole path can take 4 KiB for each link.
        let target = |text: u32| -> Option<(u32, &[u8])> {
            let (length, text) = texts[text as usize..].split_at(2);
            let path = &text[..usize::from(u16::from_le_bytes([length[0], length[1]]))];
            let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&path[..slash], &path[slash + 1..]),
                None => (&[][..], path),
            };
            Some((*self.dirs.get(dir)?, name))
        };
        let targets: HashSet<(u32, &[u8])> =
            self.hardlinks.iter().filter_map(|(_, text)| target(*text)).collect();
        // The latest entry at each path that is a link or the target of a link.
        let mut entry_of: HashMap<(u32, &[u8]), u32> = HashMap::new();
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        let mut links = self.hardlinks.iter().peekable();
        let mut name_start = 0;
        let records = self.sections[Section::Entries as usize].chunks_exact(ENTRY_LEN);
        for (ordinal, fields) in (0u32..).zip(records) {
            let name_end = number(&fields[4..]) as usize;
            let path = (number(fields), &names[name_start..name_end]);
            name_start = name_end;
            match links.peek() {
                Some((link, text)) if *link == ordinal => {
                    if let Some(&entry) = target(*text).and_then(|target| entry_of.get(&target)) {
                        *counts.entry(entry).or_insert(1) += 1;
                        entry_of.insert(path, entry);
                    }
                    links.next();
                }
                _ if targets.contains(&path) => {
                    entry_of.insert(path, ordinal);
                }
                _ => {}
            }
        }
        let fields: Vec<u32> = counts.into_iter().flat_map(|(entry, count)| [entry, count]).collect();
        self.put(Section::Links, &fields);
    }
}

/// Packs a device number as the kernel does (`include/linux/kdev_t.h`, `MKDEV`).
fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(major << 20 | minor)
}
