//! Makes an earlier revision the one that workers offer.

use serde_json::Map;

use super::error::EnvironmentsError;
use super::files::StagedChange;
use super::id::{EnvironmentId, RevisionId, RevisionNumber};
use super::log::QueueChange;
use super::queue::{Queue, log_entry};
use super::records::{Attribution, CurrentChoice};
use super::{CURRENT, Revision, RevisionState};

impl Queue {
    /// Makes a published revision the one that workers offer: that with `number`, otherwise the newest one before the current one, or
    /// if the environment is retired the newest of all. Returns it.
    ///
    /// It remains so until a revision is published that has a higher number than all that are published now.
    ///
    /// # Errors
    ///
    /// The revision is not published, or is current already; or there is none before the current one.
    pub fn roll_back(
        &self,
        id: &EnvironmentId,
        number: Option<RevisionNumber>,
        by: &Attribution,
    ) -> Result<RevisionId, EnvironmentsError> {
        let _lock = self.lock()?;
        let environment = self.environment(id)?;
        let is_published = |revision: &&Revision| revision.state() == RevisionState::Published;
        let published = || environment.revisions.iter().filter(is_published);
        let current = environment.current().map(|current| current.id.number);
        let chosen = match number {
            Some(number) => {
                let revision = self.revision(&RevisionId { environment: id.clone(), number })?;
                if !is_published(&&revision) {
                    return Err(revision.cannot_be("made current"));
                }
                if current == Some(number) {
                    return Err(EnvironmentsError::Current(revision.id));
                }
                revision.id
            }
            None => {
                let before = published().rfind(|one| current.is_none_or(|current| one.id.number < current));
                before.ok_or_else(|| EnvironmentsError::NothingBefore(id.clone()))?.id.clone()
            }
        };
        let through = published().map(|one| one.id.number).max().unwrap_or(chosen.number);
        let choice =
            CurrentChoice { by: by.clone(), revision: Some(chosen.number), through, unknown: Map::new() };
        let staged = StagedChange::new(&self.files.tmp)?;
        let prepared = staged.write_json(CURRENT, &choice)?;
        let entry = log_entry(QueueChange::RolledBack, &chosen, by);
        self.files.commit(&prepared, &self.environment_path(id).join(CURRENT), &entry)?;
        Ok(chosen)
    }
}
