//! What the daemon tells about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::FsStatus;

/// The answer to a status request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Version of the program.
    pub version: String,
    /// Process that serves.
    pub pid: u32,
    /// Where the images are.
    pub mountpoint: PathBuf,
    /// Where they come from.
    pub store: PathBuf,
    /// For how long it has served.
    pub uptime_seconds: u64,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// Images, layers and the cache.
    pub filesystem: FsStatus,
    /// Requests of the kernel by kind.
    pub requests: BTreeMap<String, u64>,
    /// Requests answered with EIO.
    pub errors: u64,
    /// Of these, those whose handler panicked.
    pub panics: u64,
}
