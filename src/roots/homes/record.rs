//! The record of a named root: its properties for listings. A leased root has none.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::home::Home;
use crate::os::{AtPath as _, PathError};
use crate::roots::{Engine, Lower, Upper};

const FILE: &str = "root.json";
const VERSION: u32 = 1;

/// The file `root.json` in a home. It is written before the root is mounted, and never changes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RootRecord {
    version: u32,
    /// `NAME@DIGEST`.
    pub(super) image: String,
    pub(super) engine: Engine,
    /// The names of the layer directories that the root uses.
    #[serde(default)]
    pub(super) layers: Vec<String>,
    upper: String,
    /// Unix time in seconds.
    created: u64,
}

impl RootRecord {
    pub(super) fn new(image: &Lower, engine: Engine, upper: &Upper) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Self {
            version: VERSION,
            image: image.resolved_name().to_owned(),
            engine,
            layers: image.layer_directories(),
            upper: upper.to_string(),
            created: now,
        }
    }

    pub(super) fn upper(&self) -> Option<Upper> {
        self.upper.parse().ok()
    }

    pub(super) fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }

    pub(super) fn write(&self, home: &Home, home_path: &Path) -> Result<(), PathError> {
        let path = home_path.join(FILE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(home.as_fd(), FILE, flags, Mode::from_raw_mode(0o600)).at("create", &path)?;
        let text = serde_json::to_vec(self).map_err(io::Error::from).at("write", &path)?;
        fs::File::from(file).write_all(&text).at("write", &path)
    }

    /// Reads the record of a home; `None` if it is missing, damaged, or of another version.
    pub(super) fn read(home: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(home.join(FILE)).ok()?).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// Returns whether a home has a record, even a damaged one.
    pub(super) fn exists(home: &Path) -> bool {
        home.join(FILE).exists()
    }
}
