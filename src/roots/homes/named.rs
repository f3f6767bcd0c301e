//! Named roots: made by one process, used by others, and removed by a third.
//!
//! Making goes home, mountpoint, mount; removing goes back the same way. So a mountpoint without a home is nobody's, and a
//! home whose root is not mounted is one that died on the way, or that something still kept when it was removed.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::home::{Found, Home};
use crate::roots::homes::lease;
use crate::roots::homes::processes;
use crate::roots::homes::record::Record;
use crate::roots::homes::{NAMED, Places};
use crate::roots::mounts::lower;
use crate::roots::mounts::mount;
use crate::roots::{Engine, Lower, RootId, RootInfo, RootWatch, Roots, Upper};

/// How long making or removing a root may take another process.
const BUSY: Duration = Duration::from_secs(10);
/// How long an overlay that nobody shows to have may take to be dead.
const DYING: Duration = Duration::from_secs(1);
/// Pause between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(2);

/// What removing a root came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootRemoval {
    /// Nothing is left of it.
    Gone,
    /// It is out of reach, and its files stay until a sweep finds that nothing uses them any more.
    Detached {
        /// Processes that have it in their mount namespace, as far as can be seen.
        holders: Vec<Pid>,
    },
}

impl Places {
    /// Where a named root is mounted.
    pub(crate) fn named_root(&self, id: &RootId) -> PathBuf {
        self.run_dir.join(NAMED).join(id.as_str())
    }

    /// Whether something is mounted under a root's name. Asks no daemon.
    pub(crate) fn is_mounted(&self, id: &RootId) -> Result<bool, RootsError> {
        Ok(self.mounted(id)?.is_some())
    }

