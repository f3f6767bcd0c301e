//! A directory that is filled under a temporary name and renamed when it is complete.
//!
//! An interrupted copy must never look like a complete one. So a tree is written next to its final path, in
//! `.NAME.rcx-imagefs-partial-PID`, and then renamed. A rename cannot replace a mountpoint: there the tree is written in place,
//! together with a marker file that is removed last.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, Timespec, Timestamps,
};
use rustix::io::Errno;

use crate::error::ErrorCode;
use crate::os::{AtPath as _, NamedLock, PathError, Sharing, is_linked, lock_named, remove_tree, try_lock};

/// Part of the name of an incomplete directory.
const PARTIAL: &str = ".rcx-imagefs-partial-";
/// The marker file in a mountpoint that is being filled.
const MARKER: &str = ".rcx-imagefs-incomplete";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The error of filling a directory.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The directory has content.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// An earlier copy into the mountpoint was interrupted.
    #[error("{} contains an incomplete copy, marked by the file {MARKER}", .0.display())]
    Incomplete(PathBuf),
    /// The path is a file of another type.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The path is a directory where a file should be.
    #[error("{} is a directory", .0.display())]
    IsADirectory(PathBuf),
    /// The parent directory does not exist.
    #[error("the directory {} does not exist", .0.display())]
    NoParent(PathBuf),
    /// The path does not end in a name.
    #[error("{} does not end in the name of a directory", .0.display())]
    NoName(PathBuf),
    /// Any other error of the operating system.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl StagingError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotEmpty(_) | Self::Incomplete(_) => ErrorCode::Exists,
            Self::NotADirectory(_) | Self::IsADirectory(_) | Self::NoParent(_) | Self::NoName(_) => {
                ErrorCode::Usage
            }
            Self::Io(error) => error.code(),
        }
    }
}

/// A directory that is being filled. If it is dropped without [`Staging::finish`], it stays incomplete.
#[derive(Debug)]
pub struct Staging {
    parent: OwnedFd,
    /// The final path.
    path: PathBuf,
    name: OsString,
    /// The temporary name; `None` if the directory is filled in place.
    partial: Option<OsString>,
    /// The directory; locked while it has its temporary name.
    root: OwnedFd,
}

impl Staging {
    /// Prepares to fill `path`, which must not exist or be an empty directory.
    ///
    /// Removes incomplete copies that dead processes left next to it.
    ///
    /// # Errors
    ///
    /// The path is in use, is not a directory or has no parent, or an I/O error occurs.
    pub fn new(path: &Path) -> Result<Self, StagingError> {
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => absolute(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(StagingError::NotADirectory(path.to_owned()));
            }
            Err(error) => return Err(PathError::new("open", path, error).into()),
        };
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name().map(OsStr::to_owned)) else {
            return Err(StagingError::NoName(path));
        };
        let parent = match rustix::fs::open(parent_path, DIRECTORY, Mode::empty()) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(StagingError::NoParent(parent_path.to_owned())),
            Err(errno) => return Err(PathError::new("open", parent_path, errno).into()),
        };
        match rustix::fs::openat(&parent, &name, DIRECTORY, Mode::empty()) {
            Ok(root) => {
                check_empty(&root, &path)?;
                if is_mount_root(&root).at("stat", &path)? {
                    let marker = path.join(MARKER);
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(&root, MARKER, flags, Mode::from_raw_mode(0o600))
                        .at("create", &marker)?;
                    rustix::fs::fchmod(&root, Mode::RWXU).at("change the mode of", &path)?;
                    return Ok(Self { parent, path, name, partial: None, root });
                }
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(StagingError::NotADirectory(path)),
            Err(errno) => return Err(PathError::new("open", path, errno).into()),
        }
        Self::beside(parent, path, name)
    }

    /// Prepares to replace the file `path`, or to make it. [`Staging::finish_file`] moves a file of the directory there. Links of
    /// its parent are followed, but not `path` itself.
    ///
    /// # Errors
    ///
    /// The parent does not exist, or an I/O error occurs.
    pub fn for_file(path: &Path) -> Result<Self, StagingError> {
        let path = absolute(path)?;
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name().map(OsStr::to_owned)) else {
            return Err(StagingError::NoName(path));
        };
        let parent = rustix::fs::open(parent_path, DIRECTORY, Mode::empty()).at("open", parent_path)?;
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(StagingError::IsADirectory(path));
        }
        Self::beside(parent, path, name)
    }

    /// Makes the directory with the temporary name, next to `path`.
    fn beside(parent: OwnedFd, path: PathBuf, name: OsString) -> Result<Self, StagingError> {
        let parent_path = path.parent().unwrap_or(Path::new("/"));
        let prefix = [b".", name.as_bytes(), PARTIAL.as_bytes()].concat();
        sweep(&parent, parent_path, &prefix)?;
        let partial = OsString::from_vec([&prefix[..], std::process::id().to_string().as_bytes()].concat());
        let root = make_locked(&parent, &partial, &parent_path.join(&partial))?;
        Ok(Self { parent, path, name, partial: Some(partial), root })
    }

    /// Returns the directory to fill.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the final path, without symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the directory to disk and renames it to its final path.
    ///
    /// # Errors
    ///
    /// The directory cannot be written or renamed, or another file was made at its path meanwhile.
    pub fn finish(self) -> Result<(), StagingError> {
        // After a crash, the final name must not exist without the content.
        rustix::fs::syncfs(&self.root).at("sync", &self.path)?;
        let Some(partial) = &self.partial else {
            return Ok(self.remove_marker()?);
        };
        // The kernel replaces only an empty directory.
        match rustix::fs::renameat_with(&self.parent, partial, &self.parent, &self.name, RenameFlags::empty())
        {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(StagingError::NotEmpty(self.path)),
            Err(Errno::NOTDIR) => return Err(StagingError::NotADirectory(self.path)),
            Err(errno) => return Err(PathError::new("rename the copy to", self.path, errno).into()),
        }
        Ok(rustix::fs::fsync(&self.parent).at("sync", &self.path)?)
    }

    /// Writes the file `name` of the directory to disk, moves it to the final path, and removes the directory. Replaces a file
    /// there, but not a directory.
    ///
    /// # Errors
    ///
    /// The file cannot be written or renamed.
    pub fn finish_file(self, name: &OsStr) -> Result<(), StagingError> {
        rustix::fs::syncfs(&self.root).at("sync", &self.path)?;
        let renamed = rustix::fs::renameat(&self.root, name, &self.parent, &self.name);
        if let Some(partial) = &self.partial {
            remove_tree(self.parent.as_fd(), partial)
                .at("remove the directory of the copy of", &self.path)?;
        }
        renamed.at("rename the copy to", &self.path)?;
        Ok(rustix::fs::fsync(&self.parent).at("sync", &self.path)?)
    }

    /// Removes the marker without changing the times of the directory, which are those of the image.
    fn remove_marker(&self) -> Result<(), PathError> {
        let stat = rustix::fs::fstat(&self.root).at("stat", &self.path)?;
        rustix::fs::unlinkat(&self.root, MARKER, AtFlags::empty()).at("remove", &self.path.join(MARKER))?;
        let time = |sec: i64, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec.try_into().unwrap_or(0) };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        rustix::fs::futimens(&self.root, &times).at("set the times of", &self.path)
    }

    /// Removes the incomplete copy. A directory that was filled in place stays, with its marker.
    ///
    /// # Errors
    ///
    /// The incomplete copy cannot be removed.
    pub fn abandon(self) -> io::Result<()> {
        match &self.partial {
            Some(partial) => remove_tree(self.parent.as_fd(), partial),
            None => Ok(()),
        }
    }
}

