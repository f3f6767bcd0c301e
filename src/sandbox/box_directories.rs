//! The boxes of backends that make their own: directories, each named after the number of its box.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode};
use rustix::io::Errno;

use super::user::User;
use crate::os::{AtPath as _, PathError, make_directory, remove_tree};
use crate::roots::{RootsError, open_trusted};

/// The directory of all boxes.
const BOXES: &str = "boxes";

/// The directory of all boxes. It is opened at each use, and refused if another user could change it: root removes boxes
/// with everything in them.
#[derive(Debug, Clone)]
pub(super) struct BoxDirectories {
    /// The directory above.
    parent: Arc<OwnedFd>,
    path: PathBuf,
}

impl BoxDirectories {
    /// The boxes in an open directory with this path.
    pub(super) fn below(parent: OwnedFd, path: &Path) -> Self {
        Self { parent: Arc::new(parent), path: path.join(BOXES) }
    }

    /// The path of a box, whether or not it exists.
    pub(super) fn path_of(&self, id: u32) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// The numbers of the boxes that exist.
    pub(super) fn numbers(&self) -> Result<Vec<u32>, RootsError> {
        match self.open()? {
            Some(directory) => numbers_in(&directory, &self.path),
            None => Ok(Vec::new()),
        }
    }

    /// Makes the directory of a box, owned by `user`.
    pub(super) fn make(&self, id: u32, user: User) -> Result<PathBuf, RootsError> {
        make_directory(&self.parent, BOXES, Mode::RWXU).at("make", &self.path)?;
        let path = self.path_of(id);
        let directory = self.open()?.ok_or_else(|| PathError::new("open", &self.path, Errno::NOENT))?;
        let name = id.to_string();
        rustix::fs::mkdirat(&directory, &*name, Mode::RWXU).at("make", &path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Some(user.uid()), Some(user.gid()));
        rustix::fs::chownat(&directory, &*name, uid, gid, flags).at("change the owner of", &path)?;
        Ok(path)
    }

    /// Removes the directory of a box and everything in it, if it exists.
    pub(super) fn remove(&self, id: u32) -> Result<(), RootsError> {
        let Some(directory) = self.open()? else { return Ok(()) };
        let name = id.to_string();
        Ok(remove_tree(directory.as_fd(), OsStr::new(&name)).at("remove", &self.path_of(id))?)
    }

    /// Opens the directory; `None` if it does not exist.
    fn open(&self) -> Result<Option<OwnedFd>, RootsError> {
        match rustix::fs::statat(&self.parent, BOXES, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            _ => Ok(Some(open_trusted(self.parent.as_fd(), BOXES, &self.path)?)),
        }
    }
}

/// Returns the names in a directory that are numbers.
pub(super) fn numbers_in(directory: &OwnedFd, path: &Path) -> Result<Vec<u32>, RootsError> {
    let mut numbers = Vec::new();
    for entry in Dir::read_from(directory).at("list", path)? {
        let entry = entry.at("list", path)?;
        numbers.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}
