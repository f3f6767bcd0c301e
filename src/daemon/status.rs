//! The daemon's status.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::FsStatus;
use crate::fuse::LazyReads;

/// The answer to a status request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// Version of the program.
    pub version: String,
    /// Process ID of the daemon.
    pub pid: u32,
    /// Mountpoint of the images.
    pub mountpoint: PathBuf,
    /// The store that is served.
    pub store: PathBuf,
    /// Time since the start, in seconds.
    pub uptime_seconds: u64,
    /// Number of threads that answer kernel requests.
    pub threads: usize,
    /// Images, layers and the cache.
    pub filesystem: FsStatus,
    /// Number of kernel requests for images by kind.
    pub requests: BTreeMap<String, u64>,
    /// The mount of the layer files; `None` if the daemon does not serve them.
    pub layer_files: Option<LayerFilesStatus>,
    /// What all processes have read from the mounts.
    pub reads: LazyReads,
    /// The plain layers of the store.
    pub plain_layers: PlainLayersStatus,
    /// Number of requests answered with EIO or ETIMEDOUT.
    pub errors: u64,
    /// Number of these requests whose handler panicked.
    pub panics: u64,
}

/// The plain layers of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlainLayersStatus {
    /// Their number.
    pub count: usize,
    /// The disk space that they take, in bytes.
    pub bytes: u64,
}

/// The state of the mount of the layer files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerFilesStatus {
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// Number of files that the kernel knows. Their layers are open.
    pub known: usize,
    /// Number of kernel requests by kind.
    pub requests: BTreeMap<String, u64>,
}
