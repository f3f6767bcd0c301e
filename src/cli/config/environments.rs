//! The table `[environments]`.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::cli::error;
use crate::environments::{
    AllowedRegistries, BuildLimits, EnvironmentsPrefix, HardwareGroup, NO_REGISTRY, RevisionId,
};
use crate::error::ErrorCode;
use crate::image::Reference;
use crate::roots::parse_size;

/// Table `[environments]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct EnvironmentsConfig {
    /// Directory of the queue.
    pub(in crate::cli) queue: Option<PathBuf>,
    /// Registries that base images may come from: `host[:port][/prefix]`. All, if the key is missing.
    registries: Option<Vec<String>>,
    /// Largest context: a size as for an upper.
    context_limit: Option<String>,
    /// Where images of environments are pushed, and the list of them: `HOST[:PORT][/PREFIX]`.
    registry: Option<String>,
    /// Longest build, in seconds.
    build_time: Option<NonZeroU64>,
    /// Disk space of a build: a size as for an upper.
    build_disk: Option<String>,
    /// Longest output of a build: a size as for an upper.
    build_log: Option<String>,
    /// File with the keys whose signatures of the list are accepted.
    pub(in crate::cli) allowed_signers: Option<PathBuf>,
    /// Hardware group of this host's workers.
    hwgroup: Option<String>,
}

impl EnvironmentsConfig {
    /// The default of `context-limit`: 1 GiB. A build has no network, so its context may have packages.
    const CONTEXT_LIMIT: u64 = 1 << 30;
    /// The smallest `build-disk`.
    const BUILD_DISK_MIN: u64 = 16 << 20;

    /// The registries that base images may come from; `None` if all are allowed.
    pub(in crate::cli) fn registries(&self) -> anyhow::Result<Option<AllowedRegistries>> {
        let parse = |texts: &Vec<String>| AllowedRegistries::parse(texts).map_err(anyhow::Error::msg);
        self.registries.as_ref().map(parse).transpose()
    }

    /// Where the registry has the list of environments: what the option says, otherwise the configuration.
    pub(in crate::cli) fn registry(
        &self,
        option: Option<&EnvironmentsPrefix>,
    ) -> anyhow::Result<EnvironmentsPrefix> {
        let given = option.cloned().map_or_else(|| self.prefix(), |prefix| Ok(Some(prefix)))?;
        given.ok_or_else(|| {
            error::fail_with_hint(
                ErrorCode::Usage,
                "no registry is given for the list of environments",
                "use `--registry HOST/PREFIX`, or set `registry` in the table `[environments]` of the configuration",
            )
        })
    }

    fn prefix(&self) -> anyhow::Result<Option<EnvironmentsPrefix>> {
        self.registry.as_ref().map(|text| Ok(text.parse()?)).transpose()
    }

    /// The hardware group of this host's workers.
    pub(in crate::cli) fn hwgroup(&self) -> anyhow::Result<Option<HardwareGroup>> {
        self.hwgroup.as_ref().map(|text| Ok(text.parse()?)).transpose()
    }

    /// The largest context, in bytes.
    pub(in crate::cli) fn context_limit(&self) -> anyhow::Result<u64> {
        size("context-limit", self.context_limit.as_deref(), Self::CONTEXT_LIMIT)
    }

    /// The limits of a build.
    pub(in crate::cli) fn build_limits(&self) -> anyhow::Result<BuildLimits> {
        let disk = size("build-disk", self.build_disk.as_deref(), 10 << 30)?;
        if disk < Self::BUILD_DISK_MIN {
            anyhow::bail!("build-disk: a filesystem has at least {} bytes", Self::BUILD_DISK_MIN);
        }
        let log = size("build-log", self.build_log.as_deref(), 16 << 20)?;
        Ok(BuildLimits {
            time: Duration::from_secs(self.build_time.map_or(3600, NonZeroU64::get)),
            disk,
            log,
        })
    }

    /// The name of a revision's image: in the registry, or if there is none, only in the store.
    pub(in crate::cli) fn image_of(&self, revision: &RevisionId) -> anyhow::Result<Reference> {
        let place = self.registry.as_deref().unwrap_or(NO_REGISTRY);
        let reference =
            Reference::parse(&format!("{place}/{}:{}", revision.environment, revision.number), None)?;
        match reference.name.host() == place.split('/').next() {
            true => Ok(reference),
            false => anyhow::bail!("registry `{place}`: expected HOST[:PORT][/PREFIX]"),
        }
    }

    /// Checks the values.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.context_limit()?;
        self.build_limits()?;
        self.image_of(&"x@1".parse()?)?;
        self.prefix()?;
        self.hwgroup()?;
        Ok(())
    }

    /// Whether images are pushed to a registry.
    pub(in crate::cli) fn has_registry(&self) -> bool {
        self.registry.is_some()
    }
}

/// A size of the table `[environments]`.
fn size(key: &str, text: Option<&str>, default: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default) };
    parse_size(text).map_err(|why| anyhow::anyhow!("{key} `{text}` is invalid: {why}"))
}
