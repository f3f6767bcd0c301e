//! Directories, durable files and temporary files: the steps of which every change of the store is made.
//!
//! A file appears under its name only when its bytes are on disk: written below `tmp/`, fsynced, renamed, and then the
//! directory is fsynced. A crash between any two steps leaves the old state and perhaps a leftover below `tmp/`.
//! A temporary file is locked (flock) for as long as its writer lives, so leftovers are those that nobody locks.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::{At as _, StoreError};

/// An open directory of the store.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the store's own directory. Its path is the user's, so symlinks in it are followed.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(Errno::NOENT) => Err(StoreError::Missing { path: path.to_owned() }),
            Err(Errno::NOTDIR) => Err(StoreError::NotPlain { path: path.to_owned(), wanted: "directory" }),
            Err(error) => Err(StoreError::io("open", path, error.into())),
        }
    }

    /// Opens a directory in this one, never through a symlink; `None` where there is nothing of that name.
    pub(super) fn sub(&self, name: &str) -> Result<Option<Self>, StoreError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(StoreError::NotPlain { path, wanted: "directory" }),
            Err(error) => Err(StoreError::io("open", &path, error.into())),
        }
    }

    /// Opens a directory in this one and makes it first where it is missing.
    pub(super) fn make_sub(&self, name: &str, mode: u32) -> Result<Self, StoreError> {
        if let Some(dir) = self.sub(name)? {
            return Ok(dir);
        }
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(StoreError::io("make", &path, error.into())),
        }
        self.sub(name)?.ok_or_else(|| StoreError::io("open", &path, Errno::NOENT.into()))
    }

    /// The same directory once more, for a second owner.
    pub(super) fn reopen(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone().at("open", &self.path)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes names that came or went durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.fd).at("sync", &self.path)
    }

    /// Opens a regular file for reading; `None` where there is none.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>, StoreError> {
        match self.file_with(name, OFlags::RDONLY, 0) {
            Ok(file) => Ok(Some(file)),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a regular file with `flags`, never through a symlink, and without hanging on a fifo.
    pub(super) fn file_with(&self, name: &str, flags: OFlags, mode: u32) -> Result<File, StoreError> {
        let path = self.path_of(name);
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let not_plain = |path| StoreError::NotPlain { path, wanted: "regular file" };
        let file: File = match rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => fd.into(),
            // ELOOP: a symlink. ENXIO: a fifo without a reader, or a socket. EISDIR: a directory opened for writing.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(not_plain(path)),
            Err(error) => return Err(StoreError::io("open", &path, error.into())),
        };
        let stat = rustix::fs::fstat(&file).at("stat", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_plain(path));
        }
        Ok(file)
    }

    /// Attributes of a name, of a symlink itself; `None` where there is nothing.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::io("stat", &self.path_of(name), error.into())),
        }
    }

    /// Removes a file; tells whether it was there.
    pub(super) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(StoreError::io("remove", &self.path_of(name), error.into())),
        }
    }

    /// Moves a file of this directory to `name` in `target`, in place of what is there.
    pub(super) fn rename(&self, from: &str, target: &Self, name: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.fd, from, &target.fd, name).at("replace", &target.path_of(name))
    }

    /// Names in this directory that are UTF-8, in no order. The store makes no others, and cares for no others.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).at("list", &self.path)? {
            let entry = entry.at("list", &self.path)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }
}

/// Whether `file` is what `name` in `dir` stands for now: false once it has been removed or replaced.
pub(super) fn is_linked(dir: &Dir, name: &str, file: &File) -> Result<bool, StoreError> {
    let ours = rustix::fs::fstat(file).at("stat", &dir.path_of(name))?;
    Ok(dir.stat(name)?.is_some_and(|found| (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)))
}

/// Reads a file that may not be longer than `limit` bytes.
pub(super) fn read_bounded(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let size = file.metadata().at("stat", path)?.len();
    let too_large = |size| StoreError::TooLarge { path: path.to_owned(), size, limit };
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes).at("read", path)?;
    match bytes.len() as u64 {
        got if got > limit => Err(too_large(got)),
        _ => Ok(bytes),
    }
}

/// A file that is being written and has no name of its own yet.
///
/// Becomes visible with [`Temp::commit`], all at once; dropped before that, it is removed.
#[derive(Debug)]
pub struct Temp {
    /// Locked, which tells a sweep that the writer lives.
    file: File,
    tmp: Dir,
    tmp_name: String,
    target: Dir,
    name: String,
    done: bool,
}

impl Temp {
    /// Starts a file that will be `name` in `target`. The umask applies to `mode`.
    pub(super) fn new(tmp: Dir, target: Dir, name: &str, mode: u32) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let tmp_name = format!("{}-{number}-{name}", std::process::id());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let file = match tmp.file_with(&tmp_name, flags, mode) {
                Ok(file) => file,
                // A leftover of a process that had the same number.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive).at("lock", &tmp.path_of(&tmp_name))?;
            // A sweep may have come between the open and the lock.
            if is_linked(&tmp, &tmp_name, &file)? {
                return Ok(Self { file, tmp, tmp_name, target, name: name.to_owned(), done: false });
            }
        }
    }

    /// Where the file will stand.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.target.path_of(&self.name)
    }

    /// The open file, for positioned writes and reading back.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in place, in place of what is there, and returns once that is on disk.
    pub fn commit(mut self) -> Result<(), StoreError> {
        self.file.sync_all().at("sync", &self.path())?;
        self.tmp.rename(&self.tmp_name, &self.target, &self.name)?;
        self.done = true;
        self.target.sync()
    }

    /// As [`Temp::commit`], but leaves a file of that name alone; tells whether the new one was put in place.
    pub(super) fn commit_if_missing(self) -> Result<bool, StoreError> {
        self.file.sync_all().at("sync", &self.path())?;
        let (from, to) = (&self.tmp, &self.target);
        match rustix::fs::linkat(&from.fd, &self.tmp_name, &to.fd, &self.name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(error) => return Err(StoreError::io("make", &self.path(), error.into())),
        }
        self.target.sync()?;
        Ok(true)
    }
}

impl Write for Temp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| StoreError::io("write", &self.path(), error).into_io())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.tmp.remove(&self.tmp_name)
        {
            tracing::warn!("{error}; the next sweep removes it");
        }
    }
}

/// Removes what dead writers left in `tmp`; returns how many files and bytes that were.
pub(super) fn sweep(tmp: &Dir, dry_run: bool) -> Result<(u64, u64), StoreError> {
    let (mut files, mut bytes) = (0, 0);
    for name in tmp.names()? {
        let file = match tmp.file(&name) {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            // Not made by the store, so not the store's to remove.
            Err(error @ StoreError::NotPlain { .. }) => {
                tracing::warn!("{error}: left alone");
                continue;
            }
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => continue,
            Err(error) => return Err(StoreError::io("lock", &tmp.path_of(&name), error.into())),
        }
        // Renamed to its place meanwhile, or another sweep was faster.
        if !is_linked(tmp, &name, &file)? {
            continue;
        }
        bytes += file.metadata().at("stat", &tmp.path_of(&name))?.len();
        files += 1;
        if !dry_run {
            tmp.remove(&name)?;
        }
    }
    Ok((files, bytes))
}
