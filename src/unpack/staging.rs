//! A directory that is being filled and gets its name when it is whole.
//!
//! An interrupted copy must not pass for a whole one. So a tree is written beside its place, under a name that says what
//! it is, and renamed. Where that cannot be, because the place is a mountpoint, it is written in place, with a marker
//! file that goes last.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// In the name of a directory that is not whole yet.
const PARTIAL: &str = ".rcx-imagefs-partial-";
/// Stands in a mountpoint that is being filled.
const MARKER: &str = ".rcx-imagefs-incomplete";

/// Why a directory cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Something is in it.
    #[error("{0} is not empty")]
    NotEmpty(PathBuf),
    /// A copy into it was interrupted.
    #[error("{0} holds an incomplete copy ({MARKER} is in it)")]
    Incomplete(PathBuf),
    /// Something else than a directory is there.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// The directory it is to stand in is not there.
    #[error("the directory {0} does not exist")]
    NoParent(PathBuf),
    /// The path has no last component to give a directory.
    #[error("{0} is not the path of a directory to make")]
    NoName(PathBuf),
    /// Anything else that the kernel refused.
    #[error("{path}: {action}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A directory that is being filled. One that is dropped without [`Staging::finish`] stays as it is: incomplete.
#[derive(Debug)]
pub struct Staging {
    parent: OwnedFd,
    /// Its place.
    path: PathBuf,
    name: OsString,
    /// Its name until it is whole; none where it is filled in place.
    partial: Option<OsString>,
    /// Locked for as long as it is being filled.
    root: OwnedFd,
}

impl Staging {
    /// Prepares to fill `path`, which is not there yet or is an empty directory. Takes in `remove` what removes a tree from a
    /// directory, for copies that were interrupted: those of dead processes are removed.
    ///
    /// # Errors
    /// Each way in which the path does not serve.
    pub fn new(
        path: &Path,
        remove: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
    ) -> Result<Self, StagingError> {
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => absolute(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(StagingError::NotADirectory(path.to_owned()));
            }
            Err(source) => return Err(StagingError::Io { path: path.to_owned(), action: "open", source }),
        };
        let (Some(above), Some(name)) = (path.parent(), path.file_name().map(OsStr::to_owned)) else {
            return Err(StagingError::NoName(path));
        };
        let failed = |action| {
            let path = path.clone();
            move |errno: Errno| StagingError::Io { path, action, source: errno.into() }
        };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = rustix::fs::open(above, directory, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => StagingError::NoParent(above.to_owned()),
            errno => failed("open the directory above")(errno),
        })?;
        match rustix::fs::openat(&parent, &name, directory, Mode::empty()) {
            Ok(there) => {
                Self::check_empty(&there, &path)?;
                if is_mount_root(&there).map_err(failed("examine"))? {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(&there, MARKER, flags, Mode::from_raw_mode(0o600))
                        .map_err(failed("mark as incomplete"))?;
                    rustix::fs::fchmod(&there, Mode::RWXU).map_err(failed("change the mode"))?;
                    return Ok(Self { parent, path, name, partial: None, root: there });
                }
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(StagingError::NotADirectory(path)),
            Err(errno) => return Err(failed("open")(errno)),
        }
        let prefix = [b".", name.as_bytes(), PARTIAL.as_bytes()].concat();
        sweep(&parent, &prefix, remove).map_err(failed("remove an incomplete copy beside it"))?;
        let partial = OsString::from_vec([&prefix[..], std::process::id().to_string().as_bytes()].concat());
        rustix::fs::mkdirat(&parent, &partial, Mode::RWXU).map_err(failed("make a directory beside it"))?;
        let root = rustix::fs::openat(&parent, &partial, directory, Mode::empty())
            .map_err(failed("open the directory beside it"))?;
        rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive)
            .map_err(failed("lock the directory beside it"))?;
        Ok(Self { parent, path, name, partial: Some(partial), root })
    }

    /// The directory to fill.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where it will be, without symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the filled directory in its place, all of it on the disk.
    ///
    /// # Errors
    /// It could not be written out or renamed, or something has been made at its place meanwhile.
    pub fn finish(self) -> Result<(), StagingError> {
        let failed = |action| {
            let path = self.path.clone();
            move |errno: Errno| StagingError::Io { path, action, source: errno.into() }
        };
        // The name must not outlive a crash that the content did not.
        rustix::fs::syncfs(&self.root).map_err(failed("write out"))?;
        let Some(partial) = &self.partial else {
            // The root's time is the image's: removing the marker must not change it.
            let stat = rustix::fs::fstat(&self.root).map_err(failed("examine"))?;
            rustix::fs::unlinkat(&self.root, MARKER, AtFlags::empty())
                .map_err(failed("remove the marker"))?;
            let time = |sec: i64, nsec: u64| rustix::fs::Timespec {
                tv_sec: sec,
                tv_nsec: nsec.try_into().unwrap_or(0),
            };
            let times = rustix::fs::Timestamps {
                last_access: time(stat.st_atime, stat.st_atime_nsec),
                last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
            };
            return rustix::fs::futimens(&self.root, &times).map_err(failed("set the times"));
        };
        // Over an empty directory, or over nothing; the kernel refuses all else.
        match rustix::fs::renameat_with(&self.parent, partial, &self.parent, &self.name, RenameFlags::empty())
        {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(StagingError::NotEmpty(self.path)),
            Err(Errno::NOTDIR) => return Err(StagingError::NotADirectory(self.path)),
            Err(errno) => return Err(failed("put in place")(errno)),
        }
        rustix::fs::fsync(&self.parent).map_err(failed("write out its name"))
    }

    /// Gives up: removes what was written, with `remove` as in [`Staging::new`]. What was filled in place stays, marked.
    ///
    /// # Errors
    /// What removing came to.
    pub fn abandon(self, remove: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<()>) -> io::Result<()> {
        match &self.partial {
            Some(partial) => remove(self.parent.as_fd(), partial),
            None => Ok(()),
        }
    }

    fn check_empty(directory: &OwnedFd, path: &Path) -> Result<(), StagingError> {
        let io =
            |errno: Errno| StagingError::Io { path: path.to_owned(), action: "list", source: errno.into() };
        let mut found = None;
        for entry in Dir::read_from(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                // Every new ext4 filesystem has one.
                b"lost+found" if is_mount_root(directory).map_err(io)? => {}
                name if name == MARKER.as_bytes() => return Err(StagingError::Incomplete(path.to_owned())),
                _ => found = Some(()),
            }
        }
        found.map_or(Ok(()), |()| Err(StagingError::NotEmpty(path.to_owned())))
    }
}

/// The absolute path of something that is not there.
fn absolute(path: &Path) -> Result<PathBuf, StagingError> {
    let Some(name) = path.file_name() else { return Err(StagingError::NoName(path.to_owned())) };
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    match above.canonicalize() {
        Ok(above) => Ok(above.join(name)),
        Err(_) => Err(StagingError::NoParent(above.to_owned())),
    }
}

fn is_mount_root(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let found = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Removes the directories with this prefix that nobody is filling.
fn sweep(
    parent: &OwnedFd,
    prefix: &[u8],
    remove: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
) -> rustix::io::Result<()> {
    let mut stale = Vec::new();
    for entry in Dir::read_from(parent)? {
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(prefix) {
            stale.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
        }
    }
    for name in stale {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::openat(parent, &name, flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(parent.as_fd(), &name)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
    }
    Ok(())
}
