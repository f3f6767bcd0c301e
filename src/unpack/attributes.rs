//! Sets the owner, mode, extended attributes and times of files, in this order.
//!
//! A change of owner clears set-uid bits and file capabilities, an ACL changes the mode, and all three change the times.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::UnpackError;
use crate::index::{Entry, IndexedKind};
use crate::layer::Timestamp;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME};

/// The extended attribute with the capabilities that a program gains (capabilities(7), "File capabilities").
const CAPABILITIES: &[u8] = b"security.capability";
/// The set-user-ID and set-group-ID bits.
const SETUID_SETGID: u16 = 0o6000;

/// The metadata of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeAttributes<'a> {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    entry: Option<&'a Entry<'a>>,
    without_capabilities: bool,
    /// Whether files keep the owner that they were made with. Extended attributes are then left out too: ACLs name users of the
    /// image.
    without_owner: bool,
}

impl<'a> NodeAttributes<'a> {
    pub(super) fn of_entry(entry: &'a Entry<'a>) -> Self {
        let (mode, uid, gid, mtime) = (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
        Self { mode, uid, gid, mtime, entry: Some(entry), without_capabilities: false, without_owner: false }
    }

    /// The same without what lets a program gain the rights of another user: set-uid and set-gid bits and capabilities.
    ///
    /// Directories keep their bits, which only choose the group of new files.
    pub(super) fn without_setuid(self) -> Self {
        match self.entry.map(Entry::kind) {
            None | Some(IndexedKind::Directory) => self,
            Some(_) => Self { mode: self.mode & !SETUID_SETGID, without_capabilities: true, ..self },
        }
    }

    /// The attributes of a directory that no layer has an entry for.
    pub(super) fn implied() -> Self {
        Self {
            mode: IMPLIED_MODE,
            uid: 0,
            gid: 0,
            mtime: IMPLIED_MTIME,
            entry: None,
            without_capabilities: false,
            without_owner: false,
        }
    }

    /// The same without owner, group and extended attributes.
    pub(super) fn without_owner(self) -> Self {
        Self { without_owner: true, ..self }
    }

    /// The owner and group to set.
    fn owner(&self) -> Option<(Option<Uid>, Option<Gid>)> {
        (!self.without_owner).then(|| (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))))
    }

    /// Sets the attributes of an open file or directory. `path` is for error messages.
    pub(super) fn set(&self, file: BorrowedFd<'_>, path: impl Fn() -> PathBuf) -> Result<(), UnpackError> {
        let failed = |action| {
            let path = &path;
            move |errno| UnpackError::new(action, path(), errno)
        };
        if let Some((uid, gid)) = self.owner() {
            rustix::fs::fchown(file, uid, gid).map_err(failed("change the owner of"))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode.into()))
            .map_err(failed("change the mode of"))?;
        for (name, value) in self.xattrs() {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
                .map_err(|errno| UnpackError::xattr(name, path(), errno))?;
        }
        rustix::fs::futimens(file, &self.times()).map_err(failed("set the times of"))
    }

    /// Sets the attributes of a symlink, device or FIFO, without opening it.
    pub(super) fn set_at(
        &self,
        directory: impl AsFd,
        name: &[u8],
        is_symlink: bool,
        path: impl Fn() -> PathBuf,
    ) -> Result<(), UnpackError> {
        let failed = |action| {
            let path = &path;
            move |errno| UnpackError::new(action, path(), errno)
        };
        let directory = directory.as_fd();
        if let Some((uid, gid)) = self.owner() {
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("change the owner of"))?;
        }
        // A symlink has no mode of its own. fchmodat(2) follows links, but only this process could replace the node with a
        // link: other users cannot enter the directory.
        if !is_symlink {
            rustix::fs::chmodat(directory, name, Mode::from_raw_mode(self.mode.into()), AtFlags::empty())
                .map_err(failed("change the mode of"))?;
        }
        if self.entry.is_some() {
            let mut link = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            link.extend_from_slice(name);
            for (key, value) in self.xattrs() {
                rustix::fs::lsetxattr(OsStr::from_bytes(&link), key, value, XattrFlags::empty())
                    .map_err(|errno| UnpackError::xattr(key, path(), errno))?;
            }
        }
        rustix::fs::utimensat(directory, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the times of"))
    }

    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let dropped = self.without_capabilities.then_some(CAPABILITIES);
        let entry = self.entry.filter(|_| !self.without_owner);
        entry.into_iter().flat_map(Entry::xattrs).filter(move |(name, _)| Some(*name) != dropped)
    }

    /// The access time equals the modification time, as in the mount.
    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.sec, tv_nsec: self.mtime.nsec.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}
