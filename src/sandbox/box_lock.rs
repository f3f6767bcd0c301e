//! The locks of a box, which end with their holder, and a record of what to clean if the holder is killed.
//!
//! A box has two locks: its file in the run directory, which also holds the record, and the directory of the box itself. The
//! run directory may be cleaned while a run uses the box, as when a service stops; the second lock then keeps other runs from
//! the box. Only the user of the box and root can open the directory, so nobody else can hold its lock.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use crate::os::{self, AtPath as _, NamedLock, PathError, Sharing, is_linked, lock_named};

/// Largest record that is read, in bytes. Records are a few hundred bytes long.
const RECORD_MAX: u64 = 64 << 10;

/// The remains of a killed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "sandbox")]
pub(super) enum BoxRecord {
    /// A box that isolate made. The program is not recorded: what root executes comes from the configuration.
    Isolate { cg: bool, root: String },
    /// A directory that this program made.
    Bwrap { root: String },
}

impl BoxRecord {
    /// Returns the source of the run's root in the mount table.
    pub(super) fn root(&self) -> &str {
        match self {
            Self::Isolate { root, .. } | Self::Bwrap { root } => root,
        }
    }
}

/// A box that belongs to this process.
///
/// If the lock is dropped without [`release`](Self::release), the box is in the state that a killed run leaves: unlocked, with
/// its record.
#[derive(Debug)]
pub(super) struct BoxLock {
    id: u32,
    file: File,
    path: PathBuf,
    /// The directory of the file.
    locks: OwnedFd,
    /// The locked directory of the box, as soon as the box is made.
    directory: Option<OwnedFd>,
}

/// Locks the directory of a box, waiting for at most `timeout`.
pub(super) fn lock_directory(
    path: &Path,
    sharing: Sharing,
    timeout: Duration,
) -> Result<NamedLock<OwnedFd>, PathError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(NamedLock::Missing) };
    let parent = match rustix::fs::open(above, OFlags::PATH | flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(NamedLock::Missing),
        result => result.at("open", above)?,
    };
    let open = || match rustix::fs::openat(&parent, name, OFlags::RDONLY | flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).at("open", path),
    };
    lock_named(parent.as_fd(), path, sharing, Some(Instant::now() + timeout), open)
}

impl BoxLock {
    /// Returns the lock of box `id`. `file` is the locked file at `path`, in the directory `locks`.
    pub(super) fn new(id: u32, file: File, path: PathBuf, locks: OwnedFd) -> Self {
        Self { id, file, path, locks, directory: None }
    }

    /// Locks the directory of the box too. Fails if another process has taken the box.
    pub(super) fn lock_made(&mut self, directory: &Path, timeout: Duration) -> Result<(), SandboxError> {
        match lock_directory(directory, Sharing::Exclusive, timeout)? {
            NamedLock::Locked(directory) => self.directory = Some(directory),
            NamedLock::Busy | NamedLock::Missing => return Err(SandboxError::BoxInUse(self.id)),
        }
        Ok(())
    }

    /// The descriptors that [`release`](Self::release) needs.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.file.as_fd(), self.locks.as_fd()]
            .into_iter()
            .chain(self.directory.as_ref().map(|fd| fd.as_fd()))
    }

    /// The number of the box.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// The locked file. The box stays locked while any process has it open.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads the record. `None` if the last run has cleaned up, or was killed before it had made anything.
    pub(super) fn read(&mut self) -> Result<Option<BoxRecord>, SandboxError> {
        let mut bytes = Vec::new();
        self.file.rewind().at("read", &self.path)?;
        (&self.file).take(RECORD_MAX).read_to_end(&mut bytes).at("read", &self.path)?;
        // An incomplete record belongs to a run that was killed before it had made anything.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Writes the record. The caller must do this before it makes anything that needs cleaning.
    pub(super) fn write(&mut self, record: &BoxRecord) -> Result<(), SandboxError> {
        let mut write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&text)
        };
        Ok(write().at("write", &self.path)?)
    }

    /// Releases the box. The caller must have cleaned it.
    pub(super) fn release(self) -> Result<(), SandboxError> {
        let name = self.path.file_name().unwrap_or_default();
        // If the run directory was cleaned meanwhile, the name may belong to the lock of another process.
        if is_linked(&self.locks, name, &self.file).at("stat", &self.path)? {
            match rustix::fs::unlinkat(&self.locks, name, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                result => result.at("remove", &self.path)?,
            }
        }
        if let Some(directory) = &self.directory {
            os::unlock(directory);
        }
        os::unlock(&self.file);
        Ok(())
    }
}
