//! What this host offers: a file in the store, written after the images were checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::EnvironmentsError;
use super::id::EnvironmentId;
use super::log::sync_directory;
use super::offers::OfferList;
use crate::os::{self, AtPath as _, PathError, Sharing};

/// The file, in the directory `rcx-imagefs` of the store.
const FILE: &str = "environments.json";
/// How long a synchronisation waits for another one.
const LOCK_MAX: Duration = Duration::from_secs(10);

/// The environments that this host offers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AdvertisedSet {
    /// The list that was followed last: `NAME:TAG@DIGEST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// The environments. Their images are complete and were checked.
    pub environments: OfferList,
    /// The images that were pulled to offer them, and are not removed yet: `NAME@DIGEST`.
    #[serde(default)]
    pub pulled: BTreeSet<String>,
    /// The IDs for which the command of `--exec` has run; `None` before its first run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<Vec<EnvironmentId>>,
}

impl AdvertisedSet {
    /// The IDs of the environments, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<EnvironmentId> {
        self.environments.offers().iter().map(|offer| offer.id.clone()).collect()
    }
}

/// The file of the set, locked against other synchronisations.
#[derive(Debug)]
pub struct AdvertisedFile {
    path: PathBuf,
    lock: File,
}

impl Drop for AdvertisedFile {
    fn drop(&mut self) {
        os::unlock(&self.lock);
    }
}

impl AdvertisedFile {
    /// Locks the file in this directory.
    ///
    /// # Errors
    ///
    /// Another process has held the lock for too long.
    pub fn lock(directory: &Path) -> Result<Self, EnvironmentsError> {
        let path = directory.join("environments.lock");
        let mut options = File::options();
        let lock =
            options.write(true).create(true).truncate(false).mode(0o600).open(&path).at("open", &path)?;
        // Nobody removes the file.
        if !os::lock_until(&lock, Sharing::Exclusive, Some(Instant::now() + LOCK_MAX)).at("lock", &path)? {
            return Err(EnvironmentsError::Busy { path, seconds: LOCK_MAX.as_secs() });
        }
        Ok(Self { path: directory.join(FILE), lock })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the set. It is empty if the file does not exist.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is damaged.
    pub fn read(&self) -> Result<AdvertisedSet, EnvironmentsError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(AdvertisedSet::default()),
            Err(error) => return Err(PathError::new("read", &self.path, error).into()),
        };
        serde_json::from_slice(&bytes).map_err(|error| EnvironmentsError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    /// Replaces the set in one step.
    ///
    /// # Errors
    ///
    /// The file cannot be written. The set is then as before.
    pub fn write(&self, set: &AdvertisedSet) -> Result<(), EnvironmentsError> {
        let temporary = self.path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(set).map_err(io::Error::from).at("write", &temporary)?;
        text.push(b'\n');
        let mut options = File::options();
        // A leftover of a process that died is overwritten: the lock is held.
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .at("create", &temporary)?;
        file.write_all(&text).and_then(|()| file.sync_all()).at("write", &temporary)?;
        fs::rename(&temporary, &self.path).at("rename", &temporary)?;
        Ok(sync_directory(self.path.parent().unwrap_or(Path::new(".")))?)
    }
}
