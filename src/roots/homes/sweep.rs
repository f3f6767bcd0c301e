//! Lists roots, and removes the files of dead roots.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::home::Home;
use super::marker::ids_in;
use super::named::ANSWER_WAIT;
use super::record::RootRecord;
use super::{NAMED, Roots, processes};
use crate::daemon::LAYERS;
use crate::os::{AtPath as _, NamedLock, PathError};
use crate::roots::mounts::{OPEN_DIRECTORY, mount};
use crate::roots::trees::serves_layers;
use crate::roots::{Engine, RootId, RootsError, Upper};

/// The state of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootState {
    /// It is mounted at its mountpoint.
    Mounted,
    /// It is mounted, but the daemon that served its image has ended: access to the image fails with `ENOTCONN`.
    Dead,
    /// A process holds its lock: it is leased, or being made or removed.
    Leased,
    /// It is not mounted at its mountpoint, and its lock is free. A sweep removes it when no process uses it any more.
    Detached,
}

/// A root that has files on disk.
#[derive(Debug, Clone)]
pub struct RootInfo {
    /// The name of the root.
    pub id: RootId,
    /// The state of the root.
    pub state: RootState,
    /// The mountpoint, if a named root is mounted there.
    pub path: Option<PathBuf>,
    /// The image as `NAME@DIGEST`. This and the next fields are unknown for leased roots and for damaged records.
    pub image: Option<String>,
    /// The engine that shows the image.
    pub engine: Option<Engine>,
    /// The names of the layer directories that it uses. `None` if they are unknown, because its record is missing or cannot
    /// be read. Leased roots hold the locks of theirs.
    pub layers: Option<Vec<String>>,
    /// The kind of its upper.
    pub upper: Option<Upper>,
    /// The time when it was made.
    pub created: Option<SystemTime>,
}

/// The result of a sweep.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// The roots that were removed.
    pub removed: Vec<RootId>,
    /// The dead roots that could not be removed.
    pub failed: Vec<(RootId, RootsError)>,
}

