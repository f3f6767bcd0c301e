//! Compares all that the kernel shows of a tree with what it must show.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, lgetxattr, lgetxattr_query, llistxattr,
    openat, statat,
};
use rustix::io::Errno;
use support::layers::{EntryKind, Line};

use super::expected::{ExpectedTree, ROOT};

/// Bytes around each end of a segment that are read, and the longest file that is read as a whole.
const AROUND: u64 = 600;
const WHOLE: u64 = 1 << 20;

/// The filesystem that shows a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// EROFS itself.
    Erofs,
    /// An overlay on top of it, which has inode numbers and link counts of directories of its own.
    Overlay,
}

struct Walk<'a> {
    expected: &'a ExpectedTree,
    shown: Shown,
    /// Whether a node has been compared under another name.
    compared: Vec<bool>,
    /// The node of each inode number.
    numbers: HashMap<u64, usize>,
    /// For messages: the names from the root to the current directory.
    path: Vec<Vec<u8>>,
    xattrs: Vec<u8>,
}

/// Walks over a whole tree. Panics at the first difference.
pub(super) fn assert_shows(root: &Path, expected: &ExpectedTree, shown: Shown) {
    let xattrs = vec![0; 1 << 16];
    let mut walk = Walk {
        expected,
        shown,
        compared: vec![false; expected.nodes.len()],
        numbers: HashMap::new(),
        path: Vec::new(),
        xattrs,
    };
    let mut directory = open_directory(CWD.as_fd(), root.as_os_str().as_bytes());
    walk.node(&directory, b".", ROOT);
    walk.directory(&directory, ROOT, ROOT);
    // Directories left to visit in each directory above: a tree can be too deep for recursion, and for paths.
    let mut above = vec![(ROOT, walk.subdirectories(ROOT))];
    while let Some((node, left)) = above.last_mut() {
        let node = *node;
        match left.pop() {
            Some((name, child)) => {
                directory = open_directory(directory.as_fd(), &name);
                walk.path.push(name);
                walk.directory(&directory, child, node);
                above.push((child, walk.subdirectories(child)));
            }
            None => {
                above.pop();
                walk.path.pop();
                if !above.is_empty() {
                    directory = open_directory(directory.as_fd(), b"..");
                }
            }
        }
    }
    if shown == Shown::Erofs {
        assert_eq!(walk.numbers.len(), expected.nodes.len(), "inode numbers");
    }
}

fn open_directory(at: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, OsStr::from_bytes(name), flags, Mode::empty())
        .unwrap_or_else(|errno| panic!("open {}: {errno}", name.escape_ascii()))
}

