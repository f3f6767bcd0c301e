//! Walks over a tar in one pass, front to back. Skips content without inspecting it.

use std::io::{self, BufRead};

use super::entry_values::{device, field, owner, symlink_target};
use super::header::{HeaderFormat, TarHeader, text};
use super::pax::{PaxHeader, SparseRecords};
use super::sparse::{SparseLineMap, SparseMap};
use super::{
    BLOCK, EntryKind, FileContent, MAX_EXTENSIONS, MAX_LONG_NAME, MAX_PAX, TarEntry, TarError, TarFault,
    Timestamp,
};
use crate::layer::TarOffset;
use crate::layer::name::{LayerPath, MemberName};

/// Reads a tar's entries from a stream.
#[derive(Debug)]
pub struct TarWalk<R> {
    input: R,
    /// Number of bytes consumed.
    position: u64,
    state: WalkState,
    /// The values of all global PAX headers read so far.
    global: PaxHeader,
    /// Position of the last header block, for errors.
    header_at: u64,
    /// Name of the current member, if known, for errors.
    name: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WalkState {
    Reading,
    Ended,
    Failed,
}

/// The extension headers before an entry.
#[derive(Debug, Default)]
struct ExtensionHeaders {
    count: u32,
    /// Whether one of them applies to the next entry, so that an entry must follow.
    pending: bool,
    pax: PaxHeader,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> TarWalk<R> {
    /// Starts at the first block of a tar.
    pub fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            state: WalkState::Reading,
            global: PaxHeader::default(),
            header_at: 0,
            name: None,
        }
    }

    /// The current position: after the last entry's content, or after the end blocks once the walk has ended.
    pub fn position(&self) -> TarOffset {
        TarOffset::new(self.position)
    }

