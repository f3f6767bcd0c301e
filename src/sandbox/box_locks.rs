//! The locked files of boxes in a run directory.
//!
//! The files are records of what a sweep executes and removes as root. So they are used only if no user but root and the
//! effective user can have written them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::box_lock::BoxLock;
use super::error::SandboxError;
use crate::os::{self, AtPath as _, NamedLock, Sharing, lock_named};

/// The directory of the locked files in the run directory.
const LOCKS: &str = "boxes";
/// Mode of directories in the run directory. The files in them are readable by their owner only.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// The directory of the locked files.
#[derive(Debug, Clone)]
pub(super) struct BoxLocks {
    run_dir: PathBuf,
    path: PathBuf,
}

impl BoxLocks {
    /// Returns the files in a run directory. Nothing is opened or made yet.
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned(), path: run_dir.join(LOCKS) }
    }

    /// The path of the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file of a box; makes it if `create`. Returns `None` if another process holds the lock for longer than
    /// `timeout`, or if the file does not exist.
    pub(super) fn lock(
        &self,
        id: u32,
        create: bool,
        timeout: Duration,
    ) -> Result<Option<BoxLock>, SandboxError> {
        let Some(locks) = self.open(create)? else { return Ok(None) };
        let path = self.path.join(id.to_string());
        let open = || -> Result<Option<File>, SandboxError> {
            let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            flags.set(OFlags::CREATE, create);
            let name = id.to_string();
            match rustix::fs::openat(&locks, &name, flags, Mode::RUSR | Mode::WUSR) {
                Err(Errno::NOENT) if !create => Ok(None),
                Err(Errno::LOOP) => Err(untrusted(&path, "it is a link".to_owned())),
                result => {
                    let file = result.at("open", &path)?;
                    check_trusted(&file, FileType::RegularFile, &path)?;
                    Ok(Some(file.into()))
                }
            }
        };
        let deadline = Some(Instant::now() + timeout);
        match lock_named(locks.as_fd(), &path, Sharing::Exclusive, deadline, open)? {
            NamedLock::Locked(file) => Ok(Some(BoxLock::new(id, file, path, locks))),
            NamedLock::Busy | NamedLock::Missing => Ok(None),
        }
    }

    /// Opens the directory of the locked files; makes it if `create`. Returns `None` if it does not exist.
    pub(super) fn open(&self, create: bool) -> Result<Option<OwnedFd>, SandboxError> {
        if create {
            os::make_directories(&self.run_dir, DIRECTORY_MODE)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run_dir = match rustix::fs::open(&self.run_dir, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.at("open", &self.run_dir)?,
        };
        check_trusted(&run_dir, FileType::Directory, &self.run_dir)?;
        if create {
            os::make_directory(&run_dir, LOCKS, DIRECTORY_MODE).at("make directory", &self.path)?;
        }
        let locks = match rustix::fs::openat(&run_dir, LOCKS, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(untrusted(&self.path, "it is a link or not a directory".to_owned()));
            }
            result => result.at("open", &self.path)?,
        };
        check_trusted(&locks, FileType::Directory, &self.path)?;
        Ok(Some(locks))
    }
}

/// Fails unless a file has this type and only root or the effective user can have written to it.
fn check_trusted(file: impl AsFd, expected: FileType, path: &Path) -> Result<(), SandboxError> {
    let stat = rustix::fs::fstat(file).at("stat", path)?;
    let other_type = (FileType::from_raw_mode(stat.st_mode) != expected)
        .then(|| format!("it is not a {}", noun(expected)));
    match other_type.or_else(|| os::foreign_owner(&stat)).or_else(|| os::foreign_writers(&stat)) {
        Some(reason) => Err(untrusted(path, reason)),
        None => Ok(()),
    }
}

fn noun(kind: FileType) -> &'static str {
    if kind == FileType::Directory { "directory" } else { "regular file" }
}

fn untrusted(path: &Path, reason: String) -> SandboxError {
    SandboxError::Untrusted { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn records_that_another_user_could_have_written_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (run, directory, moved) =
            (dir.path().join("run"), dir.path().join("run/boxes"), dir.path().join("moved"));
        let locks = BoxLocks::new(&run);
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let lock = || locks.lock(5, true, Duration::ZERO);
        let refuses = |path: &Path| {
            let refused = lock().unwrap_err();
            assert!(
                matches!(&refused, SandboxError::Untrusted { path: named, .. } if named == path),
                "{refused}"
            );
        };
        assert!(locks.lock(5, false, Duration::ZERO).unwrap().is_none());
        drop(lock().unwrap().unwrap());
        let record = directory.join("5");
        set(&record, 0o622);
        refuses(&record);
        set(&record, 0o600);
        for path in [&run, &directory] {
            set(path, 0o777);
            refuses(path);
            set(path, 0o755);
        }
        for path in [&record, &directory] {
            fs::rename(path, &moved).unwrap();
            symlink(&moved, path).unwrap();
            refuses(path);
            fs::remove_file(path).unwrap();
            fs::rename(&moved, path).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            for path in [&record, &directory, &run] {
                chown(path, Some(12_345), None).unwrap();
                refuses(path);
                chown(path, Some(0), None).unwrap();
            }
        }
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        assert!(lock().is_err(), "a directory is no record");
        fs::remove_dir(&record).unwrap();
        assert!(lock().unwrap().is_some());
    }
}
