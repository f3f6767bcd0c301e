//! Reads a directory tree on disk without following its links.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::file::{RootFile, RootFileKind, is_kept};
use crate::layer::Timestamp;
use crate::os::{AtPath as _, PathError, XATTR_MAX, read_xattrs, retry_again};

/// A directory tree. Paths in it are relative; that of its root is empty.
#[derive(Debug)]
pub(super) struct DirectoryTree {
    root: OwnedFd,
    path: PathBuf,
}

/// A file of a tree, and its identity.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: RootFile,
    /// Device and inode number; `None` for a file with one name.
    pub(super) links: Option<(u64, u64)>,
}

/// Returns the path of a name in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Returns the directory of a path and its last component. The root is in itself, as `.`.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None if path.is_empty() => (b"", b"."),
        None => (b"", path),
    }
}

impl DirectoryTree {
    /// `path` is for error messages.
    pub(super) fn new(root: OwnedFd, path: PathBuf) -> Self {
        Self { root, path }
    }

    /// Returns the path of a file, for error messages.
    pub(super) fn path_of(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }

    /// Opens a file; `None` if there is none.
    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, PathError> {
        let name = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match retry_again(|| rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(PathError::new("open", self.path_of(path), errno)),
        }
    }

    /// Returns the names in a directory, sorted; `None` if there is no such directory.
    pub(super) fn names(&self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>, PathError> {
        let Some(directory) = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        let list = || -> Result<Vec<Vec<u8>>, Errno> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        list().map(Some).at("list", &self.path_of(path))
    }

    /// Returns whether there is a file, and its device and inode number.
    pub(super) fn identity(&self, path: &[u8]) -> Result<Option<(u64, u64)>, PathError> {
        let (directory, name) = split(path);
        let Some(directory) = self.open_at(directory, OFlags::PATH | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(PathError::new("stat", self.path_of(path), errno)),
        }
    }

    /// Returns whether a directory has an extended attribute.
    pub(super) fn has_xattr(&self, path: &[u8], name: &str) -> Result<bool, PathError> {
        let Some(directory) = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)? else {
            return Ok(false);
        };
        match rustix::fs::fgetxattr(&directory, name, &mut [0_u8; XATTR_MAX]) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(PathError::new("read the extended attributes of", self.path_of(path), errno)),
        }
    }

    /// Reads the attributes of a file; `None` if there is none.
    pub(super) fn file(&self, path: &[u8]) -> Result<Option<FoundFile>, PathError> {
        let (parent, name) = split(path);
        let Some(directory) = self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        let stat = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(PathError::new("stat", self.path_of(path), errno)),
        };
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => RootFileKind::Directory,
            FileType::RegularFile => RootFileKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&directory, name, Vec::new());
                let target = target.at("read the link", &self.path_of(path))?;
                RootFileKind::Symlink { target: target.into_bytes() }
            }
            FileType::CharacterDevice => RootFileKind::CharDevice { major: device.0, minor: device.1 },
            FileType::BlockDevice => RootFileKind::BlockDevice { major: device.0, minor: device.1 },
            FileType::Fifo => RootFileKind::Fifo,
            FileType::Socket => RootFileKind::Socket,
            FileType::Unknown => {
                let unknown = io::Error::other("it is of an unknown type");
                return Err(PathError::new("stat", self.path_of(path), unknown));
            }
        };
        let links =
            (kind != RootFileKind::Directory && stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        // A path below a descriptor: there are no calls that read the attributes of a name in a directory before Linux 6.13.
        let link = [format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).as_bytes(), name].concat();
        let xattrs = read_xattrs(OsStr::from_bytes(&link), is_kept);
        let xattrs = xattrs.at("read the extended attributes of", &self.path_of(path))?;
        let nsec = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let file = RootFile {
            kind,
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp { sec: stat.st_mtime, nsec },
            xattrs,
        };
        Ok(Some(FoundFile { file, links }))
    }

    /// Opens a regular file for reading.
    pub(super) fn open(&self, path: &[u8]) -> Result<File, PathError> {
        // O_NONBLOCK: does not wait for the writer of a FIFO.
        let file = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let missing = || PathError::new("open", self.path_of(path), Errno::NOENT);
        file.map(File::from).ok_or_else(missing)
    }
}
