//! Compares a directory with the plan from which it was written, to detect manual changes and disk errors.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::NodeAttributes;
use super::content::{NeededSpan, decode_units};
use super::directories::{DirCache, TargetDirs};
use super::write::OPAQUE;
use super::{DirectoryNo, PlanDirectory, PlanName, UnpackError, UnpackPlan};
use crate::error::chain_text;
use crate::index::{EntryId, IndexedKind, Layer};
use crate::os::read_xattrs;
use crate::tree::NodeSource;

/// Number of differences after which the comparison stops.
const DIFFERENCES_MAX: usize = 100;

/// The file that the plan contains under a name.
#[derive(Clone, Copy)]
enum PlannedFile {
    Directory,
    /// An index into [`UnpackPlan::nodes`].
    Node(usize),
    Whiteout,
}

/// Compares a directory with the plan from which it was written; with `content`, also compares every byte of every file.
///
/// Returns the differences, one line each, at most 100. An I/O error in the directory is a difference.
///
/// # Errors
///
/// The content of a layer cannot be read.
pub fn check<'a, D: AsRef<[u8]>>(
    plan: &'a UnpackPlan,
    layers: &[&Layer<D>],
    root: BorrowedFd<'_>,
    path: &Path,
    content: bool,
) -> Result<Vec<String>, UnpackError> {
    let target = TargetDirs::new(plan, root, path);
    let mut comparison =
        TreeComparison { plan, layers, target: &target, inodes: HashMap::new(), differences: Vec::new() };
    let mut expected: HashMap<DirectoryNo, HashMap<&'a [u8], PlannedFile>> = HashMap::new();
    let mut expect = |place: &'a PlanName, file| {
        expected.entry(place.directory).or_default().insert(&place.name, file);
    };
    plan.directories[1..].iter().for_each(|directory| expect(&directory.place, PlannedFile::Directory));
    for (number, node) in plan.nodes.iter().enumerate() {
        node.names.iter().for_each(|name| expect(name, PlannedFile::Node(number)));
    }
    plan.whiteouts.iter().for_each(|name| expect(name, PlannedFile::Whiteout));
    for (number, directory) in plan.numbered() {
        comparison.directory(number, directory, expected.get(&number).unwrap_or(&HashMap::new()));
        if comparison.differences.len() >= DIFFERENCES_MAX {
            return Ok(comparison.differences);
        }
    }
    if content {
        comparison.content()?;
    }
    Ok(comparison.differences)
}

struct TreeComparison<'a, D> {
    plan: &'a UnpackPlan,
    layers: &'a [&'a Layer<D>],
    target: &'a TargetDirs<'a>,
    /// The inode number of the first name of each node.
    inodes: HashMap<usize, u64>,
    differences: Vec<String>,
}

