//! Directory handles and temporary files, which make every change to the store.
//!
//! A file receives its final name only when its content is on disk: it is written below `tmp/`, synced and renamed; then its
//! directory is synced. A crash between two steps leaves the old state and perhaps a leftover file below `tmp/`.
//! The writer holds a lock (flock) on its temporary file, so an unlocked file is a leftover.
//!
//! Root may use the store of another user, who can put links in place of everything in it. So the store's directory is opened
//! once, everything in it is reached through descriptors and without following links, and modes are set through descriptors.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::StoreError;
use crate::os::{self, AtPath as _, NamedLock, PathError, Sharing};

/// An open directory of the store.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the store's own directory. Follows a symlink in its place only if it belongs to root or the effective user.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOTDIR) => match trusted_link_target(path)? {
                Some(target) => rustix::fs::open(target, flags, Mode::empty()),
                None => Err(Errno::NOTDIR),
            },
            opened => opened,
        };
        match opened {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(Errno::NOENT) => Err(StoreError::Missing { path: path.to_owned() }),
            Err(Errno::NOTDIR) => {
                Err(StoreError::WrongFileType { path: path.to_owned(), expected: "directory" })
            }
            // The directory may be private. Otherwise, a directory above it is.
            Err(errno @ Errno::ACCESS) => Err(match rustix::fs::stat(path) {
                Ok(stat) => StoreError::private(path, &stat, errno),
                Err(_) => PathError::new("open", path, errno).into(),
            }),
            Err(errno) => Err(PathError::new("open", path, errno).into()),
        }
    }

    /// Opens a directory in this one, never through a symlink; `None` if it is missing.
    pub(super) fn sub(&self, name: &str) -> Result<Option<Self>, StoreError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(StoreError::WrongFileType { path, expected: "directory" })
            }
            Err(errno) => Err(PathError::new("open", path, errno).into()),
        }
    }

    /// Opens a directory in this one, creating it if missing. A new directory has this mode, whatever the umask.
    pub(super) fn make_sub(&self, name: &str, mode: u32) -> Result<Self, StoreError> {
        if let Some(dir) = self.sub(name)? {
            return Ok(dir);
        }
        let path = self.path.join(name);
        let is_new = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(PathError::new("create", path, errno).into()),
        };
        let dir = self.sub(name)?.ok_or_else(|| PathError::new("open", path, Errno::NOENT))?;
        if is_new {
            dir.set_mode(mode)?;
            self.sync()?;
        }
        Ok(dir)
    }

    /// The attributes of the directory itself.
    pub(super) fn attributes(&self) -> Result<Stat, StoreError> {
        Ok(rustix::fs::fstat(&self.fd).at("stat", &self.path)?)
    }

    /// Sets the mode of the directory itself.
    pub(super) fn set_mode(&self, mode: u32) -> Result<(), StoreError> {
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::fchmod(&self.fd, mode).at("change the mode of", &self.path)?)
    }

    /// Duplicates the handle, for a second owner.
    pub(super) fn reopen(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone().at("open", &self.path)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The directory's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor and the path.
    pub(super) fn into_parts(self) -> (OwnedFd, PathBuf) {
        (self.fd, self.path)
    }

    /// The path of a name in this directory.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Syncs added and removed names to disk.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(rustix::fs::fsync(&self.fd).at("sync", &self.path)?)
    }

    /// Opens a regular file for reading; `None` if it is missing.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>, StoreError> {
        match self.file_with(name, OFlags::RDONLY, 0) {
            Ok(file) => Ok(Some(file)),
            Err(StoreError::Io(error)) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a regular file with `flags`. Never follows a symlink and never blocks on a fifo. A new file has this mode, whatever
    /// the umask.
    ///
    /// Does not open a file for writing that the directory's owner may have linked from elsewhere: see [`check_links`].
    pub(super) fn file_with(&self, name: &str, flags: OFlags, mode: u32) -> Result<File, StoreError> {
        let path = self.path_of(name);
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let wrong_type = |path| StoreError::WrongFileType { path, expected: "regular file" };
        let (file, is_new) = match self.open_or_make(name, flags, Mode::from_raw_mode(mode)) {
            Ok((fd, is_new)) => (File::from(fd), is_new),
            // ELOOP: a symlink. ENXIO: a fifo without a reader, or a socket. EISDIR: a directory opened for writing.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(wrong_type(path)),
            Err(errno) => return Err(PathError::new("open", path, errno).into()),
        };
        let stat = rustix::fs::fstat(&file).at("stat", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(wrong_type(path));
        }
        if is_new {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).at("change the mode of", &path)?;
        } else if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            check_links(&stat, &self.attributes()?, &path)?;
        }
        Ok(file)
    }

    /// Opens a file; returns whether it is new.
    fn open_or_make(&self, name: &str, flags: OFlags, mode: Mode) -> Result<(OwnedFd, bool), Errno> {
        let open = |flags| rustix::fs::openat(&self.fd, name, flags, mode);
        if !flags.contains(OFlags::CREATE) || flags.contains(OFlags::EXCL) {
            return open(flags).map(|fd| (fd, flags.contains(OFlags::EXCL)));
        }
        loop {
            match open(flags.difference(OFlags::CREATE)) {
                Err(Errno::NOENT) => {}
                opened => return opened.map(|fd| (fd, false)),
            }
            match open(flags | OFlags::EXCL) {
                // Another process has made the file meanwhile.
                Err(Errno::EXIST) => {}
                made => return made.map(|fd| (fd, true)),
            }
        }
    }

    /// The attributes of a name, without following a symlink; `None` if it is missing.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(PathError::new("stat", self.path_of(name), errno).into()),
        }
    }

    /// Removes a file; returns whether it existed.
    pub(super) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(PathError::new("remove", self.path_of(name), errno).into()),
        }
    }

    /// Moves a file of this directory to `name` in `target`, replacing an existing file.
    pub(super) fn rename(&self, from: &str, target: &Self, name: &str) -> Result<(), StoreError> {
        Ok(rustix::fs::renameat(&self.fd, from, &target.fd, name).at("replace", &target.path_of(name))?)
    }

    /// The names in this directory, in no particular order. Skips names that are not UTF-8: the store creates none.
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

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Fails if a file has several links and belongs to another user than its directory.
///
/// Where the kernel does not protect hard links (`fs.protected_hardlinks`), the owner of a store can link a file of root into
/// it. Root would then write to that file.
fn check_links(file: &Stat, directory: &Stat, path: &Path) -> Result<(), StoreError> {
    if file.st_nlink > 1 && file.st_uid != directory.st_uid {
        let reason = format!("it has {} links and belongs to user {}", file.st_nlink, file.st_uid);
        return Err(StoreError::Untrusted { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Returns the target of a symlink that belongs to root or the effective user; `None` if the path is not a symlink.
fn trusted_link_target(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    let stat = rustix::fs::fstat(&link).at("stat", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    if let Some(reason) = os::foreign_owner(&stat) {
        let reason = format!("it is a link, and {reason}");
        return Err(StoreError::Untrusted { path: path.to_owned(), reason });
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new()).at("read link", path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    Ok(Some(directory.join(OsStr::from_bytes(target.as_bytes()))))
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_bounded(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let size = file.metadata().at("stat", path)?.len();
    let too_large = |size| StoreError::TooLarge { path: path.to_owned(), size, limit };
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes).at("read", path)?;
    match bytes.len() as u64 {
        length if length > limit => Err(too_large(length)),
        _ => Ok(bytes),
    }
}

/// A file that is being written below `tmp/` and does not have its final name yet.
///
/// [`TempFile::commit`] gives it that name in one step. Dropping it without a commit removes it.
#[derive(Debug)]
pub struct TempFile {
    /// Locked for as long as the writer lives, so that a sweep skips it.
    file: File,
    tmp: Dir,
    tmp_name: String,
    target: Dir,
    name: String,
    committed: bool,
}

impl TempFile {
    /// Creates a temporary file that will become `name` in `target`.
    pub(super) fn new(tmp: Dir, target: Dir, name: &str, mode: u32) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let tmp_name = format!("{}-{number}-{name}", std::process::id());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let open = || tmp.file_with(&tmp_name, flags, mode).map(Some);
            // A sweep may remove the file between the open and the lock; `lock_named` then creates it again.
            let lock = os::lock_named(tmp.as_fd(), &tmp.path_of(&tmp_name), Sharing::Exclusive, None, open);
            match lock {
                Ok(NamedLock::Locked(file)) => {
                    let name = name.to_owned();
                    return Ok(Self { file, tmp, tmp_name, target, name, committed: false });
                }
                Ok(NamedLock::Busy | NamedLock::Missing) => {
                    unreachable!("the lock has no deadline, and the file is created")
                }
                // A leftover of a dead process with the same process ID.
                Err(StoreError::Io(error)) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The final path of the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.target.path_of(&self.name)
    }

    /// Chooses another final name in the same directory.
    pub(super) fn rename_to(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// The open file, for positioned writes and reading back.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its final name, replacing an existing file. Returns when the new name is on disk.
    pub fn commit(mut self) -> Result<(), StoreError> {
        self.file.sync_all().at("sync", &self.path())?;
        self.tmp.rename(&self.tmp_name, &self.target, &self.name)?;
        self.committed = true;
        self.target.sync()
    }

    /// Like [`TempFile::commit`], but keeps an existing file; returns whether the new file was put in place.
    pub(super) fn commit_if_missing(self) -> Result<bool, StoreError> {
        self.file.sync_all().at("sync", &self.path())?;
        let (from, to) = (&self.tmp, &self.target);
        match rustix::fs::linkat(&from.fd, &self.tmp_name, &to.fd, &self.name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(PathError::new("create", self.path(), errno).into()),
        }
        self.target.sync()?;
        Ok(true)
    }
}

impl Write for TempFile {
    /// Wraps a [`StoreError`] into the error; [`StoreError::from_write`] unwraps it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file
            .write(bytes)
            .map_err(|error| StoreError::from(PathError::new("write", self.path(), error)).into_io())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.tmp.remove(&self.tmp_name)
        {
            tracing::warn!("{error}; the next sweep removes this temporary file");
        }
    }
}

/// Removes leftovers of dead writers from `tmp`; returns their number and total size in bytes.
pub(super) fn sweep(tmp: &Dir, dry_run: bool) -> Result<(u64, u64), StoreError> {
    let (mut files, mut bytes) = (0, 0);
    for name in tmp.names()? {
        let file = match tmp.file(&name) {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            // The store creates only regular files, so another program created this one.
            Err(error @ StoreError::WrongFileType { .. }) => {
                tracing::warn!("{error}; not removed");
                continue;
            }
            Err(error) => return Err(error),
        };
        let path = tmp.path_of(&name);
        if !os::try_lock(&file, Sharing::Exclusive).at("lock", &path)? {
            continue;
        }
        // The writer may have committed the file, or another sweep may have removed it.
        if !os::is_linked(tmp, &name, &file).at("stat", &path)? {
            continue;
        }
        bytes += file.metadata().at("stat", &path)?.len();
        files += 1;
        if !dry_run {
            tmp.remove(&name)?;
        }
    }
    Ok((files, bytes))
}
