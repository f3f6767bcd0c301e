//! Builds revisions as they are approved.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::BuildSession;
use crate::cli::error::{self, ErrorJson};
use crate::environments::{EnvironmentsError, RevisionId};

/// Pause between two looks at the queue.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a revision rests after a failure that is not its own, such as a registry that is down.
const REST: Duration = Duration::from_secs(60);

impl BuildSession<'_> {
    /// Builds until a signal arrives. Failures are printed.
    pub(super) fn watch(&self) -> anyhow::Result<()> {
        let builder = loop {
            match self.queue.builder() {
                Err(EnvironmentsError::OtherBuilder(_)) if self.pause() => {}
                Err(EnvironmentsError::OtherBuilder(_)) => return Ok(()),
                builder => break builder?,
            }
        };
        let mut resting: HashMap<RevisionId, Instant> = HashMap::new();
        while !self.stop.is_set() {
            resting.retain(|_, until| Instant::now() < *until);
            let waiting = self.waiting()?.into_iter().find(|revision| !resting.contains_key(&revision.id));
            let Some(revision) = waiting else {
                self.pause();
                continue;
            };
            if let Err(failure) = self.build(&builder, &revision.id)
                && error::interrupted_by(&failure).is_none()
            {
                error::print(&ErrorJson::new(&failure));
                resting.insert(revision.id, Instant::now() + REST);
            }
        }
        Ok(())
    }

    /// Waits a little; returns whether there was no signal.
    fn pause(&self) -> bool {
        // A timer can be made only inside the runtime.
        self.stop.or(&self.runtime, async { tokio::time::sleep(PAUSE).await }).is_ok()
    }
}
