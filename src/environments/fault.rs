//! Why a build fails.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a build's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildFault {
    /// A base image is no longer in its registry.
    Base,
    /// buildah failed: mostly a command of the Dockerfile.
    Build,
    /// The build took too long.
    TimeLimit,
    /// The build filled its disk.
    DiskLimit,
    /// The build printed too much.
    LogLimit,
    /// The image cannot be used.
    Image,
    /// The smoke command failed.
    Smoke,
}

impl fmt::Display for BuildFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Build => "build",
            Self::TimeLimit => "time-limit",
            Self::DiskLimit => "disk-limit",
            Self::LogLimit => "log-limit",
            Self::Image => "image",
            Self::Smoke => "smoke",
        })
    }
}

/// Why a revision cannot be built. Another attempt would fail too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFailure {
    /// The kind.
    pub fault: BuildFault,
    /// What happened, for the author.
    pub message: String,
}