    /// Returns the stream. The walk does not read the bytes after the end blocks.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads the next entry or marker and skips its content; `None` at the tar's end. Leftovers of AUFS are skipped, but not the
    /// files below them.
    ///
    /// # Errors
    ///
    /// The tar is invalid or cannot be read. All later calls fail, too.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let result = match self.state {
            WalkState::Reading => self.advance(),
            WalkState::Ended => Ok(None),
            WalkState::Failed => Err(TarFault::AlreadyFailed),
        };
        match result {
            Ok(Some(entry)) => Ok(Some(entry)),
            Ok(None) => {
                self.state = WalkState::Ended;
                Ok(None)
            }
            Err(fault) => {
                self.state = WalkState::Failed;
                let in_stream = matches!(fault, TarFault::Read(_) | TarFault::Truncated);
                let offset = if in_stream { self.position } else { self.header_at };
                Err(TarError { offset: TarOffset::new(offset), path: self.name.take(), fault })
            }
        }
    }

    fn advance(&mut self) -> Result<Option<TarEntry>, TarFault> {
        let mut extensions = ExtensionHeaders::default();
        let mut block = [0; BLOCK];
        loop {
            self.name = None;
            self.header_at = self.position;
            if !self.read_block(&mut block)? || self.ends_at(&block)? {
                return if extensions.pending { Err(TarFault::LoneExtension) } else { Ok(None) };
            }
            let header = TarHeader::new(&block).ok_or(TarFault::Checksum)?;
            let size = field(header.size(), "size")?;
            match header.typeflag() {
                b'g' => {
                    extensions.count(false)?;
                    let data = self.read_extension(size, MAX_PAX)?;
                    self.global.update_global(&data)?;
                }
                b'x' => {
                    extensions.count(true)?;
                    extensions.pax = PaxHeader::parse(&self.read_extension(size, MAX_PAX)?)?;
                }
                b'L' => {
                    extensions.count(true)?;
                    extensions.long_name = self.read_long(size)?;
                }
                b'K' => {
                    extensions.count(true)?;
                    extensions.long_link = self.read_long(size)?;
                }
                b'V' => {
                    self.skip_data(size)?;
                    extensions = ExtensionHeaders::default();
                }
                b'M' => return Err(TarFault::Type(b'M')),
                _ => {
                    if let Some(entry) = self.read_entry(&header, size, std::mem::take(&mut extensions))? {
                        return Ok(Some(entry));
                    }
                }
            }
        }
    }

    /// Whether `block` ends the tar: a zero block that is followed by another one or by the end of the stream.
    fn ends_at(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarFault> {
        if block.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        let mut second = [0; BLOCK];
        if self.read_block(&mut second)? && second.iter().any(|&byte| byte != 0) {
            return Err(TarFault::LoneEndBlock);
        }
        Ok(true)
    }

    /// Builds an entry from its header and extension headers, and skips its content. `None` for leftovers of AUFS.
    fn read_entry(
        &mut self,
        header: &TarHeader<'_>,
        size: u64,
        mut extensions: ExtensionHeaders,
    ) -> Result<Option<TarEntry>, TarFault> {
        let ExtensionHeaders { pax, long_name, .. } = &mut extensions;
        let name = pax.sparse.name.take().or(long_name.take()).or(pax.path.take());
        let name = self.name.insert(name.unwrap_or_else(|| header.name()).into_boxed_slice());
        let member = MemberName::parse(name)?;
        let directory_name = name.ends_with(b"/");

        let typeflag = match header.typeflag() {
            // Old-style directories are files whose name ends in `/`. They have no data.
            0 if directory_name => b'5',
            0 | b'7' => b'0',
            other => other,
        };
        let header_only = matches!(typeflag, b'1'..=b'6');
        let size = if header_only { 0 } else { pax.size.unwrap_or(size) };
        let content = match typeflag {
            b'S' => {
                if pax.sparse.any {
                    return Err(TarFault::SparseMap);
                }
                self.read_gnu_sparse(header, size)?
            }
            _ if !pax.sparse.any => {
                let content = FileContent::Contiguous(TarOffset::new(self.position));
                self.skip_data(size)?;
                (size, content)
            }
            b'0' => self.read_pax_sparse(&pax.sparse, size)?,
            _ => return Err(TarFault::SparseMap),
        };

        match &member {
            MemberName::Dropped => Ok(None),
            // What AUFS kept there may be anything; only what a hard link refers to matters.
            MemberName::Hidden(_) if typeflag == b'5' || directory_name => Ok(None),
            MemberName::Hidden(_) => Ok(self.entry(header, extensions, member, typeflag, content).ok()),
            MemberName::Plain(_) if directory_name && typeflag == b'0' && size == 0 => {
                self.entry(header, extensions, member, b'5', content).map(Some)
            }
            MemberName::Plain(_) if directory_name && matches!(typeflag, b'0' | b'S') => {
                Err(TarFault::FileWithSlash)
            }
            MemberName::Plain(_) | MemberName::Whiteout(_) | MemberName::Opaque(_) => {
                self.entry(header, extensions, member, typeflag, content).map(Some)
            }
        }
    }

    /// Builds an entry whose content has been skipped.
    fn entry(
        &self,
        header: &TarHeader<'_>,
        extensions: ExtensionHeaders,
        member: MemberName,
        typeflag: u8,
        (size, content): (u64, FileContent),
    ) -> Result<TarEntry, TarFault> {
        let ExtensionHeaders { mut pax, mut long_link, .. } = extensions;
        let mut link = || -> Vec<u8> {
            let link = long_link.take().or(pax.link_path.take());
            link.unwrap_or_else(|| header.link_name().to_vec())
        };
        let kind = match member {
            MemberName::Dropped | MemberName::Whiteout(_) | MemberName::Opaque(_) => EntryKind::Regular {
                size: 0,
                content: FileContent::Contiguous(TarOffset::new(self.position)),
            },
            MemberName::Plain(_) | MemberName::Hidden(_) => match typeflag {
                b'0' | b'S' => EntryKind::Regular { size, content },
                b'1' => {
                    EntryKind::Hardlink { target: LayerPath::parse(&link()).map_err(TarFault::LinkName)? }
                }
                b'2' => EntryKind::Symlink { target: symlink_target(link())? },
                b'3' => match device(header)? {
                    (0, 0) => return Err(TarFault::WhiteoutDevice),
                    (major, minor) => EntryKind::CharDevice { major, minor },
                },
                b'4' => {
                    let (major, minor) = device(header)?;
                    EntryKind::BlockDevice { major, minor }
                }
                b'5' | b'D' => EntryKind::Directory,
                b'6' => EntryKind::Fifo,
                other => return Err(TarFault::Type(other)),
            },
        };
        if matches!(&member, MemberName::Plain(path) if path.is_root()) && kind != EntryKind::Directory {
            return Err(TarFault::RootKind);
        }

        let mode = match kind {
            // The mode of a symlink cannot be set; stat always reports this one.
            EntryKind::Symlink { .. } => 0o777,
            _ => header.mode().ok_or(TarFault::HeaderNumber("mode"))? & 0o7777,
        };
        // An ACL sets the permission bits.
        let (xattrs, permissions) = pax.take_xattrs(&kind)?;
        let mode = u16::try_from(mode).expect("the mode has 12 bits");
        let mode = permissions.map_or(mode, |permissions| mode & 0o7000 | permissions);
        let mtime = header.mtime().ok_or(TarFault::HeaderNumber("mtime"))?;
        Ok(TarEntry {
            member,
            mode,
            uid: owner(pax.uid.or(self.global.uid, field(header.uid(), "uid")?), "uid")?,
            gid: owner(pax.gid.or(self.global.gid, field(header.gid(), "gid")?), "gid")?,
            mtime: pax.mtime.or(self.global.mtime, Timestamp { sec: mtime, nsec: 0 }),
            xattrs,
            kind,
            offset: TarOffset::new(self.header_at),
        })
    }

    /// Reads an old GNU sparse file: the map starts in the header and continues in further blocks before the data.
    fn read_gnu_sparse(
        &mut self,
        header: &TarHeader<'_>,
        stored: u64,
    ) -> Result<(u64, FileContent), TarFault> {
        if header.format() != HeaderFormat::Gnu {
            return Err(TarFault::Type(b'S'));
        }
        let (entries, mut extended, size) = header.gnu_sparse();
        let mut map = SparseMap::new(field(size, "size")?);
        let mut more = map.push_gnu(entries)?;
        while extended {
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? {
                return Err(TarFault::Truncated);
            }
            // As in GNU tar: an unused entry ends the map, but only the flag ends the blocks.
            more = more && map.push_gnu(&block[..504])?;
            extended = block[504] != 0;
        }
        let content = map.finish(self.position, stored)?;
        self.skip_data(stored)?;
        Ok(content)
    }

    /// Reads a sparse file with PAX records: the map is among them (0.0, 0.1) or precedes the data (1.0).
    fn read_pax_sparse(
        &mut self,
        records: &SparseRecords,
        stored: u64,
    ) -> Result<(u64, FileContent), TarFault> {
        let size = records.size.ok_or(TarFault::SparseMap)?;
        let (map, remaining) = match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
            (0, 0 | 1) => {
                let mut map = SparseMap::new(size);
                map.push_records(records)?;
                (map, stored)
            }
            (1, 0) => {
                let mut lines = SparseLineMap::new(size);
                let mut remaining = stored;
                loop {
                    remaining = remaining.checked_sub(BLOCK as u64).ok_or(TarFault::SparseMap)?;
                    let mut block = [0; BLOCK];
                    if !self.read_block(&mut block)? {
                        return Err(TarFault::Truncated);
                    }
                    if lines.push_block(&block)? {
                        break (lines.into_map(), remaining);
                    }
                }
            }
            _ => return Err(TarFault::SparseMap),
        };
        let content = map.finish(self.position, remaining)?;
        self.skip_data(remaining)?;
        Ok(content)
    }

    /// Reads a GNU long name or long link; `None` if it is empty.
    fn read_long(&mut self, size: u64) -> Result<Option<Vec<u8>>, TarFault> {
        let data = self.read_extension(size, MAX_LONG_NAME)?;
        Ok(Some(text(&data).to_vec()).filter(|name| !name.is_empty()))
    }

    /// Reads the data of an extension header.
    fn read_extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TarFault> {
        let length = usize::try_from(size)
            .ok()
            .filter(|_| size <= limit)
            .ok_or(TarFault::LongExtension { size, limit })?;
        let mut data = vec![0; length];
        if self.fill(&mut data)? != length {
            return Err(TarFault::Truncated);
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    /// Reads a block. Returns false if the stream ends before its first byte.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarFault> {
        match self.fill(block)? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(TarFault::Truncated),
        }
    }

    /// Fills `target` unless the stream ends earlier, and returns the number of bytes read.
    fn fill(&mut self, target: &mut [u8]) -> Result<usize, TarFault> {
        let mut filled = 0;
        while filled < target.len() {
            let available = self.peek()?;
            let length = available.len().min(target.len() - filled);
            if length == 0 {
                break;
            }
            target[filled..filled + length].copy_from_slice(&available[..length]);
            filled += length;
            self.consume(length);
        }
        Ok(filled)
    }

    /// Skips an entry's data and the padding of its last block. A tar may end where the padding should begin: `umoci insert` writes such
    /// layers, and docker, containerd and umoci read them.
    fn skip_data(&mut self, size: u64) -> Result<(), TarFault> {
        self.skip(size)?;
        if self.peek()?.is_empty() { Ok(()) } else { self.skip(padding(size)) }
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), TarFault> {
        while bytes > 0 {
            let available = self.peek()?.len();
            let length = usize::try_from(bytes).map_or(available, |bytes| available.min(bytes));
            if length == 0 {
                return Err(TarFault::Truncated);
            }
            self.consume(length);
            bytes -= length as u64;
        }
        Ok(())
    }

    /// Returns the next bytes of the stream; none at its end.
    fn peek(&mut self) -> Result<&[u8], TarFault> {
        // The borrow checker rejects returning the buffer from inside the loop. The second call returns the same buffer.
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarFault::Read(error)),
            }
        }
        self.input.fill_buf().map_err(TarFault::Read)
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
    }
}

impl ExtensionHeaders {
    /// Counts one more header.
    fn count(&mut self, for_next_entry: bool) -> Result<(), TarFault> {
        self.pending |= for_next_entry;
        self.count += 1;
        if self.count > MAX_EXTENSIONS { Err(TarFault::ManyExtensions) } else { Ok(()) }
    }
}

/// Length of the padding after `size` bytes of data.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
