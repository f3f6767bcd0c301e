//! The record of a named root: its properties for listings. A leased root has none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::home::Home;
use crate::image::Digest;
use crate::os::{AtPath as _, PathError, retry_again};
use crate::roots::{Engine, Lower, RootId, Upper};

const FILE: &str = "root.json";
/// The name of a record that is to replace another one.
const NEW_FILE: &str = "root.json.new";
const VERSION: u32 = 1;
/// Bytes of a record that are read. One with 250 layers has some 17 KiB.
const SIZE_MAX: u64 = 1 << 20;

/// The file `root.json` in a home. It is written before the root is mounted, and never changes afterwards.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RootRecord {
    version: u32,
    /// `NAME@DIGEST`.
    pub(super) image: String,
    pub(super) engine: Engine,
    /// The names of the layer directories that the root uses.
    #[serde(default)]
    pub(super) layers: Vec<String>,
    /// The device of the filesystem in which a daemon serves layers to the root: [`Lower::layers_device`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) layers_device: Option<u64>,
    /// The digests of the files that the root has in addition to its image, by their relative paths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) injected: BTreeMap<String, Digest>,
    upper: String,
    /// Unix time in seconds.
    created: u64,
}

impl RootRecord {
    pub(super) fn new(image: &Lower, upper: &Upper) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Self {
            version: VERSION,
            image: image.resolved_name().to_owned(),
            engine: image.engine(),
            layers: image.layer_directories(),
            layers_device: image.layers_device(),
            injected: BTreeMap::new(),
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
        self.write_to(home, FILE, home_path)
    }

    /// Replaces the record, which another process may be reading.
    pub(super) fn replace(&self, home: &Home, home_path: &Path) -> Result<(), PathError> {
        self.write_to(home, NEW_FILE, home_path)?;
        rustix::fs::renameat(home.as_fd(), NEW_FILE, home.as_fd(), FILE).at("replace", &home_path.join(FILE))
    }

    fn write_to(&self, home: &Home, name: &str, home_path: &Path) -> Result<(), PathError> {
        let path = home_path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(home.as_fd(), name, flags, Mode::from_raw_mode(0o600)).at("create", &path)?;
        let text = serde_json::to_vec(self).map_err(io::Error::from).at("write", &path)?;
        fs::File::from(file).write_all(&text).at("write", &path)
    }

    /// Reads the record of a home in `homes`; `None` if there is none, or it is damaged or of another version.
    pub(super) fn read(homes: BorrowedFd<'_>, id: &RootId) -> Option<Self> {
        let mut text = Vec::new();
        let file = fs::File::from(open(homes, id).ok()?);
        file.take(SIZE_MAX).read_to_end(&mut text).ok()?;
        let record: Self = serde_json::from_slice(&text).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// Whether a home in `homes` has a record, even a damaged one.
    pub(super) fn exists(homes: BorrowedFd<'_>, id: &RootId) -> bool {
        !matches!(open(homes, id), Err(Errno::NOENT | Errno::NOTDIR))
    }
}

/// Opens the record of a home without following links.
fn open(homes: BorrowedFd<'_>, id: &RootId) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    retry_again(|| rustix::fs::openat2(homes, format!("{id}/{FILE}"), flags, Mode::empty(), resolve))
}
