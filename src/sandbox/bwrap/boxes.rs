//! The boxes of runs under bubblewrap: directories, each named after the number of its box.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::os::{AtPath as _, remove_tree};
use crate::sandbox::User;
use crate::sandbox::error::SandboxError;

/// Makes the directory of box `id` in `directories`, owned by `user`.
pub(super) fn make_directory(directories: &Path, id: u32, user: User) -> Result<PathBuf, SandboxError> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder.recursive(true).create(directories).at("make", directories)?;
    let path = directories.join(id.to_string());
    builder.recursive(false).create(&path).at("make", &path)?;
    rustix::fs::chown(&path, Some(user.uid()), Some(user.gid())).at("change the owner of", &path)?;
    Ok(path)
}

/// Removes the directory of box `id` and everything in it, if it exists.
pub(in crate::sandbox) fn remove_directory(directories: &Path, id: u32) -> Result<(), SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(directories, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.at("open", directories)?,
    };
    let name = id.to_string();
    match remove_tree(parent.as_fd(), OsStr::new(&name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => Ok(result.at("remove", &directories.join(name))?),
    }
}
