//! The walk over a tar: one pass, front to back, every byte looked at once and content not at all.

use std::io::{self, BufRead};

use super::header::{Header, text};
use super::pax::{Pax, SparseRecords};
use super::sparse::{LineMap, Map};
use super::{
    BLOCK, EntryKind, FileContent, MAX_EXTENSIONS, MAX_LONG_NAME, MAX_PAX, MAX_TARGET, TarEntry, TarError,
    TarFault, Timestamp,
};
use crate::layer::TarOffset;
use crate::layer::name::{LayerPath, MemberName};

/// Reads a tar's entries from a stream.
#[derive(Debug)]
pub struct TarWalk<R> {
    input: R,
    /// Bytes consumed.
    position: u64,
    state: State,
    /// What the global PAX headers so far say.
    global: Pax,
    /// Where the last header block stands and, once it is known, the name of the entry that it belongs to: for errors.
    header_at: u64,
    name: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Failed,
}

/// What the extension headers before an entry say.
#[derive(Debug, Default)]
struct Extensions {
    count: u32,
    /// One of them was for the next entry, so there has to be one.
    pending: bool,
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> TarWalk<R> {
    /// Starts at the first block of a tar.
    pub fn new(input: R) -> Self {
        Self { input, position: 0, state: State::Reading, global: Pax::default(), header_at: 0, name: None }
    }

    /// How far the tar has been read: behind the last entry's content, in the end behind the end blocks.
    pub fn position(&self) -> TarOffset {
        TarOffset::new(self.position)
    }

    /// The stream, to be drained by whoever needs all of its bytes: what is behind the end blocks is not read here.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads up to and including the content of the next entry or marker; `None` at the tar's end.
    ///
    /// Leftovers of AUFS are passed over. After an error there is nothing more to be had.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let result = match self.state {
            State::Reading => self.advance(),
            State::Ended => Ok(None),
            State::Failed => Err(TarFault::Failed),
        };
        match result {
            Ok(Some(entry)) => Ok(Some(entry)),
            Ok(None) => {
                self.state = State::Ended;
                Ok(None)
            }
            Err(fault) => {
                self.state = State::Failed;
                let in_stream = matches!(fault, TarFault::Read(_) | TarFault::Truncated);
                let offset = if in_stream { self.position } else { self.header_at };
                Err(TarError { offset: TarOffset::new(offset), path: self.name.take(), fault })
            }
        }
    }

    fn advance(&mut self) -> Result<Option<TarEntry>, TarFault> {
        let mut extensions = Extensions::default();
        let mut block = [0; BLOCK];
        loop {
            self.name = None;
            self.header_at = self.position;
            if !self.read_block(&mut block)? || self.ends_at(&block)? {
                return if extensions.pending { Err(TarFault::LoneExtension) } else { Ok(None) };
            }
            let header = Header::new(&block).ok_or(TarFault::Checksum)?;
            let size = field(header.size(), "size")?;
            match header.typeflag() {
                b'g' => {
                    extensions.count(false)?;
                    let data = self.read_extension(size, MAX_PAX)?;
                    self.global.update_global(&data)?;
                }
                b'x' => {
                    extensions.count(true)?;
                    extensions.pax = Pax::parse(&self.read_extension(size, MAX_PAX)?)?;
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
                    extensions = Extensions::default();
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

    /// True where `block` ends the tar: zero blocks, one if it is the last thing in the stream, else two.
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

    /// Takes what the header and its extensions say, and passes over the content. `None` for what means nothing.
    fn read_entry(
        &mut self,
        header: &Header<'_>,
        size: u64,
        mut extensions: Extensions,
    ) -> Result<Option<TarEntry>, TarFault> {
        let Extensions { pax, long_name, long_link, .. } = &mut extensions;
        let name = pax.sparse.name.take().or(long_name.take()).or(pax.path.take());
        let name = self.name.insert(name.unwrap_or_else(|| header.name()).into_boxed_slice());
        let member = MemberName::parse(name)?;
        let directory_name = name.ends_with(b"/");

        let typeflag = match header.typeflag() {
            // Old-style: a directory is a file with a slash behind its name, and has no data.
            0 if directory_name => b'5',
            0 | b'7' => b'0',
            other => other,
        };
        let header_only = matches!(typeflag, b'1'..=b'6');
        let size = if header_only { 0 } else { pax.size.unwrap_or(size) };
        let offset = TarOffset::new(self.header_at);
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

        let mut link = || -> Vec<u8> {
            let link = long_link.take().or(pax.link_path.take());
            link.unwrap_or_else(|| header.link_name().to_vec())
        };
        let kind = match member {
            MemberName::Dropped => return Ok(None),
            MemberName::Whiteout(_) | MemberName::Opaque(_) => EntryKind::Regular {
                size: 0,
                content: FileContent::Contiguous(TarOffset::new(self.position)),
            },
            MemberName::Plain(_) => match typeflag {
                b'0' if directory_name && size == 0 => EntryKind::Directory,
                b'0' | b'S' if directory_name => return Err(TarFault::FileWithSlash),
                b'0' | b'S' => EntryKind::Regular { size: content.0, content: content.1 },
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
            // A symlink has no mode that could be set; all of them show this one.
            EntryKind::Symlink { .. } => 0o777,
            _ => header.mode().ok_or(TarFault::HeaderNumber("mode"))? & 0o7777,
        };
        // What an ACL says of the mode is part of it.
        let (xattrs, permissions) = pax.take_xattrs(&kind)?;
        let mode = u16::try_from(mode).expect("12 bits are left");
        let mode = permissions.map_or(mode, |permissions| mode & 0o7000 | permissions);
        let mtime = header.mtime().ok_or(TarFault::HeaderNumber("mtime"))?;
        Ok(Some(TarEntry {
            member,
            mode,
            uid: owner(pax.uid.or(self.global.uid, field(header.uid(), "uid")?), "uid")?,
            gid: owner(pax.gid.or(self.global.gid, field(header.gid(), "gid")?), "gid")?,
            mtime: pax.mtime.or(self.global.mtime, Timestamp { sec: mtime, nsec: 0 }),
            xattrs,
            kind,
            offset,
        }))
    }

    /// An old GNU sparse file: the map starts in the header and goes on in blocks of its own before the data.
    fn read_gnu_sparse(&mut self, header: &Header<'_>, stored: u64) -> Result<(u64, FileContent), TarFault> {
        if header.format() != super::header::Format::Gnu {
            return Err(TarFault::Type(b'S'));
        }
        let (entries, mut extended, size) = header.gnu_sparse();
        let mut map = Map::new(field(size, "size")?);
        let mut more = map.push_gnu(entries)?;
        while extended {
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? {
                return Err(TarFault::Truncated);
            }
            // As GNU tar has it: an unused entry ends the map in its block, the flag ends the blocks.
            more = more && map.push_gnu(&block[..504])?;
            extended = block[504] != 0;
        }
        let content = map.finish(self.position, stored)?;
        self.skip_data(stored)?;
        Ok(content)
    }

    /// A sparse file with PAX records: the map is among them (0.0, 0.1) or stands before the data (1.0).
    fn read_pax_sparse(
        &mut self,
        records: &SparseRecords,
        stored: u64,
    ) -> Result<(u64, FileContent), TarFault> {
        let size = records.size.ok_or(TarFault::SparseMap)?;
        let (map, left) = match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
            (0, 0 | 1) => {
                let mut map = Map::new(size);
                map.push_records(records)?;
                (map, stored)
            }
            (1, 0) => {
                let mut lines = LineMap::new(size);
                let mut left = stored;
                loop {
                    left = left.checked_sub(BLOCK as u64).ok_or(TarFault::SparseMap)?;
                    let mut block = [0; BLOCK];
                    if !self.read_block(&mut block)? {
                        return Err(TarFault::Truncated);
                    }
                    if lines.push_block(&block)? {
                        break (lines.into_map(), left);
                    }
                }
            }
            _ => return Err(TarFault::SparseMap),
        };
        let content = map.finish(self.position, left)?;
        self.skip_data(left)?;
        Ok(content)
    }

    fn read_long(&mut self, size: u64) -> Result<Option<Vec<u8>>, TarFault> {
        let data = self.read_extension(size, MAX_LONG_NAME)?;
        Ok(Some(text(&data).to_vec()).filter(|name| !name.is_empty()))
    }

    fn read_extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TarFault> {
        let length =
            usize::try_from(size).ok().filter(|_| size <= limit).ok_or(TarFault::LongExtension(size))?;
        let mut data = vec![0; length];
        if self.fill(&mut data)? != length {
            return Err(TarFault::Truncated);
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    /// Reads a block; false if the stream ends before its first byte.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarFault> {
        match self.fill(block)? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(TarFault::Truncated),
        }
    }

    /// Reads as much of `target` as the stream has.
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

    /// Passes over an entry's data and what fills its last block.
    fn skip_data(&mut self, size: u64) -> Result<(), TarFault> {
        self.skip(size)?;
        self.skip(padding(size))
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

    fn peek(&mut self) -> Result<&[u8], TarFault> {
        // Twice, because a borrow returned from inside a loop would last for all of it.
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

impl Extensions {
    fn count(&mut self, for_next_entry: bool) -> Result<(), TarFault> {
        self.pending |= for_next_entry;
        self.count += 1;
        if self.count > MAX_EXTENSIONS { Err(TarFault::ManyExtensions) } else { Ok(()) }
    }
}

/// What it takes to fill the last block of `size` bytes.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn field<T: TryFrom<i64>>(value: Option<i64>, what: &'static str) -> Result<T, TarFault> {
    T::try_from(value.ok_or(TarFault::HeaderNumber(what))?).map_err(|_| TarFault::Range(what))
}

/// An owner that a file can have: the last number means "leave it as it is" to chown(2), and no file shows it.
fn owner(id: u32, what: &'static str) -> Result<u32, TarFault> {
    if id == u32::MAX { Err(TarFault::Range(what)) } else { Ok(id) }
}

/// Major and minor number, as wide as Linux has them: 12 and 20 bits.
fn device(header: &Header<'_>) -> Result<(u32, u32), TarFault> {
    let (major, minor) = header.device().ok_or(TarFault::HeaderNumber("device number"))?;
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(TarFault::Range("device number")),
    }
}

fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, TarFault> {
    if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
        return Err(TarFault::SymlinkTarget);
    }
    Ok(target.into_boxed_slice())
}
