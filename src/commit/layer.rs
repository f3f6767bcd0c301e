//! Writes what differs between a root and its image as the tar of a layer.
//!
//! Whiteouts come first, then all members in the order of their paths. An opaque marker is never needed: everything that is deleted has
//! a whiteout of its own, which all tools apply alike.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tar::EntryType;

use super::CommitError;
use super::compare::{LayerMember, RootChanges};
use super::file::{RootFile, RootFileKind};
use super::tree::{join, split};
use crate::layer::name::MAX_COMPONENT;
use crate::layer::{DataRanges, MemberWriter, NewMember, Timestamp};
use crate::os::{AtPath as _, PathError};

/// Prefix of the name of a whiteout (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The shortest hole that is not written as zeros, in bytes. Shorter ones compress well, and some tools read no sparse files.
const HOLE_MIN: u64 = 1 << 20;

/// Writes the tar.
pub(super) fn write(changes: &RootChanges, out: &mut dyn Write) -> Result<(), CommitError> {
    let mut writer = LayerWriter { changes, tar: MemberWriter::new(out) };
    for path in &changes.deleted {
        writer.whiteout(path)?;
    }
    for (order, member) in &changes.members {
        writer.member(&order.path(), member)?;
    }
    writer.tar.finish().map(drop).map_err(CommitError::Layer)
}

struct LayerWriter<'a, 'w> {
    changes: &'a RootChanges,
    tar: MemberWriter<&'w mut dyn Write>,
}

impl LayerWriter<'_, '_> {
    fn whiteout(&mut self, path: &[u8]) -> Result<(), CommitError> {
        let (directory, name) = split(path);
        let name = [WHITEOUT, name].concat();
        if name.len() > MAX_COMPONENT {
            return Err(CommitError::LongDeletion(path.to_vec()));
        }
        let path = join(directory, &name);
        let mtime = Timestamp { sec: 0, nsec: 0 };
        let (kind, target, device) = (EntryType::Regular, &b""[..], None);
        let member = NewMember { kind, path: &path, target, mode: 0, uid: 0, gid: 0, mtime, device };
        self.tar.append(&member, [], 0, io::empty()).map_err(CommitError::Layer)
    }

    fn member(&mut self, path: &[u8], member: &LayerMember) -> Result<(), CommitError> {
        let RootFile { kind, mode, uid, gid, mtime, xattrs } = &member.file;
        if let Some((name, _)) = xattrs.iter().find(|(name, _)| name.contains(&b'=')) {
            return Err(CommitError::XattrName { path: path.to_vec(), name: name.clone() });
        }
        let xattrs = || xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let (mode, uid, gid, mtime) = (*mode, *uid, *gid, *mtime);
        let new = |kind| NewMember { kind, path, target: b"", mode, uid, gid, mtime, device: None };
        if let Some(target) = &member.link_to {
            let member = NewMember { target, ..new(EntryType::Link) };
            return self.tar.append(&member, [], 0, io::empty()).map_err(CommitError::Layer);
        }
        let directory = [if path.is_empty() { b"." } else { path }, b"/"].concat();
        let member = match kind {
            RootFileKind::Regular { size } => {
                return self.regular(&new(EntryType::Regular), xattrs(), *size);
            }
            RootFileKind::Directory => NewMember { path: &directory, ..new(EntryType::Directory) },
            RootFileKind::Symlink { target } => NewMember { target, ..new(EntryType::Symlink) },
            RootFileKind::CharDevice { major, minor } => {
                NewMember { device: Some((*major, *minor)), ..new(EntryType::Char) }
            }
            RootFileKind::BlockDevice { major, minor } => {
                NewMember { device: Some((*major, *minor)), ..new(EntryType::Block) }
            }
            RootFileKind::Fifo => new(EntryType::Fifo),
            RootFileKind::Socket => unreachable!("the walk leaves sockets out"),
        };
        self.tar.append(&member, xattrs(), 0, io::empty()).map_err(CommitError::Layer)
    }

    fn regular<'x>(
        &mut self,
        member: &NewMember<'_>,
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
        size: u64,
    ) -> Result<(), CommitError> {
        let root = self.changes.root.as_ref().expect("only a root that is open has files");
        let file = root.open(member.path)?;
        let path = root.path_of(member.path);
        let data = data_ranges(&file, size).at("find the holes of", &path)?;
        let bytes: u64 = data.iter().map(|range| range.end - range.start).sum();
        let mut content =
            RangeReader { file: &file, left: data.clone().into_iter(), current: 0..0, failed: None };
        let result = match bytes == size {
            true => self.tar.append(member, xattrs, size, &mut content),
            false => self.tar.append_sparse(member, xattrs, &DataRanges { size, data }, &mut content),
        };
        match (content.failed, result) {
            (Some(error), _) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(CommitError::Changed(path))
            }
            (Some(error), _) => Err(PathError::new("read", path, error).into()),
            (None, result) => result.map_err(CommitError::Layer),
        }
    }
}

/// Returns the ranges of a file outside of its long holes.
fn data_ranges(file: &File, size: u64) -> Result<Vec<Range<u64>>, Errno> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            // A hole up to the end of the file.
            Err(Errno::NXIO) => size,
            Err(errno) => return Err(errno),
        };
        let end = match start < size {
            true => rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size),
            false => size,
        };
        let end_before = ranges.last().map_or(0, |last| last.end);
        match ranges.last_mut() {
            Some(last) if start - end_before < HOLE_MIN => last.end = end,
            None if start < HOLE_MIN => ranges.push(0..end),
            // What follows the last range of data is a hole.
            _ if start == size => {}
            _ => ranges.push(start..end),
        }
        at = end;
    }
    // Readers learn the size of the file from the last range in some sparse formats.
    if ranges.last().is_none_or(|last| last.end < size) {
        ranges.push(size..size);
    }
    Ok(ranges)
}

/// Reads ranges of a file one after another.
struct RangeReader<'a> {
    file: &'a File,
    left: std::vec::IntoIter<Range<u64>>,
    current: Range<u64>,
    /// The error behind the one that the tar library passes on.
    failed: Option<io::Error>,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.left.next() {
                Some(range) => self.current = range,
                None => return Ok(0),
            }
        }
        let left = usize::try_from(self.current.end - self.current.start).unwrap_or(usize::MAX);
        let wanted = left.min(out.len());
        let failed = match self.file.read_at(&mut out[..wanted], self.current.start) {
            Ok(0) if wanted > 0 => io::ErrorKind::UnexpectedEof.into(),
            Ok(length) => {
                self.current.start += length as u64;
                return Ok(length);
            }
            Err(error) => error,
        };
        let passed_on = io::Error::other("the file cannot be read");
        self.failed = Some(failed);
        Err(passed_on)
    }
}
