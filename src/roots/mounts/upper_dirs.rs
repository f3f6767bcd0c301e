//! The directories `upper` and `work` that an overlay writes to.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// Makes the directories `upper` and `work`.
///
/// `upper` gets the attributes of `image`, the root directory of the image: overlayfs shows the attributes of the upper.
pub(super) fn make(directory: BorrowedFd<'_>, image: &Stat) -> Result<(), Errno> {
    rustix::fs::mkdirat(directory, "work", Mode::RWXU)?;
    rustix::fs::mkdirat(directory, "upper", Mode::RWXU)?;
    copy_attributes(directory, "upper", image)
}

/// Copies owner, mode and modification time from `from` to a directory.
pub(super) fn copy_attributes(parent: BorrowedFd<'_>, name: &str, from: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(from.st_uid), Gid::from_raw(from.st_gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(from.st_mode & 0o7777), AtFlags::empty())?;
    let time = Timespec { tv_sec: from.st_mtime, tv_nsec: i64::try_from(from.st_mtime_nsec).unwrap_or(0) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
