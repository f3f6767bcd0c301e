//! Makes and removes the directories of builds.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode};

use super::{BuildDirectory, Builder};
use crate::environments::BUILD_LOG;
use crate::environments::error::EnvironmentsError;
use crate::environments::id::RevisionId;
use crate::environments::queue::Queue;
use crate::os::{self, AtPath as _, PathError, Sharing};

/// How long a builder waits for the processes of one that was killed.
const DEAD_MAX: Duration = Duration::from_secs(2);

impl Queue {
    /// Becomes the builder of this queue, and removes what a dead one has left.
    ///
    /// # Errors
    ///
    /// The queue has another builder, or a directory cannot be removed.
    pub fn builder(&self) -> Result<Builder, EnvironmentsError> {
        let path = self.own_path().join("build");
        os::make_directories(&path, Mode::RWXU)?;
        let lock_path = path.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&lock_path).at("open", &lock_path)?;
        if !os::lock_until(&lock, Sharing::Exclusive, Some(Instant::now() + DEAD_MAX))
            .at("lock", &lock_path)?
        {
            return Err(EnvironmentsError::OtherBuilder(self.path().to_owned()));
        }
        let builder = Builder { path, lock };
        for entry in fs::read_dir(&builder.path).at("list", &builder.path)? {
            let entry = entry.at("list", &builder.path)?;
            if entry.file_type().at("stat", &entry.path())?.is_dir() {
                let parent = File::open(&builder.path).at("open", &builder.path)?;
                remove(&parent, &entry.path())?;
            }
        }
        Ok(builder)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        os::unlock(&self.lock);
    }
}

impl Builder {
    /// Makes the directory of a build.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn directory(&self, revision: &RevisionId) -> Result<BuildDirectory, EnvironmentsError> {
        let path = self.path.join(revision.to_string());
        let parent = File::open(&self.path).at("open", &self.path)?;
        rustix::fs::mkdirat(CWD, &path, Mode::RWXU).at("make directory", &path)?;
        Ok(BuildDirectory { parent, path })
    }

    /// A file that holds the lock of this builder for as long as it is open.
    pub(super) fn lock_file(&self) -> Result<File, PathError> {
        self.lock.try_clone().at("duplicate", &self.path.join("lock"))
    }
}

impl BuildDirectory {
    /// Its path, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the build's output, until it is moved into the directory of the revision.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path.join(BUILD_LOG)
    }

    /// The OCI layout with the image that was built.
    #[must_use]
    pub fn image_path(&self) -> PathBuf {
        self.path.join("out")
    }
}

impl Drop for BuildDirectory {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.parent, &self.path) {
            tracing::warn!("{error}; the next builder tries again");
        }
    }
}

/// Removes the directory of a build. Processes that were killed may still write to it for a moment.
fn remove(parent: &File, path: &Path) -> Result<(), PathError> {
    let deadline = Instant::now() + DEAD_MAX;
    loop {
        let removed = os::remove_tree(parent.as_fd(), path.file_name().unwrap_or(OsStr::new("")));
        match removed {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            removed => return removed.at("remove", path),
        }
    }
}
