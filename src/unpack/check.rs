//! Compares what is on a disk with what was planned: finds what was changed by hand, or by a failing disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::content::units;
use super::directories::Places;
use super::write::OPAQUE;
use super::{DirectoryNo, PlanDirectory, PlanName, UnpackError, UnpackPlan};
use crate::index::{EntryId, Kind, Layer};
use crate::tree::Source;

/// Differences reported before the comparison gives up.
const ENOUGH: usize = 100;

/// What stands under a name.
#[derive(Clone, Copy)]
enum Wanted {
    Directory,
    /// A node of the plan.
    Node(usize),
    Whiteout,
}

/// Compares a directory with the plan it was written by; with `content` also every byte of every file. Returns what
/// differs, one line each, at most a hundred.
///
/// # Errors
/// A layer cannot be read. What the disk does is a difference.
pub fn check<'a, D: AsRef<[u8]>>(
    plan: &'a UnpackPlan,
    layers: &[&Layer<D>],
    root: BorrowedFd<'_>,
    path: &Path,
    content: bool,
) -> Result<Vec<String>, UnpackError> {
    let places = Places::new(plan, root, path);
    let mut check = Check { plan, layers, places: &places, inodes: HashMap::new(), differences: Vec::new() };
    let mut wanted: HashMap<DirectoryNo, HashMap<&'a [u8], Wanted>> = HashMap::new();
    let mut want = |place: &'a PlanName, thing| {
        wanted.entry(place.directory).or_default().insert(&place.name, thing);
    };
    plan.directories[1..].iter().for_each(|it| want(&it.place, Wanted::Directory));
    for (number, node) in plan.nodes.iter().enumerate() {
        node.names.iter().for_each(|name| want(name, Wanted::Node(number)));
    }
    plan.whiteouts.iter().for_each(|name| want(name, Wanted::Whiteout));
    for (number, directory) in plan.numbered() {
        check.directory(number, directory, wanted.get(&number).unwrap_or(&HashMap::new()));
        if check.differences.len() >= ENOUGH {
            return Ok(check.differences);
        }
    }
    if content {
        check.content()?;
    }
    Ok(check.differences)
}

struct Check<'a, D> {
    plan: &'a UnpackPlan,
    layers: &'a [&'a Layer<D>],
    places: &'a Places<'a>,
    /// By node: the inode its first name had.
    inodes: HashMap<usize, u64>,
    differences: Vec<String>,
}