    /// The device of what is mounted under a root's name, if anything is.
    fn mounted(&self, id: &RootId) -> Result<Option<(u32, u32)>, RootsError> {
        let path = self.named_root(id);
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(rustix::fs::CWD, &path, flags, StatxFlags::TYPE) {
            Ok(stat) => {
                let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
                Ok(mounted.then_some((stat.stx_dev_major, stat.stx_dev_minor)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(RootsError::io("stat", &path, errno)),
        }
    }

    /// Removes a root's mountpoint, where it has one. Mounts on it in other namespaces go with it.
    pub(crate) fn remove_mountpoint(&self, id: &RootId) -> Result<(), RootsError> {
        match rustix::fs::unlinkat(&self.run, format!("{NAMED}/{id}"), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(RootsError::io("remove", &self.named_root(id), errno)),
        }
    }
}

impl Roots {
    /// Makes a root that is there until it is removed, under a name of the caller's or a random one.
    ///
    /// # Errors
    ///
    /// There is one of this name, or the kernel or the disk refuses. Nothing stays of it then.
    pub fn create(
        &self,
        id: Option<RootId>,
        engine: Engine,
        upper: &Upper,
        image: &Lower,
    ) -> Result<RootInfo, RootsError> {
        let places = &*self.places;
        if let Upper::Dir { .. } = upper {
            places.homes.check_filesystem()?;
        }
        let (id, home) = self.new_home(id)?;
        let making = Making { places, id: &id, home: Some(home) };
        let home = making.home.as_ref().expect("just put there");
        if let Upper::Dir { limit: Some(bytes) } = upper {
            places.homes.limit(home, *bytes)?;
        }
        Record::new(image, engine, upper).write(home, &places.homes.path_of(&id))?;
        let fd: OwnedFd = lease::make(places, &id, upper, Some(home.as_fd()), image)?;
        let path = places.named_root(&id);
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
            // Without a home, it was nobody's; that nothing is mounted there has to be seen.
            Err(Errno::EXIST) if !places.is_mounted(&id)? => {}
            Err(Errno::EXIST) => return Err(RootsError::Exists(id.clone())),
            made => made.at("make", &path)?,
        }
        mount::attach(&fd, &path).map_err(|errno| mount::refused(&id.source(), "move_mount", None, errno))?;
        making.done();
        self.describe(id)
    }

    fn new_home(&self, id: Option<RootId>) -> Result<(RootId, Home), RootsError> {
        let Some(id) = id else {
            loop {
                let id = RootId::random()
                    .map_err(|error| RootsError::io("read", "random numbers".as_ref(), error))?;
                if let Some(home) = self.places.homes.make(&id)? {
                    return Ok((id, home));
                }
            }
        };
        if let Some(home) = self.places.homes.make(&id)? {
            return Ok((id, home));
        }
        // One of a process that died has not to be in the way.
        if self.sweep_one(&id)?
            && let Some(home) = self.places.homes.make(&id)?
        {
            return Ok((id, home));
        }
        Err(RootsError::Exists(id))
    }

    /// Takes a named root away. Without `force`, only when no process uses it.
    ///
    /// # Errors
    ///
    /// There is none, or it is in use, or another process has it for long.
    pub fn remove(&self, id: &RootId, force: bool) -> Result<RootRemoval, RootsError> {
        let places = &*self.places;
        let home = self.lock_named(id)?;
        let removed = self.take_down(id, home.as_ref(), force);
        match (removed, home) {
            (Ok(RootRemoval::Gone), Some(home)) => places.homes.remove(id, home).map(|()| RootRemoval::Gone),
            (removed, home) => {
                if let Some(home) = home {
                    home.unlock();
                }
                removed
            }
        }
    }

    /// The home of a named root, waiting while another process makes or removes it. `None` for one that has lost its home.
    fn lock_named(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let places = &*self.places;
        let until = Instant::now() + BUSY;
        loop {
            match places.homes.lock(id)? {
                Found::Locked(home) => return Ok(Some(home)),
                Found::Missing if places.is_mounted(id)? => return Ok(None),
                Found::Missing => return Err(RootsError::Missing(id.clone())),
                // Leased roots have no record, and are held for as long as they are used.
                Found::Busy if Record::is_there(&places.homes.path_of(id)) && Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                Found::Busy => return Err(RootsError::Locked(id.clone())),
            }
        }
    }

    fn take_down(&self, id: &RootId, home: Option<&Home>, force: bool) -> Result<RootRemoval, RootsError> {
        let places = &*self.places;
        let path = places.named_root(id);
        let in_use = |device| {
            let by = processes::user(&id.source(), device).ok().flatten();
            RootsError::InUse { id: id.clone(), by }
        };
        let watch = RootWatch::new().at("watch", &path)?;
        let mut watched = false;
        while let Some(device) = places.mounted(id)? {
            if !force && let error @ RootsError::InUse { by: Some(_), .. } = in_use(device) {
                return Err(error);
            }
            let flags = lower::AS_LAYER | OFlags::NOFOLLOW;
            let root = rustix::fs::open(&path, flags, Mode::empty()).at("open", &path)?;
            watch.add_directory(root.as_fd()).at("watch", &path)?;
            watched = true;
            drop(root);
            match mount::unmount(&path, force) {
                // EINVAL: another process was faster.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(Errno::BUSY) => return Err(in_use(device)),
                Err(errno) => return Err(mount::refused(&id.source(), "umount2", None, errno)),
            }
        }
        places.remove_mountpoint(id)?;
        let dead = match home {
            _ if watched => watch.dead(DYING).at("watch", &path)?,
            Some(home) => self.is_dead(id, home)?,
            None => true,
        };
        if dead {
            return Ok(RootRemoval::Gone);
        }
        let holders = processes::holders(&id.source()).at("read", "/proc".as_ref())?;
        Ok(RootRemoval::Detached { holders })
    }
}

/// A root that is being made, taken down when that fails.
struct Making<'a> {
    places: &'a Places,
    id: &'a RootId,
    home: Option<Home>,
}

impl Making<'_> {
    fn done(mut self) {
        if let Some(home) = self.home.take() {
            home.unlock();
        }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let removed =
            self.places.remove_mountpoint(self.id).and_then(|()| self.places.homes.remove(self.id, home));
        if let Err(error) = removed {
            tracing::warn!("{error}; the next sweep removes it");
        }
    }
}
