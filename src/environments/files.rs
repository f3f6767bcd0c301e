//! Changes to the files of the queue: each is one rename and one line of the log, also if the process dies in between.
//!
//! A change is prepared below `tmp/` in a directory that its writer locks. Under the lock of the queue, the line of the log is
//! first written to `pending`, with the number of the prepared file's inode. Then the file gets its name, the line is
//! appended, and `pending` is removed. The next process that takes the lock finds a `pending` of a dead one: if the
//! file has its name, it appends the line unless the log ends with it; otherwise nothing has happened.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::EnvironmentsError;
use super::log::{LogEntry, LogFile, sync_directory};
use crate::os::{self, AtPath as _, NamedLock, PathError, Sharing};

/// A directory below `tmp/` in which a change is prepared. Dropping it removes what is left of it.
#[derive(Debug)]
pub(super) struct StagedChange {
    path: PathBuf,
    /// Locked for as long as the writer lives, so that a sweep skips the directory.
    directory: File,
}

/// The file `pending`.
#[derive(Debug, Serialize, Deserialize)]
struct PendingChange {
    /// Where the prepared file goes, relative to the queue.
    target: PathBuf,
    /// The number of its inode.
    inode: u64,
    entry: LogEntry,
}

/// The files that changes of a queue go through.
#[derive(Debug)]
pub(super) struct QueueFiles {
    queue: PathBuf,
    pending: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) log: LogFile,
}

impl StagedChange {
    /// Makes a directory below `tmp`.
    pub(super) fn new(tmp: &Path) -> Result<Self, EnvironmentsError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let parent = File::open(tmp).at("open", tmp)?;
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = tmp.join(format!("{}-{number}", std::process::id()));
            // A sweep may remove the directory before it is opened or locked; another one is then made.
            let open = || -> Result<Option<File>, PathError> {
                match rustix::fs::mkdirat(CWD, &path, Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => return Ok(None),
                    Err(errno) => return Err(PathError::new("make directory", &path, errno)),
                }
                match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    directory => directory.at("open", &path).map(Some),
                }
            };
            match os::lock_named(parent.as_fd(), &path, Sharing::Exclusive, None, open)? {
                NamedLock::Locked(directory) => return Ok(Self { path, directory }),
                // A leftover of a dead process with the same process ID.
                NamedLock::Missing | NamedLock::Busy => {}
            }
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a document as JSON, and returns its path.
    pub(super) fn write_json(
        &self,
        name: &str,
        value: &impl Serialize,
    ) -> Result<PathBuf, EnvironmentsError> {
        let path = self.path.join(name);
        let mut file = self.create(name)?;
        let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::from).at("write", &path)?;
        text.push(b'\n');
        file.write_all(&text).and_then(|()| file.sync_all()).at("write", &path)?;
        Ok(path)
    }

    /// Creates a file.
    pub(super) fn create(&self, name: &str) -> Result<File, EnvironmentsError> {
        let path = self.path.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(options.open(&path).at("create", &path)?)
    }

    /// Syncs the names in the directory.
    pub(super) fn sync(&self) -> Result<(), EnvironmentsError> {
        Ok(self.directory.sync_all().at("sync", &self.path)?)
    }
}

impl Drop for StagedChange {
    fn drop(&mut self) {
        // After a submission, the directory has another name.
        let removed = match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        if let Err(error) = removed {
            tracing::warn!(
                "cannot remove {}: {error}; a later change of the queue removes it",
                self.path.display()
            );
        }
        os::unlock(&self.directory);
    }
}

impl QueueFiles {
    /// The files in `own`, the directory of the queue's own files.
    pub(super) fn new(queue: &Path, own: &Path) -> Self {
        Self {
            queue: queue.to_owned(),
            pending: own.join("pending"),
            tmp: own.join("tmp"),
            log: LogFile::new(own.join("log")),
        }
    }

    /// Gives a prepared file its name and appends a line to the log. The caller holds the lock of the queue.
    pub(super) fn commit(
        &self,
        from: &Path,
        target: &Path,
        entry: &LogEntry,
    ) -> Result<(), EnvironmentsError> {
        let inode = fs::symlink_metadata(from).at("stat", from)?.ino();
        let relative = target.strip_prefix(&self.queue).unwrap_or(target).to_owned();
        let pending = PendingChange { target: relative, inode, entry: entry.clone() };
        step();
        let staged = StagedChange::new(&self.tmp)?;
        let note = staged.write_json("pending", &pending)?;
        step();
        self.rename(&note, &self.pending)?;
        step();
        if let Err(error) = self.rename(from, target) {
            // Without the file, the note would say nothing. If it stays, the next change removes it.
            let _ = fs::remove_file(&self.pending);
            return Err(error);
        }
        step();
        self.log.append(entry)?;
        step();
        fs::remove_file(&self.pending).at("remove", &self.pending)?;
        step();
        Ok(())
    }

    /// Completes the change of a process that died. The caller holds the lock of the queue.
    pub(super) fn recover(&self) -> Result<(), EnvironmentsError> {
        let bytes = match fs::read(&self.pending) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            bytes => bytes.at("read", &self.pending)?,
        };
        let pending: PendingChange = serde_json::from_slice(&bytes).map_err(|error| {
            EnvironmentsError::Damaged { path: self.pending.clone(), reason: error.to_string() }
        })?;
        let target = self.queue.join(&pending.target);
        let is_done = match fs::symlink_metadata(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            metadata => metadata.at("stat", &target)?.ino() == pending.inode,
        };
        if is_done {
            // The process may have died before the new name was on disk.
            sync_directory(target.parent().unwrap_or(&self.queue))?;
            if !self.log.ends_with(&pending.entry)? {
                self.log.append(&pending.entry)?;
            }
        }
        Ok(fs::remove_file(&self.pending).at("remove", &self.pending)?)
    }

    /// Removes what dead processes have prepared. The caller holds the lock of the queue.
    pub(super) fn sweep(&self) -> Result<(), EnvironmentsError> {
        let tmp = File::open(&self.tmp).at("open", &self.tmp)?;
        for entry in fs::read_dir(&self.tmp).at("list", &self.tmp)? {
            let path = entry.at("list", &self.tmp)?.path();
            let directory = match File::open(&path) {
                // Its writer has finished.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                directory => directory.at("open", &path)?,
            };
            if !os::try_lock(&directory, Sharing::Exclusive).at("lock", &path)? {
                continue;
            }
            // The writer may have removed it meanwhile, and another one may have made one of the same name.
            let name = path.file_name().unwrap_or_default();
            if os::is_linked(&tmp, name, &directory).at("stat", &path)? {
                match fs::remove_dir_all(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.at("remove", &path)?,
                }
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), EnvironmentsError> {
        fs::rename(from, to).at("rename", from)?;
        Ok(sync_directory(to.parent().unwrap_or(&self.queue))?)
    }
}

/// A moment at which a test kills the process.
#[cfg(not(test))]
fn step() {}

#[cfg(test)]
pub(super) use tests::step;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Kills this process at the step whose number the variable `RCX_TEST_STOP_AT` has.
    pub(in crate::environments) fn step() {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let Ok(stop_at) = std::env::var("RCX_TEST_STOP_AT") else { return };
        if COUNT.fetch_add(1, Ordering::SeqCst).to_string() == stop_at {
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}
