//! Adds a revision to the queue.

use std::fs;

use rustix::fs::Mode;
use serde_json::{Map, Value};

use super::context::{self, ContextSource};
use super::error::EnvironmentsError;
use super::files::StagedChange;
use super::id::{BuildHost, EnvironmentId, HardwareGroup, RevisionId, RevisionNumber};
use super::log::{QueueChange, sync_directory};
use super::queue::{Queue, log_entry};
use super::read;
use super::records::{Attribution, Submission};
use super::{CONTEXT, Revision, RevisionState, SUBMISSION};
use crate::image::Platform;
use crate::os::{self, AtPath as _};

/// What an author asks for, besides the context.
#[derive(Debug, Clone)]
pub struct SubmissionDraft {
    /// The author.
    pub by: Attribution,
    /// The platform to build for.
    pub platform: Platform,
    /// The command that shows whether the image works.
    pub smoke: Option<String>,
    /// The hosts that the build needs.
    pub hosts: Vec<BuildHost>,
    /// The groups of workers that are to offer the environment; all if there is none.
    pub hwgroups: Vec<HardwareGroup>,
    /// Other fields of `submission.json`.
    pub unknown: Map<String, Value>,
}

/// The result of [`Queue::submit`].
#[derive(Debug)]
pub struct Submitted {
    /// The revision.
    pub revision: Revision,
    /// Whether it is new. Otherwise, a revision that waits for its review asks for the same.
    pub is_new: bool,
}

impl Queue {
    /// Adds a revision.
    ///
    /// # Errors
    ///
    /// The context is refused, or the queue cannot be written.
    pub fn submit(
        &self,
        id: &EnvironmentId,
        draft: SubmissionDraft,
        source: ContextSource<'_>,
        context_limit: u64,
    ) -> Result<Submitted, EnvironmentsError> {
        let staged = StagedChange::new(&self.files.tmp)?;
        let mut file = staged.create(CONTEXT)?;
        let context = context::pack(source, context_limit, &mut file)?;
        file.sync_all().at("sync", &staged.path().join(CONTEXT))?;
        // The same errors as at the approval, but for the author.
        context::dockerfile(&file)?.bases()?;
        drop(file);
        let SubmissionDraft { by, platform, smoke, mut hosts, mut hwgroups, unknown } = draft;
        hosts.sort();
        hosts.dedup();
        hwgroups.sort();
        hwgroups.dedup();
        let submission = Submission { by, context, platform, smoke, hosts, hwgroups, unknown };
        staged.write_json(SUBMISSION, &submission)?;
        staged.sync()?;

        let _lock = self.lock()?;
        self.files.sweep()?;
        if let Some(environment) = read::environment(self.path(), id)? {
            let is_same = |revision: &Revision| {
                revision.state() == RevisionState::Submitted
                    && revision.submission.asks_for_the_same_as(&submission)
            };
            if let Some(revision) = environment.revisions.into_iter().rev().find(is_same) {
                return Ok(Submitted { revision, is_new: false });
            }
        }
        let number = match read::newest(self.path(), id)? {
            None => RevisionNumber::FIRST,
            Some(newest) => newest.next().ok_or_else(|| EnvironmentsError::NoNumber(id.clone()))?,
        };
        let above = self.environment_path(id);
        os::make_directories(&above, Mode::RWXU)?;
        sync_directory(self.path())?;
        let path = above.join(number.to_string());
        let revision = RevisionId { environment: id.clone(), number };
        let entry = log_entry(QueueChange::Submitted, &revision, &submission.by);
        self.files.commit(staged.path(), &path, &entry)?;
        drop(staged);
        fs::metadata(&path).at("stat", &path)?;
        let revision =
            Revision { id: revision, path, submission, review: None, result: None, is_building: false };
        Ok(Submitted { revision, is_new: true })
    }
}
