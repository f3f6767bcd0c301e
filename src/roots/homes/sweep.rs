//! Lists roots, and removes what nobody has any more.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::NAMED;
use crate::roots::homes::home::{self, DIRECTORY, Found, Home};
use crate::roots::homes::processes;
use crate::roots::homes::record::Record;
use crate::roots::mounts::mount;
use crate::roots::{Engine, RootId, Roots, Upper};

/// What a root is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootState {
    /// It is mounted under its name.
    Mounted,
    /// Somebody has its lock: it is leased, or just being made or removed.
    Leased,
    /// It is not mounted under its name, and nobody has its lock; a sweep removes it when nothing uses it any more.
    Detached,
}

/// A root that has something on disk.
#[derive(Debug, Clone)]
pub struct RootInfo {
    /// Its name.
    pub id: RootId,
    /// What it is doing.
    pub state: RootState,
    /// Where it is mounted, of a named root.
    pub path: Option<PathBuf>,
    /// The image, as `NAME@DIGEST`, of a named root; `None` too where that is not known any more.
    pub image: Option<String>,
    /// How it was made.
    pub engine: Option<Engine>,
    /// The layer directories that it is made of, where the engine has them.
    pub layers: Vec<String>,
    /// Where its writes go.
    pub upper: Option<Upper>,
    /// When it was made.
    pub created: Option<SystemTime>,
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// The roots that are gone.
    pub removed: Vec<RootId>,
    /// Those that are dead and could not be removed, with the reason.
    pub failed: Vec<(RootId, RootsError)>,
}

impl Roots {
    /// All roots that have something on disk, sorted by name. Leased roots in memory or without an upper have nothing there.
    ///
    /// # Errors
    ///
    /// The directories cannot be read.
    pub fn list(&self) -> Result<Vec<RootInfo>, RootsError> {
        let mut ids = self.places.homes.ids()?;
        for id in self.mountpoints()? {
            // It has lost its home.
            if self.places.is_mounted(&id)? && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids.sort();
        ids.into_iter().map(|id| self.describe(id)).collect()
    }

    pub(crate) fn describe(&self, id: RootId) -> Result<RootInfo, RootsError> {
        let record = Record::read(&self.places.homes.path_of(&id));
        let state = if self.places.is_mounted(&id)? {
            RootState::Mounted
        } else if self.places.homes.is_locked(&id)? {
            RootState::Leased
        } else {
            RootState::Detached
        };
        Ok(RootInfo {
            path: (state == RootState::Mounted).then(|| self.places.named_root(&id)),
            engine: record.as_ref().map(|record| record.engine),
            upper: record.as_ref().and_then(Record::upper),
            created: record.as_ref().map(Record::created),
            layers: record.as_ref().map(|record| record.layers.clone()).unwrap_or_default(),
            image: record.map(|record| record.image),
            id,
            state,
        })
    }

    /// Removes every root that nobody has any more: of processes that died, of before a reboot, and those that something kept
    /// when they were removed. Quick when there is none.
    ///
    /// # Errors
    ///
    /// The directories cannot be read. That a root cannot be removed does not end the sweep.
    pub fn sweep(&self) -> Result<SweepReport, RootsError> {
        let mut swept = SweepReport::default();
        // A root's home is there for as long as its mountpoint is. So these are looked for first.
        for id in self.mountpoints()? {
            match rustix::fs::statat(self.places.homes.fd(), id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                _ => continue,
            }
            match self.places.remove_mountpoint(&id) {
                Err(RootsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {
                    tracing::warn!("root {id} has lost its home and is mounted: left alone");
                }
                removed => removed?,
            }
        }
        for id in self.places.homes.ids()? {
            match self.sweep_one(&id) {
                Ok(true) => swept.removed.push(id),
                Ok(false) => {}
                Err(error) => swept.failed.push((id, error)),
            }
        }
        Ok(swept)
    }

    /// Roots that a sweep would remove now.
    ///
    /// # Errors
    ///
    /// The directories cannot be read.
    pub fn dead(&self) -> Result<Vec<RootId>, RootsError> {
        let mut dead = Vec::new();
        for id in self.places.homes.ids()? {
            if let Some(home) = self.lock_dead(&id)? {
                home.unlock();
                dead.push(id);
            }
        }
        Ok(dead)
    }

    /// Removes a root if nobody has it; whether it did.
    pub(crate) fn sweep_one(&self, id: &RootId) -> Result<bool, RootsError> {
        let Some(home) = self.lock_dead(id)? else { return Ok(false) };
        self.places.remove_mountpoint(id)?;
        self.places.homes.remove(id, home)?;
        Ok(true)
    }

    fn lock_dead(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let Found::Locked(home) = self.places.homes.lock(id)? else { return Ok(None) };
        if !self.places.is_mounted(id)? && self.is_dead(id, &home)? {
            return Ok(Some(home));
        }
        home.unlock();
        Ok(None)
    }

    /// Whether nothing uses a root that is not mounted under its name any more.
    pub(crate) fn is_dead(&self, id: &RootId, home: &Home) -> Result<bool, RootsError> {
        let path = self.places.homes.path_of(id);
        let has = |name| match rustix::fs::statat(home.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(RootsError::io("stat", &path, errno)),
        };
        if has("upper")? {
            return Ok(!mount::is_alive(home.as_fd())?);
        }
        // Without an upper here there is nothing on disk to lose: what can be seen is enough.
        match Record::is_there(&path) {
            true => Ok(processes::holders(&id.source()).at("read", "/proc".as_ref())?.is_empty()),
            false => Ok(true),
        }
    }

    fn mountpoints(&self) -> Result<Vec<RootId>, RootsError> {
        let path = self.places.run_dir.join(NAMED);
        let named =
            rustix::fs::openat(&self.places.run, NAMED, DIRECTORY, Mode::empty()).at("open", &path)?;
        home::ids_in(named.as_fd()).at("list", &path)
    }
}