impl<D: AsRef<[u8]>> TreeComparison<'_, D> {
    fn report(&mut self, path: &Path, difference: impl std::fmt::Display) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(format!("{}: {difference}", path.display()));
        }
    }

    fn directory(
        &mut self,
        number: DirectoryNo,
        planned: &PlanDirectory,
        expected: &HashMap<&[u8], PlannedFile>,
    ) {
        let path = self.target.path(&planned.place);
        let opened = match self.target.open(number) {
            Ok(opened) => opened,
            Err(error) => return self.report(&path, chain_text(&error)),
        };
        match planned.source {
            NodeSource::Implied => {
                self.attributes(&path, &opened, b"", &NodeAttributes::implied(), planned.opaque);
            }
            NodeSource::Entry { layer, entry } => {
                let entry = self.layers[layer.index()].index().entry(entry);
                self.attributes(&path, &opened, b"", &NodeAttributes::of_entry(&entry), planned.opaque);
            }
        }
        let listed: Result<Vec<Vec<u8>>, Errno> = Dir::read_from(&opened).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec())).collect()
        });
        match listed {
            Err(errno) => self.report(&path, format!("cannot list: {errno}")),
            Ok(listed) => {
                for name in listed.iter().filter(|name| !matches!(name.as_slice(), b"." | b"..")) {
                    if !expected.contains_key(name.as_slice()) {
                        self.report(&path.join(OsStr::from_bytes(name)), "is not part of the image");
                    }
                }
            }
        }
        let mut names: Vec<_> = expected.iter().collect();
        names.sort_unstable_by_key(|(name, _)| **name);
        for (name, file) in names {
            self.file(&path.join(OsStr::from_bytes(name)), &opened, name, *file);
        }
    }

    fn file(&mut self, path: &Path, directory: &OwnedFd, name: &[u8], planned: PlannedFile) {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.report(path, "is missing"),
            Err(errno) => return self.report(path, format!("cannot stat: {errno}")),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        match planned {
            // `directory` compares its attributes.
            PlannedFile::Directory if kind == FileType::Directory => {}
            PlannedFile::Directory => self.report(path, "is not a directory"),
            PlannedFile::Whiteout if kind == FileType::CharacterDevice && stat.st_rdev == 0 => {}
            PlannedFile::Whiteout => self.report(path, "is not a whiteout"),
            PlannedFile::Node(number) => self.node(path, directory, name, number, &stat),
        }
    }

    fn node(&mut self, path: &Path, directory: &OwnedFd, name: &[u8], number: usize, stat: &Stat) {
        let node = &self.plan.nodes[number];
        let NodeSource::Entry { layer, entry } = node.source else { return };
        let entry = self.layers[layer.index()].index().entry(entry);
        let (kind, size, device) = match entry.kind() {
            IndexedKind::Regular { size } => (FileType::RegularFile, size, 0),
            IndexedKind::Symlink { target } => (FileType::Symlink, target.len() as u64, 0),
            IndexedKind::CharDevice { major, minor } => {
                (FileType::CharacterDevice, 0, rustix::fs::makedev(major, minor))
            }
            IndexedKind::BlockDevice { major, minor } => {
                (FileType::BlockDevice, 0, rustix::fs::makedev(major, minor))
            }
            IndexedKind::Fifo => (FileType::Fifo, 0, 0),
            IndexedKind::Directory | IndexedKind::Hardlink { .. } => return,
        };
        if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != device {
            return self.report(path, "has a different file type");
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            self.report(path, format!("has {} bytes, not {size}", stat.st_size));
        }
        if let IndexedKind::Symlink { target } = entry.kind() {
            let actual = rustix::fs::readlinkat(directory, name, Vec::new());
            if actual.as_ref().map(|actual| actual.to_bytes()) != Ok(target) {
                self.report(path, "has a different link target");
            }
        }
        if stat.st_nlink != node.names.len() as u64
            || *self.inodes.entry(number).or_insert(stat.st_ino) != stat.st_ino
        {
            self.report(path, format!("is not one of {} hard links to the same file", node.names.len()));
        }
        self.attributes(path, directory, name, &NodeAttributes::of_entry(&entry), false);
    }

    fn attributes(
        &mut self,
        path: &Path,
        directory: &OwnedFd,
        name: &[u8],
        attributes: &NodeAttributes<'_>,
        opaque: bool,
    ) {
        for difference in attributes.differences(directory.as_fd(), name, opaque.then_some(OPAQUE)) {
            self.report(path, difference);
        }
    }

    /// Compares the content of all files, in the order of the tar, so that each span is decoded once.
    fn content(&mut self) -> Result<(), UnpackError> {
        let mut by_layer: Vec<Vec<(u32, EntryId)>> = vec![Vec::new(); self.layers.len()];
        for (number, node) in (0..).zip(&self.plan.nodes) {
            if let NodeSource::Entry { layer, entry } = node.source {
                by_layer[layer.index()].push((number, entry));
            }
        }
        let mut directories = self.target.cache();
        for (number, files) in by_layer.iter().enumerate() {
            let layer = self.layers[number];
            for needed in decode_units(layer, number, files).0.into_iter().flat_map(|unit| unit.spans) {
                let first = needed.parts[0].file;
                let span = layer
                    .decode_span(needed.span)
                    .map_err(|source| UnpackError::Read { path: self.path_of(first), source })?;
                self.span(&needed, &span, &mut directories);
            }
        }
        Ok(())
    }

    fn span(&mut self, needed: &NeededSpan, span: &[u8], directories: &mut DirCache) {
        let mut buffer = Vec::new();
        for part in &needed.parts {
            let place = &self.plan.nodes[part.file as usize].names[0];
            buffer.resize(part.len, 0);
            let opened = directories.open(self.target, place.directory).ok().and_then(|directory| {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                rustix::fs::openat(directory, &*place.name, flags, Mode::empty()).ok()
            });
            // `node` has reported a file that cannot be opened.
            let Some(file) = opened.map(File::from) else { continue };
            match file.read_exact_at(&mut buffer, part.offset) {
                Err(error) => self.report(&self.path_of(part.file), format!("cannot read: {error}")),
                Ok(()) if buffer != span[part.start..part.start + part.len] => {
                    let (from, to) = (part.offset, part.offset + part.len as u64);
                    self.report(&self.path_of(part.file), format!("bytes {from}..{to} differ"));
                }
                Ok(()) => {}
            }
        }
    }

    fn path_of(&self, node: u32) -> PathBuf {
        self.target.path(&self.plan.nodes[node as usize].names[0])
    }
}

impl NodeAttributes<'_> {
    /// Compares the attributes with those of `name` in a directory, or of the directory itself if `name` is empty.
    fn differences(&self, directory: BorrowedFd<'_>, name: &[u8], marker: Option<&str>) -> Vec<String> {
        let mut differences = Vec::new();
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let stat = match rustix::fs::statat(directory, name, flags) {
            Ok(stat) => stat,
            Err(errno) => return vec![format!("cannot stat: {errno}")],
        };
        let is_symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let mode = stat.st_mode & 0o7777;
        if mode != u32::from(self.mode) && !is_symlink {
            differences.push(format!("has mode {mode:o}, not {:o}", self.mode));
        }
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            let (uid, gid) = (self.uid, self.gid);
            differences.push(format!("has owner {}:{}, not {uid}:{gid}", stat.st_uid, stat.st_gid));
        }
        if (stat.st_mtime, u64::from(self.mtime.nsec)) != (self.mtime.sec, stat.st_mtime_nsec) {
            differences.push("has a different modification time".to_owned());
        }
        let mut link = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        link.extend_from_slice(name);
        // The kernel sets the label of SELinux by itself.
        match read_xattrs(OsStr::from_bytes(&link), |name| name != b"security.selinux") {
            Err(errno) => differences.push(format!("cannot read extended attributes: {errno}")),
            Ok(actual) => {
                let mut expected: Vec<(Vec<u8>, Vec<u8>)> =
                    self.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                expected.extend(marker.map(|marker| (marker.as_bytes().to_vec(), b"y".to_vec())));
                expected.sort_unstable();
                if actual != expected {
                    differences.push("has different extended attributes".to_owned());
                }
            }
        }
        differences
    }
}
