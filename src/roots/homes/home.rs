//! Homes: the directories on disk that hold a root's upper, one for each root.
//!
//! A home's lock is flock(2) on the home itself, so that it exists as long as the home does and making one is one step. As
//! homes are removed while their lock is held, whoever gets a lock looks whether the home still has its name.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, Stat, StatxFlags, Timestamps, Uid};
use rustix::io::Errno;

use crate::os::remove_tree;
use crate::roots::RootId;
use crate::roots::error::{At as _, RootsError};
use crate::roots::mounts::quota;

/// The directory of all homes.
#[derive(Debug)]
pub(crate) struct Homes {
    fd: OwnedFd,
    path: PathBuf,
}

/// One home, locked until this is dropped and all copies of its descriptor are closed.
#[derive(Debug)]
pub(crate) struct Home {
    fd: OwnedFd,
}

/// What came of looking for a home.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is there, and ours now.
    Locked(Home),
    /// Somebody else has it.
    Busy,
    /// There is none.
    Missing,
}

/// Filesystems of which the kernel says only that they do not serve (fstatfs(2), linux/magic.h).
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

/// For opening directories in which files are made and removed.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Homes {
    /// Opens the directory, made where it is missing; that which it is in has to be there.
    pub(crate) fn open(path: &Path) -> Result<Self, RootsError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&path, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdir(&path, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(RootsError::io("make", &path, errno)),
                }
                open()
            }
            opened => opened,
        };
        Ok(Self { fd: fd.at("open", &path)?, path })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path_of(&self, id: &RootId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Refuses a filesystem that cannot hold an upper.
    pub(crate) fn check_filesystem(&self) -> Result<(), RootsError> {
        let refuse = |filesystem| Err(RootsError::UpperFilesystem { path: self.path.clone(), filesystem });
        let kind = rustix::fs::fstatfs(&self.fd).at("statfs", &self.path)?.f_type;
        if let Some((_, name)) = NO_UPPER.iter().find(|(magic, _)| i128::from(*magic) == i128::from(kind)) {
            return refuse((*name).to_owned());
        }
        // An overlay on one without such attributes can be made, and then shows what was removed from it.
        match rustix::fs::fgetxattr(&self.fd, "trusted.overlay.opaque", &mut [0; 1]) {
            Err(Errno::OPNOTSUPP) => refuse(format!("{} (no extended attributes)", self.filesystem())),
            _ => Ok(()),
        }
    }

    /// The filesystem that homes are on, as the mount table names it.
    pub(crate) fn filesystem(&self) -> String {
        let unknown = || "this filesystem".to_owned();
        let Ok(stat) = rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) else {
            return unknown();
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let id = stat.stx_mnt_id.to_string();
        let mount = mounts.lines().find(|line| line.split(' ').next() == Some(&id));
        let kind = mount.and_then(|line| line.split_once(" - ")).and_then(|(_, rest)| rest.split(' ').next());
        kind.map_or_else(unknown, str::to_owned)
    }

    /// Makes a home and locks it; `None` where there is one of this name.
    pub(crate) fn make(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let path = || self.path_of(id);
        loop {
            match rustix::fs::mkdirat(&self.fd, id.as_str(), Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(None),
                Err(errno) => return Err(RootsError::io("make", &path(), errno)),
            }
            let fd = match rustix::fs::openat(&self.fd, id.as_str(), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                // A sweep was faster, which took it for the home of a process that died here.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(RootsError::io("open", &path(), errno)),
            };
            // A sweep can have it, to remove it; or another maker, whose directory this is, made after a sweep removed ours.
            rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive))
                .at("lock", &path())?;
            let home = Home { fd };
            if self.is_linked(id, &home.fd)? {
                if home.is_empty().at("list", &path())? {
                    return Ok(Some(home));
                }
                home.unlock();
                return Ok(None);
            }
        }
    }

    /// Locks a home where nobody else has.
    pub(crate) fn lock(&self, id: &RootId) -> Result<Found, RootsError> {
        let path = || self.path_of(id);
        let fd = match rustix::fs::openat(&self.fd, id.as_str(), DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Found::Missing),
            Err(errno) => return Err(RootsError::io("open", &path(), errno)),
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if self.is_linked(id, &fd)? => Ok(Found::Locked(Home { fd })),
            Ok(()) => Ok(Found::Missing),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Found::Busy),
            Err(errno) => Err(RootsError::io("lock", &path(), errno)),
        }
    }

    /// Whether another process has the lock of a home.
    pub(crate) fn is_locked(&self, id: &RootId) -> Result<bool, RootsError> {
        let path = || self.path_of(id);
        let fd = match rustix::fs::openat(&self.fd, id.as_str(), DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(RootsError::io("open", &path(), errno)),
        };
        // Shared: others who ask are not in the way of each other.
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Home { fd }.unlock(),
            Err(Errno::WOULDBLOCK) => return Ok(true),
            Err(errno) => return Err(RootsError::io("lock", &path(), errno)),
        }
        Ok(false)
    }

    /// The names in the directory that roots can have, sorted. What else is there is not ours.
    pub(crate) fn ids(&self) -> Result<Vec<RootId>, RootsError> {
        ids_in(self.fd()).at("list", &self.path)
    }

    /// Holds what will be made in an empty home to so many bytes.
    pub(crate) fn limit(&self, home: &Home, bytes: u64) -> Result<(), RootsError> {
        quota::limit(home.as_fd(), bytes).map_err(|errno| RootsError::NoQuota {
            path: self.path.clone(),
            filesystem: self.filesystem(),
            source: errno.into(),
        })
    }

    /// Removes a home, which `home` has the lock of, with all that is in it.
    pub(crate) fn remove(&self, id: &RootId, home: Home) -> Result<(), RootsError> {
        let project = quota::project(home.as_fd());
        remove_tree(self.fd(), id.as_str().as_ref()).at("remove", &self.path_of(id))?;
        if let Some(project) = project {
            quota::lift(self.fd(), project).at("lift the limit of", &self.path_of(id))?;
        }
        home.unlock();
        Ok(())
    }

    fn is_linked(&self, id: &RootId, fd: &OwnedFd) -> Result<bool, RootsError> {
        let path = || self.path_of(id);
        let ours = rustix::fs::fstat(fd).at("stat", &path())?;
        match rustix::fs::statat(&self.fd, id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(RootsError::io("stat", &path(), errno)),
        }
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

    /// Lets go at once, although a child process that is between fork and exec may have a copy of the descriptor.
    pub(crate) fn unlock(self) {
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names in a directory that roots can have, sorted.
pub(crate) fn ids_in(directory: BorrowedFd<'_>) -> Result<Vec<RootId>, Errno> {
    let mut ids = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        ids.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<RootId>().ok()));
    }
    ids.sort();
    Ok(ids)
}

/// Makes the directories `upper` and `work`. The root of an overlay has the attributes of its upper: those of `image`.
pub(crate) fn make_upper(directory: BorrowedFd<'_>, image: &Stat) -> Result<(), Errno> {
    rustix::fs::mkdirat(directory, "work", Mode::RWXU)?;
    rustix::fs::mkdirat(directory, "upper", Mode::RWXU)?;
    dress(directory, "upper", image)
}

/// Gives a new directory the owner, mode and time of another one.
pub(crate) fn dress(directory: BorrowedFd<'_>, name: &str, like: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(directory, name, Mode::from_raw_mode(like.st_mode & 0o7777), AtFlags::empty())?;
    rustix::fs::utimensat(directory, name, &times(like), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = rustix::fs::Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    Timestamps { last_access: time, last_modification: time }
}