impl Roots {
    /// Lists all roots that have files on disk, sorted by name. Leased roots with an upper in memory, or without one, have no
    /// files.
    ///
    /// # Errors
    ///
    /// A directory cannot be read.
    pub fn list(&self) -> Result<Vec<RootInfo>, RootsError> {
        let mut ids = self.dirs.homes.ids()?;
        for id in self.mountpoints()? {
            // A mounted root may have lost its home.
            if self.dirs.is_mounted(&id)? && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids.sort();
        ids.into_iter().map(|id| self.describe(id)).collect()
    }

    pub(super) fn describe(&self, id: RootId) -> Result<RootInfo, RootsError> {
        let homes = self.dirs.homes.fd();
        let record = RootRecord::read(homes, &id);
        let has_lost_daemon = || match &record {
            Some(RootRecord { engine: Engine::Fuse, .. }) => self.dirs.has_lost_daemon(&id),
            Some(RootRecord { layers_device: Some(mount), .. }) => {
                Ok(!serves_layers(&self.dirs.run_dir.join(LAYERS), *mount, ANSWER_WAIT)?)
            }
            _ => Ok(false),
        };
        let state = if self.dirs.is_mounted(&id)? {
            if has_lost_daemon()? { RootState::Dead } else { RootState::Mounted }
        } else if self.dirs.homes.is_locked(&id)? {
            RootState::Leased
        } else {
            RootState::Detached
        };
        let layers = match &record {
            Some(record) => Some(record.layers.clone()),
            None if state == RootState::Leased => Some(Vec::new()),
            None if matches!(state, RootState::Mounted | RootState::Dead)
                || RootRecord::exists(homes, &id) =>
            {
                None
            }
            None => Some(Vec::new()),
        };
        Ok(RootInfo {
            path: matches!(state, RootState::Mounted | RootState::Dead).then(|| self.dirs.named_root(&id)),
            engine: record.as_ref().map(|record| record.engine),
            upper: record.as_ref().and_then(RootRecord::upper),
            created: record.as_ref().map(RootRecord::created),
            layers,
            image: record.map(|record| record.image),
            id,
            state,
        })
    }

    /// Removes every dead root: roots of processes that died, roots from before a reboot, and detached roots that are no longer
    /// in use. Cheap if there is no dead root.
    ///
    /// # Errors
    ///
    /// A directory cannot be read. A root that cannot be removed is reported and does not end the sweep.
    pub fn sweep(&self) -> Result<SweepReport, RootsError> {
        let mut report = SweepReport::default();
        // A root has its home for as long as its mountpoint. The mountpoints are listed before the homes are looked up, so that
        // a root that is being made is not mistaken for a mountpoint without a home.
        for id in self.mountpoints()? {
            match rustix::fs::statat(self.dirs.homes.fd(), id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                _ => continue,
            }
            match self.dirs.remove_mountpoint(&id) {
                Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => {
                    tracing::warn!("root {id} is mounted but has no home: the sweep skips it");
                }
                result => result?,
            }
        }
        for id in self.dirs.homes.ids()? {
            match self.sweep_one(&id) {
                Ok(true) => report.removed.push(id),
                Ok(false) => {}
                Err(error) => report.failed.push((id, error)),
            }
        }
        Ok(report)
    }

    /// Unmounts the roots whose daemon has ended and that no process uses; a sweep then removes them.
    ///
    /// # Errors
    ///
    /// A directory cannot be read. Roots that cannot be unmounted stay.
    pub fn unmount_dead(&self) -> Result<(), RootsError> {
        for root in self.list()?.into_iter().filter(|root| root.state == RootState::Dead) {
            match mount::unmount(&self.dirs.named_root(&root.id), false) {
                // EINVAL: another process has unmounted it. Without its mountpoint, it is unmounted in other mount namespaces.
                Ok(()) | Err(Errno::INVAL) => self.dirs.remove_mountpoint(&root.id)?,
                Err(Errno::BUSY) => tracing::warn!("root {} is dead, but processes still use it", root.id),
                Err(errno) => tracing::warn!("cannot unmount dead root {}: {errno}", root.id),
            }
        }
        Ok(())
    }

    /// Lists the dead roots, which a sweep would remove.
    ///
    /// # Errors
    ///
    /// A directory cannot be read.
    pub fn dead(&self) -> Result<Vec<RootId>, RootsError> {
        let lost = self.list()?.into_iter().filter(|root| root.state == RootState::Dead);
        let mut dead: Vec<RootId> = lost.map(|root| root.id).collect();
        for id in self.dirs.homes.ids()? {
            if let Some(home) = self.lock_dead(&id)? {
                home.unlock();
                dead.push(id);
            }
        }
        Ok(dead)
    }

    /// Removes a root if it is dead; returns whether it was.
    pub(super) fn sweep_one(&self, id: &RootId) -> Result<bool, RootsError> {
        let Some(home) = self.lock_dead(id)? else { return Ok(false) };
        self.dirs.remove_mountpoint(id)?;
        self.dirs.homes.remove(id, home)?;
        Ok(true)
    }

    /// Locks the home of a root if the root is dead.
    fn lock_dead(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let NamedLock::Locked(home) = self.dirs.homes.lock(id, Duration::ZERO)? else { return Ok(None) };
        if !self.dirs.is_mounted(id)? && self.is_dead(id, &home)? {
            return Ok(Some(home));
        }
        home.unlock();
        Ok(None)
    }

    /// Returns whether no process uses a root that is not mounted at its mountpoint.
    pub(super) fn is_dead(&self, id: &RootId, home: &Home) -> Result<bool, RootsError> {
        let path = self.dirs.homes.path_of(id);
        match rustix::fs::statat(home.as_fd(), "upper", AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(!mount::is_upper_in_use(home.as_fd())?),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(PathError::new("stat", path.join("upper"), errno).into()),
        }
        // Without an upper on disk, no data can be lost: looking at the mount tables is enough.
        if !RootRecord::exists(self.dirs.homes.fd(), id) {
            return Ok(true);
        }
        let holders = processes::processes_with_mount(&id.source()).at("read", Path::new("/proc"))?;
        Ok(holders.is_empty())
    }

    /// Lists the mountpoints of named roots, sorted.
    fn mountpoints(&self) -> Result<Vec<RootId>, RootsError> {
        let path = self.dirs.run_dir.join(NAMED);
        let named =
            rustix::fs::openat(&self.dirs.run, NAMED, OPEN_DIRECTORY, Mode::empty()).at("open", &path)?;
        Ok(ids_in(named.as_fd()).at("list", &path)?)
    }
}
