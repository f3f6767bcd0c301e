//! Owner, mode, extended attributes and times of what was made.
//!
//! In this order: a change of owner clears set-uid bits and file capabilities, an ACL is part of the mode, and each of
//! them changes the times.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::UnpackError;
use crate::index::Entry;
use crate::layer::Timestamp;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME};

/// What a node has beside its content.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    entry: Option<&'a Entry<'a>>,
}

impl<'a> Attributes<'a> {
    /// Those of an entry.
    pub(super) fn of_entry(entry: &'a Entry<'a>) -> Self {
        let (mode, uid, gid, mtime) = (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        Self { mode, uid, gid, mtime, entry: Some(entry) }
    }

    /// Those of a directory that no layer has an entry for.
    pub(super) fn implied() -> Self {
        Self { mode: IMPLIED_MODE, uid: 0, gid: 0, mtime: IMPLIED_MTIME, entry: None }
    }

    /// Sets them on an open file or directory.
    pub(super) fn set(&self, file: BorrowedFd<'_>, path: impl Fn() -> PathBuf) -> Result<(), UnpackError> {
        let failed = |action| {
            let path = &path;
            move |errno| UnpackError::new(path(), action, errno)
        };
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
            .map_err(failed("change the owner"))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode.into())).map_err(failed("change the mode"))?;
        for (name, value) in self.xattrs() {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
                .map_err(|errno| xattr_error(path(), name, errno))?;
        }
        rustix::fs::futimens(file, &self.times()).map_err(failed("set the times"))
    }

    /// Sets them on anything else than a regular file or a directory: those are not opened.
    pub(super) fn set_at(
        &self,
        directory: impl AsFd,
        name: &[u8],
        is_link: bool,
        path: impl Fn() -> PathBuf,
    ) -> Result<(), UnpackError> {
        let failed = |action| {
            let path = &path;
            move |errno| UnpackError::new(path(), action, errno)
        };
        let directory = directory.as_fd();
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rustix::fs::chownat(directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("change the owner"))?;
        // The mode of a symlink means nothing and cannot be set. Nobody but this process can have put one in place of
        // the node meanwhile: its directory is closed to others.
        if !is_link {
            rustix::fs::chmodat(directory, name, Mode::from_raw_mode(self.mode.into()), AtFlags::empty())
                .map_err(failed("change the mode"))?;
        }
        if self.entry.is_some() {
            let mut link = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            link.extend_from_slice(name);
            for (key, value) in self.xattrs() {
                rustix::fs::lsetxattr(OsStr::from_bytes(&link), key, value, XattrFlags::empty())
                    .map_err(|errno| xattr_error(path(), key, errno))?;
            }
        }
        rustix::fs::utimensat(directory, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the times"))
    }

    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.entry.into_iter().flat_map(Entry::xattrs)
    }

    /// The time of access is that of modification, as the mount shows it.
    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.sec, tv_nsec: self.mtime.nsec.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

fn xattr_error(path: PathBuf, name: &[u8], errno: rustix::io::Errno) -> UnpackError {
    use rustix::io::Errno;
    match errno {
        Errno::NOTSUP | Errno::PERM | Errno::INVAL | Errno::RANGE | Errno::TOOBIG => UnpackError::Xattr {
            path,
            name: String::from_utf8_lossy(name).into_owned(),
            source: errno.into(),
        },
        _ => UnpackError::new(path, "set an extended attribute", errno),
    }
}
