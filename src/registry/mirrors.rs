//! Chooses where to ask for a repository: at the mirrors of its registry, then at the registry itself.
//!
//! A mirror that fails is passed over without a retry, because the next place is the retry. Content from a mirror has its
//! digest checked like any other; only for a tag, a mirror is trusted to know the newest manifest.

use std::collections::HashSet;
use std::sync::Mutex;

use super::endpoint::Endpoint;
use super::{Registry, RegistryError};
use crate::error::chain_text;
use crate::image::Name;
use crate::os::ignore_poison;

/// The mirrors that this client no longer asks.
#[derive(Default)]
pub(super) struct MirrorStates {
    /// Endpoints that are out of use.
    down: Mutex<HashSet<Endpoint>>,
}

impl MirrorStates {
    fn is_down(&self, endpoint: &Endpoint) -> bool {
        ignore_poison(self.down.lock()).contains(endpoint)
    }
}

impl Registry {
    /// The places to ask for a repository, in order. The last one is the registry itself.
    pub(super) fn endpoints(&self, name: &Name) -> Result<Vec<Endpoint>, RegistryError> {
        let mirrors = name.host().and_then(|host| self.options().mirrors.get(host));
        let mut endpoints = Endpoint::all(name, mirrors.map_or(&[], Vec::as_slice))?;
        endpoints.retain(|endpoint| !endpoint.is_mirror || !self.mirror_states().is_down(endpoint));
        Ok(endpoints)
    }

    /// Logs that a mirror failed. A mirror that cannot be reached is not asked again.
    pub(super) fn pass_over(&self, mirror: &Endpoint, error: &RegistryError) {
        use RegistryError as E;
        let host = &mirror.host;
        match error {
            // Mirrors need not have everything.
            E::NotFound { .. } => tracing::info!("the mirror {host} does not have it: {error}"),
            error => tracing::warn!("the mirror {host} is passed over: {}", chain_text(error)),
        }
        let is_down = matches!(
            error,
            E::Connect { .. }
                | E::Tls { .. }
                | E::Broken { .. }
                | E::Deadline { .. }
                | E::Server { .. }
                | E::RateLimited { .. }
        );
        if is_down {
            ignore_poison(self.mirror_states().down.lock()).insert(mirror.clone());
        }
    }

    /// Stops asking the mirrors for a repository, because one of them sent wrong content. Returns whether it has mirrors: another
    /// download of the same pull may have stopped asking them while this one was under way.
    #[must_use]
    pub fn distrust_mirrors(&self, name: &Name) -> bool {
        let configured = name.host().and_then(|host| self.options().mirrors.get(host));
        let Some(mirrors) = configured.filter(|mirrors| !mirrors.is_empty()) else { return false };
        let mut endpoints = Endpoint::all(name, mirrors).unwrap_or_default();
        endpoints.retain(|endpoint| endpoint.is_mirror);
        ignore_poison(self.mirror_states().down.lock()).extend(endpoints);
        true
    }
}
