//! The directory of all homes: its location, and the checks that it belongs to this program.
//!
//! Roots are removed by root, with everything in them, so a sweep must never mistake another directory for a home. Homes are in
//! a directory of their own, which this program makes with a marker file in it. It is opened without following links, and
//! refused if its marker is missing or another user could change it. Each home has a marker as well ([`super::home`]).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::marker::{MARKER, ids_in, mark, names_in};
use crate::os::{self, AtPath as _, PathError};
use crate::roots::RootsError;
use crate::roots::mounts::OPEN_DIRECTORY;

/// The directory of homes in `rcx-imagefs` of a store.
const IN_STORE: &str = "roots";
/// The directory of homes in the configured directory.
const IN_DIRECTORY: &str = "rcx-imagefs-roots";
/// The content of the marker. A crash may leave a part of it.
const CONTENT: &[u8] = b"roots of rcx-imagefs, version 1\n";
/// Names in homes of version 0.1, which had no marker.
const OLD_NAMES: [&str; 4] = ["upper", "work", "image", "root.json"];

/// The location of the homes of roots.
#[derive(Debug, Clone)]
pub enum HomesLocation {
    /// In a store: `<store>/rcx-imagefs/roots`. The directory above must exist.
    Store(PathBuf),
    /// In a configured directory: `<directory>/rcx-imagefs-roots`.
    Directory(PathBuf),
}

impl HomesLocation {
    /// The path of the directory of homes.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Store(store) => store.join("rcx-imagefs").join(IN_STORE),
            Self::Directory(directory) => directory.join(IN_DIRECTORY),
        }
    }

    /// Opens the directory of homes; makes it if it does not exist. Returns its absolute path too.
    pub(super) fn open(&self) -> Result<(OwnedFd, PathBuf), RootsError> {
        let path = self.path();
        let path = std::path::absolute(&path).at("make absolute", &path)?;
        let above = path.parent().expect("two names were joined");
        let (parent, name) = match self {
            Self::Store(_) => {
                let store = above.parent().expect("two names were joined");
                let opened = open_or_make(store)?;
                (open_own(opened.as_fd(), "rcx-imagefs", above)?, IN_STORE)
            }
            Self::Directory(_) => (open_or_make(above)?, IN_DIRECTORY),
        };
        let is_new = os::make_directory(&parent, name, Mode::RWXU).at("make directory", &path)?;
        let homes = open_own(parent.as_fd(), name, &path)?;
        if let Self::Directory(_) = self {
            check_parent(&parent, above)?;
        }
        check(&homes, &path)?;
        let content = read_marker(&homes, &path)?.unwrap_or_default();
        if content == CONTENT {
            return Ok((homes, path));
        }
        let is_ours = CONTENT.starts_with(&content)
            && match self {
                // Version 0.1 made it, without a marker.
                Self::Store(_) => true,
                Self::Directory(_) => {
                    names_in(homes.as_fd()).at("list", &path)?.iter().all(|name| name == MARKER)
                }
            };
        if !is_ours {
            let reason = format!(
                "the file {MARKER} in it, which marks directories of rcx-imagefs, is missing or different"
            );
            return Err(RootsError::Untrusted { path, reason });
        }
        match self {
            Self::Store(_) => adopt_old_homes(&homes, &path)?,
            Self::Directory(_) if is_new => report_old_homes(&parent, above)?,
            Self::Directory(_) => {}
        }
        write_marker(&homes, &path)?;
        Ok((homes, path))
    }
}

