//! Directories of roots and boxes that another user could change are refused: root mounts them and removes files in them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::RootsError;
use crate::os::{AtPath as _, foreign_owner, foreign_writers};

/// Opens the directory `name` in `parent` without following a link. `path` is its path.
///
/// # Errors
///
/// [`RootsError::Untrusted`], also for a link.
pub(crate) fn open_trusted(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, RootsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            let reason = "it is a link or not a directory".to_owned();
            return Err(RootsError::Untrusted { path: path.to_owned(), reason });
        }
        result => result.at("open", path)?,
    };
    check_trusted(&directory, path)?;
    Ok(directory)
}

/// Fails unless an open directory belongs to root or the effective user, and only its owner may write to it.
///
/// # Errors
///
/// [`RootsError::Untrusted`].
pub(super) fn check_trusted(directory: impl AsFd, path: &Path) -> Result<(), RootsError> {
    let stat = rustix::fs::fstat(directory).at("stat", path)?;
    match foreign_owner(&stat).or_else(|| foreign_writers(&stat)) {
        Some(reason) => Err(RootsError::Untrusted { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}
