//! Homes: directories on disk that hold the files of one root each, mostly its upper.
//!
//! A home is locked with flock(2) on the directory itself, so that the lock exists exactly as long as the home. Homes are
//! removed while they are locked, so a lock counts only if the home still has its name (`os::lock_named`).
//!
//! A home has a marker: an empty file that is made first and removed last. A directory with other content and without a
//! marker is not a home, whatever its name; it is neither listed nor removed. An empty directory is a home that was being
//! made or removed when its process died; only rmdir(2) is used on it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, StatxFlags};
use rustix::io::Errno;

use super::location::HomesLocation;
use super::marker::{MARKER, ids_in, mark, names_in};
use crate::os::{AtPath as _, NamedLock, PathError, Sharing, lock_named, remove_tree, try_lock, unlock};
use crate::roots::mounts::{OPEN_DIRECTORY, quota};
use crate::roots::{RootId, RootsError};

/// The directory of all homes.
#[derive(Debug)]
pub(super) struct Homes {
    fd: OwnedFd,
    path: PathBuf,
}

/// A locked home. The lock ends when this value and all copies of its descriptor are closed.
#[derive(Debug)]
pub(super) struct Home {
    fd: OwnedFd,
}

/// Filesystems that cannot hold an upper, by their magic number (fstatfs(2), linux/magic.h). The kernel's own error does not
/// name the reason.
const NO_UPPER: [(u32, &str); 8] = [
    (0x794c_7630, "overlay"),
    (0x6573_5546, "FUSE"),
    (0x0000_6969, "NFS"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0x0102_1997, "9p"),
    (0x0000_4d44, "FAT"),
    (0x2011_bab0, "exFAT"),
];