/// Opens a directory that the user chose, following links; makes it if it does not exist.
fn open_or_make(path: &Path) -> Result<OwnedFd, PathError> {
    os::make_directory(rustix::fs::CWD, path, Mode::RWXU).at("make directory", path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

/// Opens a directory that this program made, without following a link.
fn open_own(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, RootsError> {
    match rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            let reason = "it is a link or not a directory".to_owned();
            Err(RootsError::Untrusted { path: path.to_owned(), reason })
        }
        result => Ok(result.at("open", path)?),
    }
}

/// Fails if another user could replace the directory of homes.
fn check_parent(parent: &OwnedFd, path: &Path) -> Result<(), RootsError> {
    let stat = rustix::fs::fstat(parent).at("stat", path)?;
    let is_sticky = Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX);
    let writers = if is_sticky { None } else { os::foreign_writers(&stat) };
    match os::foreign_owner(&stat).or(writers) {
        Some(reason) => Err(RootsError::Untrusted { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

/// Fails unless the directory belongs to the effective user, and only this user may write to it.
fn check(homes: &OwnedFd, path: &Path) -> Result<(), RootsError> {
    let stat = rustix::fs::fstat(homes).at("stat", path)?;
    let owner = rustix::process::geteuid().as_raw();
    let other_owner =
        (stat.st_uid != owner).then(|| format!("it belongs to user {}, not to user {owner}", stat.st_uid));
    match other_owner.or_else(|| os::foreign_writers(&stat)) {
        Some(reason) => Err(RootsError::Untrusted { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

/// Returns the content of the marker; `None` if the marker is missing.
fn read_marker(homes: &OwnedFd, path: &Path) -> Result<Option<Vec<u8>>, PathError> {
    let path = path.join(MARKER);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(homes, MARKER, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(PathError::new("open", path, errno)),
    };
    let stat = rustix::fs::fstat(&file).at("stat", &path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PathError::new("read", path, io::Error::other("it is not a regular file")));
    }
    let mut content = Vec::new();
    let longest = CONTENT.len() as u64 + 1;
    File::from(file).take(longest).read_to_end(&mut content).at("read", &path)?;
    Ok(Some(content))
}

/// Writes the marker. Concurrent processes write the same bytes.
fn write_marker(homes: &OwnedFd, path: &Path) -> Result<(), PathError> {
    let path = path.join(MARKER);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(homes, MARKER, flags, Mode::RUSR | Mode::WUSR).at("create", &path)?;
    File::from(file).write_all(CONTENT).at("write", &path)
}

/// Marks the homes that version 0.1 left in a store. Other directories stay without a marker, and are never removed.
fn adopt_old_homes(homes: &OwnedFd, path: &Path) -> Result<(), RootsError> {
    for id in ids_in(homes.as_fd()).at("list", path)? {
        if let Some(home) = open_old_home(homes.as_fd(), id.as_str()) {
            mark(home.as_fd()).at("write the marker in", &path.join(id.as_str()))?;
        }
    }
    Ok(())
}

/// Names the homes that version 0.1 left directly in the configured directory. They may also be unrelated directories, so they
/// are not touched.
fn report_old_homes(directory: &OwnedFd, path: &Path) -> Result<(), RootsError> {
    for id in ids_in(directory.as_fd()).at("list", path)? {
        if open_old_home(directory.as_fd(), id.as_str()).is_some() {
            let home = path.join(id.as_str());
            tracing::warn!(
                "{0} looks like a root of rcx-imagefs 0.1, which no command removes any more. If it is one, remove it \
                 by hand: `rcx-imagefs root remove {id}` if it is mounted, then `rm -r {0}`",
                home.display()
            );
        }
    }
    Ok(())
}

/// Opens a directory if its owner, mode and content are those of a home that version 0.1 made.
fn open_old_home(parent: BorrowedFd<'_>, name: &str) -> Option<OwnedFd> {
    let home = rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&home).ok()?;
    let is_private = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
    let names = names_in(home.as_fd()).ok()?;
    // An interrupted removal leaves `.deep-N` (os::remove_tree).
    let is_old_name = |name: &OsString| {
        name.to_str().is_some_and(|name| OLD_NAMES.contains(&name) || name.starts_with(".deep-"))
    };
    (is_private && !names.is_empty() && names.iter().all(is_old_name)).then_some(home)
}
