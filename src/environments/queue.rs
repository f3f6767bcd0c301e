//! Opens, locks and reads a queue.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;

use super::error::EnvironmentsError;
use super::files::{QueueFiles, StagedChange};
use super::id::{EnvironmentId, RevisionId};
use super::log::{LogEntry, QueueChange};
use super::read;
use super::records::Attribution;
use super::{Environment, Revision};
use crate::os::{self, AtPath as _, Sharing};

/// The directory of the queue's own files. No ID of an environment starts with a dot.
const OWN: &str = ".queue";
/// The format of queues that this program reads and writes.
const VERSION: &str = "1";
/// How long a change waits for another one.
const LOCK_MAX: Duration = Duration::from_secs(10);

/// A queue of revisions.
#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    pub(super) files: QueueFiles,
}

/// The lock of a queue. Only its holder changes the queue.
#[derive(Debug)]
pub(super) struct QueueLock {
    file: File,
}

impl Drop for QueueLock {
    fn drop(&mut self) {
        os::unlock(&self.file);
    }
}

impl Queue {
    /// Opens a queue.
    ///
    /// # Errors
    ///
    /// There is none, its version is not supported, or another user could change it.
    pub fn open(path: &Path) -> Result<Self, EnvironmentsError> {
        let queue = Self::at(path)?;
        match fs::read_to_string(queue.version_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_foreign = fs::read_dir(&queue.path).is_ok_and(|mut names| names.next().is_some());
                Err(match is_foreign && !queue.path.join(OWN).exists() {
                    true => EnvironmentsError::Foreign { path: queue.path },
                    false => EnvironmentsError::NoQueue { path: queue.path },
                })
            }
            version => match version.at("read", &queue.version_path())?.trim_end() {
                VERSION => Ok(queue),
                other => Err(EnvironmentsError::Version { path: queue.path, version: other.to_owned() }),
            },
        }
    }

    /// Opens a queue, or makes one in a directory that is empty or does not exist.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`], and the directory cannot be written.
    pub fn open_or_create(path: &Path) -> Result<Self, EnvironmentsError> {
        match Self::open(path) {
            Err(EnvironmentsError::NoQueue { path }) => {
                let own = path.join(OWN);
                os::make_directories(&own.join("tmp"), Mode::RWXU)?;
                let queue = Self::at(&path)?;
                // The file comes last: without it, there is no queue yet.
                let staged = StagedChange::new(&queue.files.tmp)?;
                let version = staged.path().join("version");
                let mut file = staged.create("version")?;
                file.write_all(format!("{VERSION}\n").as_bytes())
                    .and_then(|()| file.sync_all())
                    .at("write", &version)?;
                fs::rename(&version, queue.version_path()).at("rename", &version)?;
                super::log::sync_directory(&own)?;
                super::log::sync_directory(&path)?;
                Ok(queue)
            }
            opened => opened,
        }
    }

    fn at(path: &Path) -> Result<Self, EnvironmentsError> {
        // Also if it does not exist. A link in the path is followed if it is trusted.
        let path = std::path::absolute(path).at("resolve", path)?;
        if let Some(part) = os::untrusted_part(&path)? {
            return Err(EnvironmentsError::Untrusted { path, part: part.path, reason: part.reason });
        }
        let files = QueueFiles::new(&path, &path.join(OWN));
        Ok(Self { path, files })
    }

    /// The directory of the queue's own files.
    pub(super) fn own_path(&self) -> PathBuf {
        self.path.join(OWN)
    }

    fn version_path(&self) -> PathBuf {
        self.own_path().join("version")
    }

    /// The directory of the queue, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All environments, ordered by their IDs.
    ///
    /// # Errors
    ///
    /// A directory cannot be listed. Damaged revisions are listed in their environment.
    pub fn environments(&self) -> Result<Vec<Environment>, EnvironmentsError> {
        let mut ids = Vec::new();
        for name in fs::read_dir(&self.path).at("list", &self.path)? {
            let name = name.at("list", &self.path)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<EnvironmentId>().ok()));
        }
        ids.sort();
        let mut environments = Vec::new();
        for id in ids {
            environments.extend(read::environment(&self.path, &id)?);
        }
        Ok(environments)
    }

    /// An environment.
    ///
    /// # Errors
    ///
    /// It has no revision, or cannot be read.
    pub fn environment(&self, id: &EnvironmentId) -> Result<Environment, EnvironmentsError> {
        read::environment(&self.path, id)?.ok_or_else(|| EnvironmentsError::NoEnvironment(id.clone()))
    }

    /// A revision.
    ///
    /// # Errors
    ///
    /// It does not exist, or is damaged.
    pub fn revision(&self, id: &RevisionId) -> Result<Revision, EnvironmentsError> {
        match read::revision(&self.path, id)? {
            Some(revision) => Ok(revision),
            None => Err(match read::newest(&self.path, &id.environment)? {
                Some(newest) => EnvironmentsError::NoRevision { revision: id.clone(), newest },
                None => EnvironmentsError::NoEnvironment(id.environment.clone()),
            }),
        }
    }

    /// The changes so far, oldest first.
    ///
    /// # Errors
    ///
    /// The log cannot be read, or a line is damaged.
    pub fn log(&self) -> Result<Vec<LogEntry>, EnvironmentsError> {
        self.files.log.read()
    }

    /// Takes the lock of the queue, and completes the change of a process that died.
    pub(super) fn lock(&self) -> Result<QueueLock, EnvironmentsError> {
        let lock = QueueLock { file: self.lock_file("lock")? };
        self.files.recover()?;
        Ok(lock)
    }

    /// Locks one of the queue's own files.
    pub(super) fn lock_file(&self, name: &str) -> Result<File, EnvironmentsError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path.join(OWN).join(name);
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).at("open", &path)?;
        // Nobody removes the file.
        if !os::lock_until(&file, Sharing::Exclusive, Some(Instant::now() + LOCK_MAX)).at("lock", &path)? {
            return Err(EnvironmentsError::Busy { path, seconds: LOCK_MAX.as_secs() });
        }
        Ok(file)
    }

    /// The directory of an environment.
    pub(super) fn environment_path(&self, id: &EnvironmentId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Writes a document of a revision, with a line in the log. The document must not exist.
    pub(super) fn write_document(
        &self,
        _lock: &QueueLock,
        revision: &Revision,
        name: &str,
        document: &impl serde::Serialize,
        what: QueueChange,
        by: &Attribution,
    ) -> Result<(), EnvironmentsError> {
        let staged = StagedChange::new(&self.files.tmp)?;
        let prepared = staged.write_json(name, document)?;
        self.files.commit(&prepared, &revision.path.join(name), &log_entry(what, &revision.id, by))
    }
}

/// The line of the log for a change of a revision.
pub(super) fn log_entry(what: QueueChange, revision: &RevisionId, by: &Attribution) -> LogEntry {
    LogEntry {
        by: by.clone(),
        what,
        environment: revision.environment.clone(),
        revision: revision.number,
        unknown: serde_json::Map::new(),
    }
}
