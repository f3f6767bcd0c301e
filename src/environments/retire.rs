//! Takes an environment out of what workers offer.

use serde_json::Map;

use super::CURRENT;
use super::error::EnvironmentsError;
use super::files::StagedChange;
use super::id::{EnvironmentId, RevisionId};
use super::log::QueueChange;
use super::queue::{Queue, log_entry};
use super::read;
use super::records::{Attribution, CurrentChoice};

impl Queue {
    /// Retires an environment: workers no longer offer it. Its revisions and their images stay. Returns the revision that they
    /// offered.
    ///
    /// It is offered again once a revision is published that was submitted later.
    ///
    /// # Errors
    ///
    /// Workers do not offer the environment.
    pub fn retire(&self, id: &EnvironmentId, by: &Attribution) -> Result<RevisionId, EnvironmentsError> {
        let _lock = self.lock()?;
        let environment = self.environment(id)?;
        let Some(current) = environment.current() else {
            return Err(match environment.choice {
                Some(CurrentChoice { revision: None, by, .. }) => {
                    EnvironmentsError::Retired { id: id.clone(), who: by.who }
                }
                _ => EnvironmentsError::NothingCurrent(id.clone()),
            });
        };
        // Also those that wait: their publication must not bring the environment back by accident.
        let through = read::newest(self.path(), id)?.unwrap_or(current.id.number);
        let choice = CurrentChoice { by: by.clone(), revision: None, through, unknown: Map::new() };
        let staged = StagedChange::new(&self.files.tmp)?;
        let prepared = staged.write_json(CURRENT, &choice)?;
        let entry = log_entry(QueueChange::Retired, &current.id, by);
        self.files.commit(&prepared, &self.environment_path(id).join(CURRENT), &entry)?;
        Ok(current.id.clone())
    }
}