impl Walk<'_> {
    fn subdirectories(&self, node: usize) -> Vec<(Vec<u8>, usize)> {
        let children = self.expected.nodes[node].children.iter();
        let directories = children.filter(|(_, child)| self.line(**child).kind == EntryKind::Directory);
        directories.map(|(name, child)| (name.clone(), *child)).collect()
    }

    fn line(&self, node: usize) -> &Line {
        &self.expected.nodes[node].line
    }

    /// The end of the path of a name in the current directory, for messages.
    fn at(&self, name: &[u8]) -> String {
        let (depth, last) = (self.path.len(), self.path.last().map_or(&b"/"[..], |last| last));
        format!("{} in {} (depth {depth})", name.escape_ascii(), last.escape_ascii())
    }

    /// Compares a directory's list of names, and its children.
    fn directory(&mut self, directory: &OwnedFd, node: usize, parent: usize) {
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(directory).unwrap() {
            let entry = entry.unwrap_or_else(|errno| panic!("list {}: {errno}", self.at(b".")));
            let name = entry.file_name().to_bytes();
            let target = match name {
                b"." => node,
                b".." => parent,
                _ => match self.expected.nodes[node].children.get(name) {
                    Some(child) => *child,
                    None => panic!("{} is listed", self.at(name)),
                },
            };
            assert!(names.insert(name.to_vec()), "{} is listed twice", self.at(name));
            assert_eq!(entry.file_type(), file_type(&self.line(target).kind), "{}", self.at(name));
            if self.shown == Shown::Erofs && (name != b".." || node != ROOT) {
                let known = *self.numbers.entry(entry.ino()).or_insert(target);
                assert_eq!(known, target, "the inode number of {}", self.at(name));
            }
        }
        let expected = self.expected;
        let children = &expected.nodes[node].children;
        assert_eq!(names.len(), children.len() + 2, "the names of {}", self.at(b"."));
        for (name, child) in children {
            self.node(directory, name, *child);
        }
        // Names beside those that exist, where a search could go wrong.
        let few = children.len().div_ceil(200).max(1);
        let mut absent: Vec<Vec<u8>> = vec![vec![1], vec![0xff; 255], b"absent".to_vec()];
        for name in children.keys().step_by(few) {
            absent.push([name, &b"\x01"[..]].concat());
            absent.push(name[..name.len() - 1].to_vec());
            for step in [1, 0xff] {
                let mut near = name.clone();
                let last = near.last_mut().unwrap();
                *last = last.wrapping_add(step);
                absent.push(near);
            }
        }
        let is_name = |name: &[u8]| {
            (1..=255).contains(&name.len())
                && !matches!(name, b"." | b"..")
                && !name.contains(&0)
                && !name.contains(&b'/')
        };
        for name in absent.iter().filter(|name| is_name(name) && !children.contains_key(*name)) {
            let found =
                statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_ino);
            assert_eq!(found, Err(Errno::NOENT), "{}", self.at(name));
        }
    }

    /// Compares a node: attributes, xattrs, content.
    fn node(&mut self, directory: &OwnedFd, name: &[u8], node: usize) {
        let expected = self.expected;
        let line = &expected.nodes[node].line;
        let file = OsStr::from_bytes(name);
        let stat = statat(directory, file, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|errno| panic!("{}: {errno}", self.at(name)));
        let is_directory = line.kind == EntryKind::Directory;
        if self.shown == Shown::Erofs {
            let known = *self.numbers.entry(stat.st_ino).or_insert(node);
            assert_eq!(known, node, "the inode number of {}", self.at(name));
        }
        if self.shown == Shown::Erofs || !is_directory {
            assert_eq!(u128::from(stat.st_nlink), expected.nlink(node).into(), "links of {}", self.at(name));
        }
        assert_eq!(FileType::from_raw_mode(stat.st_mode), file_type(&line.kind), "{}", self.at(name));
        let shown = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, (stat.st_mtime, nanoseconds(&stat)));
        assert_eq!(shown, (line.mode, line.uid, line.gid, line.mtime), "{}", self.at(name));
        if std::mem::replace(&mut self.compared[node], true) {
            return;
        }
        self.xattrs(directory, name, line);
        let numbers = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let size = u64::try_from(stat.st_size).unwrap();
        match &line.kind {
            EntryKind::Char(major, minor) | EntryKind::Block(major, minor) => {
                assert_eq!(numbers(), (*major, *minor), "{}", self.at(name));
            }
            EntryKind::Symlink(target) => {
                let shown = rustix::fs::readlinkat(directory, file, Vec::new()).unwrap();
                assert!(shown.as_bytes() == target, "the target of {}", self.at(name));
                assert_eq!(size, target.len() as u64, "{}", self.at(name));
            }
            EntryKind::File(bytes) => {
                assert_eq!(size, bytes.len() as u64, "{}", self.at(name));
                if size > 0 {
                    self.content(directory, name, size, &[(0, bytes.clone())]);
                }
            }
            EntryKind::Sparse(length, segments) => {
                assert_eq!(size, *length, "{}", self.at(name));
                self.content(directory, name, size, segments);
            }
            _ => {}
        }
    }

    /// Compares the list of xattrs, their values, and answers for absent names.
    fn xattrs(&mut self, directory: &OwnedFd, name: &[u8], line: &Line) {
        let mut buffer = std::mem::take(&mut self.xattrs);
        let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
        let path = OsStr::from_bytes(&path);
        let length =
            llistxattr(path, &mut buffer).unwrap_or_else(|errno| panic!("{}: {errno}", self.at(name)));
        let mut listed: Vec<&[u8]> = buffer[..length].split(|byte| *byte == 0).collect();
        listed.sort_unstable();
        listed.remove(0);
        let mut expected: Vec<&[u8]> = line.xattrs.iter().map(|(name, _)| name.as_bytes()).collect();
        expected.sort_unstable();
        if listed != expected {
            let text = |names: &[&[u8]]| names.join(&b' ').escape_ascii().to_string();
            panic!("{} has xattrs {} instead of {}", self.at(name), text(&listed), text(&expected));
        }
        for (xattr, value) in &line.xattrs {
            let shown = lgetxattr(path, xattr, &mut buffer).map(|length| &buffer[..length]);
            assert!(
                shown == Ok(value),
                "{xattr} of {}: {:.100?} instead of {value:.100?}",
                self.at(name),
                shown
            );
            assert_eq!(lgetxattr_query(path, xattr), Ok(value.len()), "{xattr} of {}", self.at(name));
            if value.len() > 1 {
                let shown = lgetxattr(path, xattr, &mut buffer[..value.len() - 1]);
                assert_eq!(shown, Err(Errno::RANGE), "{xattr} of {}", self.at(name));
            }
        }
        let mut absent =
            vec!["user.absent".to_owned(), "trusted.absent".to_owned(), "security.capability".to_owned()];
        for (xattr, _) in line.xattrs.iter().step_by(line.xattrs.len().div_ceil(20).max(1)) {
            absent.push(format!("{xattr}x"));
            let mut shorter = xattr.clone();
            shorter.pop();
            absent.push(shorter);
        }
        absent.retain(|absent| {
            let (namespace, suffix) = absent.split_once('.').unwrap_or_default();
            let is_name = !suffix.is_empty() && namespace != "system" && absent.len() <= 255;
            is_name && line.xattrs.iter().all(|(xattr, _)| xattr != absent)
        });
        for absent in absent {
            let shown = lgetxattr(path, &absent, &mut buffer).map(|length| buffer[..length].to_vec());
            assert_eq!(shown, Err(Errno::NODATA), "{absent} of {}", self.at(name));
        }
        self.xattrs = buffer;
    }

    /// Compares a file with its segments, between which it is zero.
    fn content(&self, directory: &OwnedFd, name: &[u8], size: u64, segments: &[(u64, Vec<u8>)]) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = openat(directory, OsStr::from_bytes(name), flags, Mode::empty()).unwrap().into();
        let mut ranges: Vec<(u64, u64)> = segments
            .iter()
            .map(|(start, bytes)| (start.saturating_sub(AROUND), start + bytes.len() as u64 + AROUND))
            .collect();
        ranges.extend([(0, AROUND), (size / 3, size / 3 + AROUND), (size.saturating_sub(AROUND), size)]);
        if size <= WHOLE {
            ranges.push((0, size));
        }
        for (start, end) in ranges {
            let end = end.min(size);
            let mut expected = vec![0; usize::try_from(end.saturating_sub(start)).unwrap()];
            for (at, bytes) in segments {
                let (from, to) = ((*at).max(start), (at + bytes.len() as u64).min(end));
                if from < to {
                    let place = |offset: u64, base: u64| usize::try_from(offset - base).unwrap();
                    expected[place(from, start)..place(to, start)]
                        .copy_from_slice(&bytes[place(from, *at)..place(to, *at)]);
                }
            }
            let mut shown = vec![1; expected.len()];
            file.read_exact_at(&mut shown, start)
                .unwrap_or_else(|error| panic!("{} at {start}: {error}", self.at(name)));
            assert!(shown == expected, "{} from {start} to {end}", self.at(name));
        }
        assert_eq!(file.read_at(&mut [0], size).unwrap(), 0, "{} behind its end", self.at(name));
        // What the kernel calls a hole has no byte of a segment.
        let mut at = 0;
        while let Ok(hole) = rustix::fs::seek(&file, SeekFrom::Hole(at)) {
            let end = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap_or(size);
            let inside =
                segments.iter().find(|(start, bytes)| *start < end && start + bytes.len() as u64 > hole);
            assert!(inside.is_none(), "{} has no hole from {hole} to {end}", self.at(name));
            if end <= at || end >= size {
                break;
            }
            at = end;
        }
    }
}

fn nanoseconds(stat: &Stat) -> u32 {
    u32::try_from(stat.st_mtime_nsec).unwrap()
}

fn file_type(kind: &EntryKind) -> FileType {
    match kind {
        EntryKind::Directory => FileType::Directory,
        EntryKind::File(_) | EntryKind::Sparse(..) => FileType::RegularFile,
        EntryKind::Symlink(_) => FileType::Symlink,
        EntryKind::Char(..) => FileType::CharacterDevice,
        EntryKind::Block(..) => FileType::BlockDevice,
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::Hardlink(_) | EntryKind::Whiteout | EntryKind::Opaque => unreachable!("not a node"),
    }
}
