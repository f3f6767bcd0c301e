//! Takes an approved revision for a build, and ends it.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::EnvironmentsError;
use super::files::StagedChange;
use super::id::RevisionId;
use super::log::QueueChange;
use super::queue::{Queue, log_entry};
use super::read;
use super::records::{Attribution, BuildOutcome, BuildResult, BuiltImage};
use super::{BUILD_LOG, BUILT, RESULT, Revision, RevisionState};
use crate::os::{self, AtPath as _, Sharing};

/// How long a builder waits for readers, which take the lock of a revision for a moment.
const READERS_MAX: Duration = Duration::from_secs(2);

/// A revision that this process builds: it holds the lock of the revision until it is dropped.
///
/// Without [`Self::finish`], the revision is `approved` again.
#[derive(Debug)]
pub struct ActiveBuild<'a> {
    queue: &'a Queue,
    revision: Revision,
    directory: File,
}

impl Queue {
    /// The approved revisions that nobody builds, those that were approved first first.
    ///
    /// # Errors
    ///
    /// A directory cannot be listed.
    pub fn approved(&self) -> Result<Vec<Revision>, EnvironmentsError> {
        let revisions = self.environments()?.into_iter().flat_map(|environment| environment.revisions);
        let mut approved: Vec<Revision> =
            revisions.filter(|revision| revision.state() == RevisionState::Approved).collect();
        // Stable: with equal times, revisions stay in the order of their numbers.
        approved.sort_by_key(|revision| revision.last_change().when);
        Ok(approved)
    }

    /// Takes a revision for a build. `by` names the builder.
    ///
    /// # Errors
    ///
    /// The revision is not approved, another builder has it, or its context has changed.
    pub fn start_build(
        &self,
        id: &RevisionId,
        by: &Attribution,
    ) -> Result<ActiveBuild<'_>, EnvironmentsError> {
        let _lock = self.lock()?;
        let revision = self.revision(id)?;
        if revision.state() != RevisionState::Approved {
            return Err(revision.cannot_be("built"));
        }
        let directory = File::open(&revision.path).at("open", &revision.path)?;
        let deadline = Some(Instant::now() + READERS_MAX);
        if !os::lock_until(&directory, Sharing::Exclusive, deadline).at("lock", &revision.path)? {
            return Err(Revision { is_building: true, ..revision }.cannot_be("built"));
        }
        let build = ActiveBuild { queue: self, revision, directory };
        build.revision.check_context()?;
        self.files.log.append(&log_entry(QueueChange::Building, id, by))?;
        Ok(build)
    }
}

impl ActiveBuild<'_> {
    /// The revision, as it was when the build started.
    #[must_use]
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// The image of an earlier build, which could not be pushed; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Its document cannot be read.
    pub fn built(&self) -> Result<Option<BuiltImage>, EnvironmentsError> {
        read::document(&self.revision.path.join(BUILT))
    }

    /// Notes that the image was built, so that the next builder only pushes it.
    ///
    /// # Errors
    ///
    /// The document cannot be written.
    pub fn keep(&self, built: &BuiltImage) -> Result<(), EnvironmentsError> {
        let staged = StagedChange::new(&self.queue.files.tmp)?;
        let prepared = staged.write_json(BUILT, built)?;
        self.rename(&prepared, BUILT)
    }

    /// Moves the output of the build, which is on disk, into the directory of the revision.
    ///
    /// # Errors
    ///
    /// The file cannot be moved.
    pub fn keep_log(&self, path: &Path) -> Result<(), EnvironmentsError> {
        self.rename(path, BUILD_LOG)
    }

    fn rename(&self, from: &Path, name: &str) -> Result<(), EnvironmentsError> {
        fs::rename(from, self.revision.path.join(name)).at("rename", from)?;
        Ok(super::log::sync_directory(&self.revision.path)?)
    }

    /// Ends the build: the revision is published or has failed.
    ///
    /// # Errors
    ///
    /// The result cannot be written. The revision is then `approved` again.
    pub fn finish(self, result: &BuildResult) -> Result<(), EnvironmentsError> {
        let what = match result.outcome {
            BuildOutcome::Published => QueueChange::Published,
            BuildOutcome::Failed => QueueChange::Failed,
            BuildOutcome::Withdrawn => QueueChange::Withdrawn,
        };
        let lock = self.queue.lock()?;
        self.queue.write_document(&lock, &self.revision, RESULT, result, what, &result.by)
    }
}

impl Drop for ActiveBuild<'_> {
    fn drop(&mut self) {
        os::unlock(&self.directory);
    }
}