/// Makes the directory `name` in `parent` and locks it; `path` is its path.
fn make_locked(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, PathError> {
    let open = || {
        loop {
            rustix::fs::mkdirat(parent, name, Mode::RWXU).at("make directory", path)?;
            match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
                // Another process swept the directory before it was locked.
                Err(Errno::NOENT) => {}
                opened => return opened.map(Some).at("open", path),
            }
        }
    };
    match lock_named(parent.as_fd(), path, Sharing::Exclusive, None, open)? {
        NamedLock::Locked(root) => Ok(root),
        NamedLock::Busy | NamedLock::Missing => {
            unreachable!("waits without a deadline and makes the directory")
        }
    }
}

fn check_empty(directory: &OwnedFd, path: &Path) -> Result<(), StagingError> {
    let mut is_empty = true;
    for entry in Dir::read_from(directory).at("list", path)? {
        let entry = entry.at("list", path)?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            // mke2fs(8) makes this directory in every ext4 filesystem.
            b"lost+found" if is_mount_root(directory).at("stat", path)? => {}
            name if name == MARKER.as_bytes() => return Err(StagingError::Incomplete(path.to_owned())),
            _ => is_empty = false,
        }
    }
    if is_empty { Ok(()) } else { Err(StagingError::NotEmpty(path.to_owned())) }
}

/// Returns the absolute path of a file that does not exist.
fn absolute(path: &Path) -> Result<PathBuf, StagingError> {
    let Some(name) = path.file_name() else { return Err(StagingError::NoName(path.to_owned())) };
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(_) => Err(StagingError::NoParent(parent.to_owned())),
    }
}

fn is_mount_root(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Removes the directories in `parent` whose names start with `prefix` and that no process has locked.
fn sweep(parent: &OwnedFd, parent_path: &Path, prefix: &[u8]) -> Result<(), PathError> {
    let mut partials = Vec::new();
    for entry in Dir::read_from(parent).at("list", parent_path)? {
        let entry = entry.at("list", parent_path)?;
        if entry.file_name().to_bytes().starts_with(prefix) {
            partials.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
        }
    }
    for name in partials {
        let path = parent_path.join(&name);
        let Ok(directory) = rustix::fs::openat(parent, &name, DIRECTORY, Mode::empty()) else { continue };
        if try_lock(&directory, Sharing::Exclusive).at("lock", &path)?
            && is_linked(parent, &name, &directory).at("stat", &path)?
        {
            remove_tree(parent.as_fd(), &name).at("remove the incomplete copy", &path)?;
        }
    }
    Ok(())
}
