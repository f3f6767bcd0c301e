//! The marker of directories that belong to this program, and the names in such directories.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::roots::RootId;

/// The marker of a home, and of the directory of homes. No root has such a name.
pub(super) const MARKER: &str = ".rcx-imagefs";

/// Writes the marker of a home.
pub(super) fn mark(home: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(home, MARKER, flags, Mode::RUSR | Mode::WUSR).map(drop)
}

/// Returns the names in a directory that are valid names of roots, sorted.
pub(super) fn ids_in(directory: BorrowedFd<'_>) -> Result<Vec<RootId>, Errno> {
    let mut ids: Vec<RootId> =
        names_in(directory)?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    ids.sort();
    Ok(ids)
}

/// Returns the names in a directory.
pub(super) fn names_in(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
