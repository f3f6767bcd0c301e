//! The table `[erofs]`.

use std::time::Duration;

use serde::Deserialize;

use crate::roots::{TreeMounts, parse_size};

/// Table `[erofs]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct ErofsConfig {
    /// Which layers become plain layers.
    #[serde(default)]
    pub(in crate::cli) plain: PlainChoice,
    /// Disk space of all plain layers: a size as for an upper.
    plain_budget: Option<String>,
    /// Seconds for which the pages of an image without roots are kept.
    idle: Option<u64>,
    /// Whether the daemon decodes ahead what earlier runs have read.
    #[serde(default = "yes")]
    pub(in crate::cli) prefetch: bool,
}

fn yes() -> bool {
    true
}

/// A value of the configuration's `plain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) enum PlainChoice {
    /// Only those of `--plain`.
    #[default]
    Never,
    /// Also those that roots use: the daemon makes them.
    Used,
    /// Also those that are pulled or loaded.
    Always,
}

impl Default for ErofsConfig {
    fn default() -> Self {
        Self { plain: PlainChoice::default(), plain_budget: None, idle: None, prefetch: true }
    }
}

impl ErofsConfig {
    /// How long a holder keeps the superblock of an image without roots.
    pub(in crate::cli) fn idle(&self) -> Duration {
        self.idle.map_or(TreeMounts::IDLE, Duration::from_secs)
    }

    /// The disk space of all plain layers, in bytes; `None` for the default.
    pub(in crate::cli) fn plain_budget(&self) -> anyhow::Result<Option<u64>> {
        let parse = |text: &String| {
            parse_size(text).map_err(|why| anyhow::anyhow!("plain-budget `{text}` is invalid: {why}"))
        };
        self.plain_budget.as_ref().map(parse).transpose()
    }
}