impl<D: AsRef<[u8]>> Check<'_, D> {
    fn report(&mut self, path: &Path, what: impl std::fmt::Display) {
        if self.differences.len() < ENOUGH {
            self.differences.push(format!("{}: {what}", path.display()));
        }
    }

    fn directory(&mut self, number: DirectoryNo, planned: &PlanDirectory, wanted: &HashMap<&[u8], Wanted>) {
        let path = self.places.path(&planned.place);
        let opened = match self.places.open(number) {
            Ok(opened) => opened,
            Err(error) => return self.report(&path, chain(&error)),
        };
        match planned.source {
            Source::Implied => self.attributes(&path, &opened, b"", &Attributes::implied(), planned.opaque),
            Source::Entry { layer, entry } => {
                let entry = self.layers[layer.index()].index().entry(entry);
                self.attributes(&path, &opened, b"", &Attributes::of_entry(&entry), planned.opaque);
            }
        }
        let listed: Result<Vec<Vec<u8>>, Errno> = Dir::read_from(&opened).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec())).collect()
        });
        match listed {
            Err(errno) => self.report(&path, errno),
            Ok(listed) => {
                for name in listed.iter().filter(|name| !matches!(name.as_slice(), b"." | b"..")) {
                    if !wanted.contains_key(name.as_slice()) {
                        self.report(&path.join(OsStr::from_bytes(name)), "does not belong there");
                    }
                }
            }
        }
        let mut names: Vec<_> = wanted.iter().collect();
        names.sort_unstable_by_key(|(name, _)| **name);
        for (name, thing) in names {
            self.thing(&path.join(OsStr::from_bytes(name)), &opened, name, *thing);
        }
    }

    fn thing(&mut self, path: &Path, directory: &OwnedFd, name: &[u8], wanted: Wanted) {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.report(path, "is missing"),
            Err(errno) => return self.report(path, errno),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        match wanted {
            // Its attributes are compared where it is listed.
            Wanted::Directory if kind == FileType::Directory => {}
            Wanted::Directory => self.report(path, "is not a directory"),
            Wanted::Whiteout if kind == FileType::CharacterDevice && stat.st_rdev == 0 => {}
            Wanted::Whiteout => self.report(path, "is not a whiteout"),
            Wanted::Node(number) => self.node(path, directory, name, number, &stat),
        }
    }

    fn node(&mut self, path: &Path, directory: &OwnedFd, name: &[u8], number: usize, stat: &Stat) {
        let node = &self.plan.nodes[number];
        let Source::Entry { layer, entry } = node.source else { return };
        let entry = self.layers[layer.index()].index().entry(entry);
        let (kind, size, device) = match entry.kind() {
            Kind::Regular { size } => (FileType::RegularFile, size, 0),
            Kind::Symlink { target } => (FileType::Symlink, target.len() as u64, 0),
            Kind::CharDevice { major, minor } => {
                (FileType::CharacterDevice, 0, rustix::fs::makedev(major, minor))
            }
            Kind::BlockDevice { major, minor } => {
                (FileType::BlockDevice, 0, rustix::fs::makedev(major, minor))
            }
            Kind::Fifo => (FileType::Fifo, 0, 0),
            Kind::Directory | Kind::Hardlink { .. } => return,
        };
        if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != device {
            return self.report(path, "is another kind of file");
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            self.report(path, format!("has {} bytes, not {size}", stat.st_size));
        }
        if let Kind::Symlink { target } = entry.kind() {
            let there = rustix::fs::readlinkat(directory, name, Vec::new());
            if there.as_ref().map(|there| there.to_bytes()) != Ok(target) {
                self.report(path, "leads elsewhere");
            }
        }
        if stat.st_nlink != node.names.len() as u64
            || *self.inodes.entry(number).or_insert(stat.st_ino) != stat.st_ino
        {
            self.report(path, format!("is not one of {} links to one file", node.names.len()));
        }
        self.attributes(path, directory, name, &Attributes::of_entry(&entry), false);
    }

    fn attributes(
        &mut self,
        path: &Path,
        directory: &OwnedFd,
        name: &[u8],
        attributes: &Attributes<'_>,
        opaque: bool,
    ) {
        for difference in attributes.differences(directory.as_fd(), name, opaque.then_some(OPAQUE)) {
            self.report(path, difference);
        }
    }

    /// Reads every file, in the order of the tar, so that each span is decoded once.
    fn content(&mut self) -> Result<(), UnpackError> {
        let mut by_layer: Vec<Vec<(u32, EntryId)>> = vec![Vec::new(); self.layers.len()];
        for (number, node) in (0..).zip(&self.plan.nodes) {
            if let Source::Entry { layer, entry } = node.source {
                by_layer[layer.index()].push((number, entry));
            }
        }
        let mut directories = self.places.cache();
        let mut buffer = Vec::new();
        for (number, files) in by_layer.iter().enumerate() {
            let layer = self.layers[number];
            for needed in units(layer, number, files).0.into_iter().flat_map(|unit| unit.needed) {
                let path_of = |file: u32| self.places.path(&self.plan.nodes[file as usize].names[0]);
                let span = layer
                    .decode_span(needed.span)
                    .map_err(|source| UnpackError::Read { path: path_of(needed.parts[0].file), source })?;
                let mut differing: Vec<(PathBuf, String)> = Vec::new();
                for part in &needed.parts {
                    let place = &self.plan.nodes[part.file as usize].names[0];
                    buffer.resize(part.len, 0);
                    let opened = directories.open(self.places, place.directory).ok().and_then(|directory| {
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                        rustix::fs::openat(directory, &*place.name, flags, Mode::empty()).ok()
                    });
                    // That it cannot be opened was reported before.
                    let Some(file) = opened.map(File::from) else { continue };
                    match file.read_exact_at(&mut buffer, part.offset) {
                        Err(error) => differing.push((path_of(part.file), error.to_string())),
                        Ok(()) if buffer != span[part.start..part.start + part.len] => {
                            let (from, to) = (part.offset, part.offset + part.len as u64);
                            differing.push((path_of(part.file), format!("bytes {from}..{to} differ")));
                        }
                        Ok(()) => {}
                    }
                }
                for (path, what) in differing {
                    self.report(&path, what);
                }
                if self.differences.len() >= ENOUGH {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Attributes<'_> {
    /// What of them is otherwise on the disk: of `name` in a directory, or of the directory itself where it is empty.
    fn differences(&self, directory: BorrowedFd<'_>, name: &[u8], marker: Option<&str>) -> Vec<String> {
        let mut differences = Vec::new();
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let stat = match rustix::fs::statat(directory, name, flags) {
            Ok(stat) => stat,
            Err(errno) => return vec![errno.to_string()],
        };
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let mode = stat.st_mode & 0o7777;
        if mode != u32::from(self.mode) && !is_link {
            differences.push(format!("has mode {mode:o}, not {:o}", self.mode));
        }
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            let (uid, gid) = (self.uid, self.gid);
            differences.push(format!("belongs to {}:{}, not {uid}:{gid}", stat.st_uid, stat.st_gid));
        }
        if (stat.st_mtime, u64::from(self.mtime.nsec)) != (self.mtime.sec, stat.st_mtime_nsec) {
            differences.push("was modified at another time".to_owned());
        }
        let mut link = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        link.extend_from_slice(name);
        match xattrs(&link) {
            Err(errno) => differences.push(format!("extended attributes: {errno}")),
            Ok(there) => {
                let mut wanted: Vec<(Vec<u8>, Vec<u8>)> =
                    self.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                wanted.extend(marker.map(|marker| (marker.as_bytes().to_vec(), b"y".to_vec())));
                wanted.sort_unstable();
                if there != wanted {
                    differences.push("has other extended attributes".to_owned());
                }
            }
        }
        differences
    }
}

/// All extended attributes, sorted; what a security module keeps of its own accord is left out.
fn xattrs(path: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = OsStr::from_bytes(path);
    // linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX.
    let mut buffer = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut buffer) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    let names: Vec<Vec<u8>> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .map(<[u8]>::to_vec)
        .collect();
    let mut found = Vec::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut buffer)?;
        found.push((name, buffer[..length].to_vec()));
    }
    found.sort_unstable();
    Ok(found)
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
