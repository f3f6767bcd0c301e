//! Homes: directories on disk that hold the files of one root each, mostly its upper.
//!
//! A home is locked with flock(2) on the directory itself, so that the lock exists exactly as long as the home. Homes are
//! removed while they are locked, so a lock counts only if the home still has its name (`os::lock_named`).

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

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
    /// Opens the directory of all homes; makes it if it does not exist. Its parent must exist.
    pub(super) fn open(path: &Path) -> Result<Self, RootsError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&path, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdir(&path, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(PathError::new("make directory", path, errno).into()),
                }
                open()
            }
            result => result,
        };
        Ok(Self { fd: fd.at("open", &path)?, path })
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
        // Without trusted.* attributes an overlay can be mounted, but shows removed files again.
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
                    // A sweep removed it, as the home of a process that died before it took the lock.
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
        // Between mkdirat(2) and open, a sweep may have removed our directory and another process made one.
        if home.is_empty().at("list", &path)? {
            return Ok(Some(home));
        }
        home.unlock();
        Ok(None)
    }

    /// Locks a home, waiting for at most `wait`.
    pub(super) fn lock(&self, id: &RootId, wait: Duration) -> Result<NamedLock<Home>, RootsError> {
        let path = self.path_of(id);
        let deadline = Instant::now() + wait;
        let lock =
            lock_named(self.fd(), &path, Sharing::Exclusive, Some(deadline), || self.open_home(id, &path))?;
        Ok(lock)
    }

    /// Whether another process holds the lock of a home.
    pub(super) fn is_locked(&self, id: &RootId) -> Result<bool, RootsError> {
        let path = self.path_of(id);
        let Some(home) = self.open_home(id, &path)? else { return Ok(false) };
        // Shared, so that two processes that ask at the same time do not see each other.
        if try_lock(&home, Sharing::Shared).at("lock", &path)? {
            home.unlock();
            return Ok(false);
        }
        Ok(true)
    }

    /// Opens a home without locking it; `None` if there is no directory of this name.
    fn open_home(&self, id: &RootId, path: &Path) -> Result<Option<Home>, PathError> {
        match rustix::fs::openat(&self.fd, id.as_str(), OPEN_DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Home { fd })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(PathError::new("open", path, errno)),
        }
    }

    /// Returns the names of all homes, sorted. Ignores other files in the directory.
    pub(super) fn ids(&self) -> Result<Vec<RootId>, RootsError> {
        Ok(ids_in(self.fd()).at("list", &self.path)?)
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
        let project = quota::project(home.as_fd());
        remove_tree(self.fd(), id.as_str().as_ref()).at("remove", &self.path_of(id))?;
        if let Some(project) = project {
            quota::lift(self.fd(), project).at("remove the quota of", &self.path_of(id))?;
        }
        home.unlock();
        Ok(())
    }
}

impl Home {
    fn is_empty(&self) -> Result<bool, Errno> {
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
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

/// Returns the names in a directory that are valid names of roots, sorted.
pub(super) fn ids_in(directory: BorrowedFd<'_>) -> Result<Vec<RootId>, Errno> {
    let mut ids = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        ids.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<RootId>().ok()));
    }
    ids.sort();
    Ok(ids)
}