impl Homes {
    /// Opens the directory of all homes; makes it if it does not exist.
    pub(super) fn open(location: &HomesLocation) -> Result<Self, RootsError> {
        let (fd, path) = location.open()?;
        Ok(Self { fd, path })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn path_of(&self, id: &RootId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Fails if the filesystem cannot hold an upper.
    pub(super) fn check_filesystem(&self) -> Result<(), RootsError> {
        let refuse = |filesystem| Err(RootsError::UpperFilesystem { path: self.path.clone(), filesystem });
        let kind = rustix::fs::fstatfs(&self.fd).at("statfs", &self.path)?.f_type;
        if let Some((_, name)) = NO_UPPER.iter().find(|(magic, _)| i128::from(*magic) == i128::from(kind)) {
            return refuse((*name).to_owned());
        }
        // Without trusted.* attributes, an overlay can be mounted, but shows deleted files again.
        match rustix::fs::fgetxattr(&self.fd, "trusted.overlay.opaque", &mut [0; 1]) {
            Err(Errno::OPNOTSUPP) => {
                refuse(format!("{}, which has no extended attributes,", self.filesystem()))
            }
            _ => Ok(()),
        }
    }

    /// Returns the filesystem type of the homes, as in the mount table.
    fn filesystem(&self) -> String {
        let unknown = || "the filesystem".to_owned();
        let Ok(stat) = rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) else {
            return unknown();
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let id = stat.stx_mnt_id.to_string();
        let mount = mounts.lines().find(|line| line.split(' ').next() == Some(&id));
        let kind = mount.and_then(|line| line.split_once(" - ")).and_then(|(_, rest)| rest.split(' ').next());
        kind.map_or_else(unknown, str::to_owned)
    }

    /// Makes and locks a home; returns `None` if there already is a home with this name.
    pub(super) fn make(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let path = self.path_of(id);
        let make = || {
            loop {
                match rustix::fs::mkdirat(&self.fd, id.as_str(), Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => return Ok(None),
                    Err(errno) => return Err(PathError::new("make directory", &path, errno)),
                }
                match self.open_home(id, &path)? {
                    // A sweep removed the home, which looked like that of a process that died before it took the lock.
                    None => {}
                    home => return Ok(home),
                }
            }
        };
        let home = match lock_named(self.fd(), &path, Sharing::Exclusive, None, make)? {
            NamedLock::Locked(home) => home,
            NamedLock::Missing => return Ok(None),
            NamedLock::Busy => unreachable!("waits without a deadline"),
        };
        // Between mkdirat(2) and open, a sweep may have removed the directory of this process, and another process may have
        // made a new one.
        if !names_in(home.as_fd()).at("list", &path)?.is_empty() {
            home.unlock();
            return Ok(None);
        }
        if let Err(errno) = mark(home.as_fd()) {
            let _ = rustix::fs::unlinkat(&self.fd, id.as_str(), AtFlags::REMOVEDIR);
            return Err(PathError::new("write the marker in", path, errno).into());
        }
        Ok(Some(home))
    }

    /// Locks a home, waiting for at most `wait`.
    pub(super) fn lock(&self, id: &RootId, wait: Duration) -> Result<NamedLock<Home>, RootsError> {
        let path = self.path_of(id);
        let deadline = Instant::now() + wait;
        let lock =
            lock_named(self.fd(), &path, Sharing::Exclusive, Some(deadline), || self.open_home(id, &path))?;
        Ok(lock)
    }

    /// Returns whether another process holds the lock of a home.
    pub(super) fn is_locked(&self, id: &RootId) -> Result<bool, RootsError> {
        let path = self.path_of(id);
        let Some(home) = self.open_home(id, &path)? else { return Ok(false) };
        // Use a shared lock, so that two concurrent checks do not see each other.
        if try_lock(&home, Sharing::Shared).at("lock", &path)? {
            home.unlock();
            return Ok(false);
        }
        Ok(true)
    }

    /// Opens a home without locking it; `None` if there is no home with this name.
    fn open_home(&self, id: &RootId, path: &Path) -> Result<Option<Home>, PathError> {
        let home = match rustix::fs::openat(&self.fd, id.as_str(), OPEN_DIRECTORY, Mode::empty()) {
            Ok(fd) => Home { fd },
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(PathError::new("open", path, errno)),
        };
        // The order matters: the process that makes the home may add the marker meanwhile.
        let is_home = names_in(home.as_fd()).at("list", path)?.is_empty()
            || home.has_marker().at("stat the marker in", path)?;
        Ok(is_home.then_some(home))
    }

    /// Returns the names of all homes, sorted. Ignores other files in the directory.
    pub(super) fn ids(&self) -> Result<Vec<RootId>, RootsError> {
        let mut ids = Vec::new();
        for id in ids_in(self.fd()).at("list", &self.path)? {
            if self.open_home(&id, &self.path_of(&id))?.is_some() {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Limits the size of everything that will be made in an empty home.
    pub(super) fn limit(&self, home: &Home, bytes: u64) -> Result<(), RootsError> {
        quota::limit(home.as_fd(), bytes).map_err(|errno| RootsError::NoQuota {
            path: self.path.clone(),
            filesystem: self.filesystem(),
            source: errno.into(),
        })
    }

    /// Removes a locked home with its content.
    pub(super) fn remove(&self, id: &RootId, home: Home) -> Result<(), RootsError> {
        let path = self.path_of(id);
        let project = quota::project(home.as_fd());
        if home.has_marker().at("stat the marker in", &path)? {
            // The marker is removed last, so that another call can continue an interrupted removal.
            for name in names_in(home.as_fd()).at("list", &path)?.iter().filter(|name| *name != MARKER) {
                remove_tree(home.as_fd(), name).at("remove", &path.join(name))?;
            }
            rustix::fs::unlinkat(&home, MARKER, AtFlags::empty()).at("remove the marker in", &path)?;
        }
        rustix::fs::unlinkat(&self.fd, id.as_str(), AtFlags::REMOVEDIR).at("remove", &path)?;
        if let Some(project) = project {
            quota::lift(self.fd(), project).at("remove the quota of", &path)?;
        }
        home.unlock();
        Ok(())
    }
}

impl Home {
    fn has_marker(&self) -> Result<bool, Errno> {
        match rustix::fs::statat(&self.fd, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Releases the lock at once, even if a child process between fork and exec has a copy of the descriptor.
    pub(super) fn unlock(self) {
        unlock(&self.fd);
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
