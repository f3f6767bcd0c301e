//! What is remembered of a named root: for lists, and to tell it from a leased one.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::home::Home;
use crate::roots::{Engine, Lower, Upper};

const FILE: &str = "root.json";
const VERSION: u32 = 1;

/// The file `root.json` of a home. Written before the root is mounted, and never changed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// `NAME@DIGEST`.
    pub(crate) image: String,
    pub(crate) engine: Engine,
    /// Names of the layer directories that it is made of.
    #[serde(default)]
    pub(crate) layers: Vec<String>,
    upper: String,
    /// Seconds since 1970.
    created: u64,
}

impl Record {
    pub(crate) fn new(image: &Lower, engine: Engine, upper: &Upper) -> Self {
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

    pub(crate) fn upper(&self) -> Option<Upper> {
        self.upper.parse().ok()
    }

    pub(crate) fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }

    pub(crate) fn write(&self, home: &Home, path: &Path) -> Result<(), RootsError> {
        let path = path.join(FILE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(home.as_fd(), FILE, flags, Mode::from_raw_mode(0o600)).at("make", &path)?;
        let text = serde_json::to_vec(self).map_err(io::Error::from).at("write", &path)?;
        fs::File::from(file).write_all(&text).at("write", &path)
    }

    /// Reads the record in a home; `None` where there is none, or none that this version can read.
    pub(crate) fn read(home: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(home.join(FILE)).ok()?).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// Whether a home has a record, readable or not.
    pub(crate) fn is_there(home: &Path) -> bool {
        home.join(FILE).exists()
    }
}
