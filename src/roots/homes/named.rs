//! Named roots: made by one process, used by other processes, and removed by any process.
//!
//! A root is made in the order home, mountpoint, mount, and removed in the reverse order. So a mountpoint without a home
//! belongs to no root, and a home whose root is not mounted is left over from a crash or from a detached root.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::home::Home;
use super::record::RootRecord;
use super::{MODE, NAMED, RootDirs, RootInfo, Roots, lease, processes};
use crate::os::{self, AtPath as _, NamedLock, PathError};
use crate::roots::mounts::{OPEN_LAYER, RootOverlay, RootParts, make_overlay, mount};
use crate::roots::{Injection, Lower, RootId, RootWatch, RootsError, Upper};

/// How long another process may hold the lock of a named root while it makes or removes the root.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to shut down an overlay after it is unmounted.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

/// How long a daemon may take to answer a lookup before it counts as running.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The result of removing a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootRemoval {
    /// The root and its files are removed.
    Gone,
    /// The root is unmounted but still in use. A sweep removes its files when no process uses them any more.
    Detached {
        /// The processes that used it when it was detached, or have it in their mount namespace, as far as `/proc` shows them.
        holders: Vec<Pid>,
    },
}

impl RootDirs {
    /// The mountpoint of a named root.
    pub(super) fn named_root(&self, id: &RootId) -> PathBuf {
        self.run_dir.join(NAMED).join(id.as_str())
    }

    /// Returns whether a filesystem is mounted at the mountpoint of a root. Sends no request to a daemon.
    pub(super) fn is_mounted(&self, id: &RootId) -> Result<bool, RootsError> {
        Ok(self.mounted_device(id)?.is_some())
    }

    /// Returns the device number of the filesystem at the mountpoint of a root.
    pub(super) fn mounted_device(&self, id: &RootId) -> Result<Option<(u32, u32)>, RootsError> {
        let path = self.named_root(id);
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(rustix::fs::CWD, &path, flags, StatxFlags::TYPE) {
            Ok(stat) => {
                let is_mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
                Ok(is_mounted.then_some((stat.stx_dev_major, stat.stx_dev_minor)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(PathError::new("stat", path, errno).into()),
        }
    }

    /// Whether the daemon that serves the image of a mounted root has ended.
    ///
    /// Looks up a name that the kernel has not cached, so that it must ask the daemon. A daemon that does not answer in time
    /// counts as running.
    pub(super) fn has_lost_daemon(&self, id: &RootId) -> Result<bool, RootsError> {
        // During the lookup the root is in use. With the lock, no other process tries to unmount it then.
        let NamedLock::Locked(home) = self.homes.lock(id, Duration::ZERO)? else { return Ok(false) };
        let probe = self.named_root(id).join(format!(".rcx-imagefs-probe-{}", lease::random_id()?));
        let (sender, receiver) = mpsc::channel();
        // The lookup may block for as long as a stopped daemon does not answer. The thread then stays until that ends.
        std::thread::spawn(move || sender.send(rustix::fs::lstat(&probe).map(drop)));
        let answer = receiver.recv_timeout(ANSWER_WAIT);
        home.unlock();
        Ok(matches!(answer, Ok(Err(Errno::NOTCONN | Errno::CONNABORTED))))
    }

    /// Removes the mountpoint of a root, if it exists. The kernel unmounts it in other mount namespaces.
    pub(super) fn remove_mountpoint(&self, id: &RootId) -> Result<(), PathError> {
        match rustix::fs::unlinkat(&self.run, format!("{NAMED}/{id}"), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(PathError::new("remove", self.named_root(id), errno)),
        }
    }
}

impl Roots {
    /// Makes a named root. Without `id`, the root has a random name.
    ///
    /// # Errors
    ///
    /// The name is taken, the kernel refuses a mount, or the disk is full. Nothing remains of the root.
    pub fn create(
        &self,
        id: Option<RootId>,
        upper: &Upper,
        image: &Lower,
        injection: Option<&Injection>,
    ) -> Result<RootInfo, RootsError> {
        let dirs = &*self.dirs;
        if let Upper::Dir { .. } = upper {
            dirs.homes.check_filesystem()?;
        }
        let (id, home) = self.new_home(id)?;
        let unfinished = UnfinishedRoot { dirs, id: &id, home: Some(home) };
        let home = unfinished.home.as_ref().expect("set in the line above");
        let home_path = dirs.homes.path_of(&id);
        if let Upper::Dir { limit: Some(bytes) } = upper {
            dirs.homes.limit(home, *bytes)?;
        }
        let mut record = RootRecord::new(image, upper);
        record.write(home, &home_path)?;
        let RootOverlay { overlay, injected } = make_overlay(&RootParts {
            source: &id.source(),
            home: Some((home.as_fd(), &home_path)),
            upper,
            image,
            inodes: self.inodes,
            calls: self.calls,
            injection,
        })?;
        if !injected.is_empty() {
            record.injected = injected;
            record.replace(home, &home_path)?;
        }
        let path = dirs.named_root(&id);
        let is_new = os::make_directory(&dirs.run, format!("{NAMED}/{id}").as_str(), MODE)
            .at("make directory", &path)?;
        // A mountpoint without a home belongs to no root, unless a root that has lost its home is mounted there.
        if !is_new && dirs.is_mounted(&id)? {
            return Err(RootsError::Exists(id.clone()));
        }
        image.keep_for(overlay.attach(&id.source(), &path)?.as_fd());
        unfinished.finish();
        self.describe(id)
    }

    fn new_home(&self, id: Option<RootId>) -> Result<(RootId, Home), RootsError> {
        let Some(id) = id else {
            loop {
                let id = lease::random_id()?;
                if let Some(home) = self.dirs.homes.make(&id)? {
                    return Ok((id, home));
                }
            }
        };
        if let Some(home) = self.dirs.homes.make(&id)? {
            return Ok((id, home));
        }
        // The home may belong to a dead process.
        if self.sweep_one(&id)?
            && let Some(home) = self.dirs.homes.make(&id)?
        {
            return Ok((id, home));
        }
        Err(RootsError::Exists(id))
    }

    /// Removes a named root; without `force`, only if no process uses it.
    ///
    /// # Errors
    ///
    /// The root does not exist or is in use, or another process holds its lock for more than 10 s.
    pub fn remove(&self, id: &RootId, force: bool) -> Result<RootRemoval, RootsError> {
        let home = self.lock_home(id)?;
        let removal = self.unmount_root(id, home.as_ref(), force);
        match (removal, home) {
            (Ok(RootRemoval::Gone), Some(home)) => {
                self.dirs.homes.remove(id, home).map(|()| RootRemoval::Gone)
            }
            (removal, home) => {
                if let Some(home) = home {
                    home.unlock();
                }
                removal
            }
        }
    }

    /// Locks the home of a named root, waiting while another process makes or removes the root. Returns `None` for a mounted
    /// root without a home.
    pub(super) fn lock_home(&self, id: &RootId) -> Result<Option<Home>, RootsError> {
        let dirs = &*self.dirs;
        let mut lock = dirs.homes.lock(id, Duration::ZERO)?;
        // A leased root has no record. Its lock is held until the sandbox ends, so waiting would not help.
        if matches!(lock, NamedLock::Busy) && RootRecord::exists(dirs.homes.fd(), id) {
            lock = dirs.homes.lock(id, LOCK_WAIT)?;
        }
        match lock {
            NamedLock::Locked(home) => Ok(Some(home)),
            NamedLock::Missing if dirs.is_mounted(id)? => Ok(None),
            NamedLock::Missing => Err(RootsError::Missing(id.clone())),
            NamedLock::Busy => Err(RootsError::Locked(id.clone())),
        }
    }

    /// Unmounts a named root and removes its mountpoint.
    fn unmount_root(&self, id: &RootId, home: Option<&Home>, force: bool) -> Result<RootRemoval, RootsError> {
        let dirs = &*self.dirs;
        let path = dirs.named_root(id);
        let users = |device| processes::find_users(&id.source(), device).unwrap_or_default();
        let in_use = |by| RootsError::InUse { id: id.clone(), by };
        // Found before the root is detached: `/proc` does not show what a detached mount belongs to.
        let mut holders = Vec::new();
        let watch = RootWatch::new().at("watch", &path)?;
        let mut watched = false;
        while let Some(device) = dirs.mounted_device(id)? {
            let by = users(device);
            if !force && !by.is_empty() {
                return Err(in_use(by));
            }
            holders.extend(by.into_iter().map(|(pid, _)| pid));
            let root =
                rustix::fs::open(&path, OPEN_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", &path)?;
            watch.add_directory(root.as_fd()).at("watch", &path)?;
            watched = true;
            drop(root);
            match mount::unmount(&path, force) {
                // EINVAL: another process has unmounted it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(Errno::BUSY) => return Err(in_use(users(device))),
                Err(errno) => {
                    return Err(mount::refused(&format!("unmount root {id}"), "umount2", None, errno));
                }
            }
        }
        dirs.remove_mountpoint(id)?;
        let is_dead = match home {
            _ if watched => watch.dead(SHUTDOWN_WAIT).at("watch", &path)?,
            Some(home) => self.is_dead(id, home)?,
            None => true,
        };
        if is_dead {
            return Ok(RootRemoval::Gone);
        }
        holders.extend(processes::processes_with_mount(&id.source()).at("read", Path::new("/proc"))?);
        holders.sort_by_key(|pid| pid.as_raw_nonzero());
        holders.dedup();
        Ok(RootRemoval::Detached { holders })
    }
}

/// A root that is being made. Dropping it removes the root again.
struct UnfinishedRoot<'a> {
    dirs: &'a RootDirs,
    id: &'a RootId,
    /// `None` once the root is finished.
    home: Option<Home>,
}

impl UnfinishedRoot<'_> {
    fn finish(mut self) {
        if let Some(home) = self.home.take() {
            home.unlock();
        }
    }
}

impl Drop for UnfinishedRoot<'_> {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let removed = self
            .dirs
            .remove_mountpoint(self.id)
            .map_err(RootsError::from)
            .and_then(|()| self.dirs.homes.remove(self.id, home));
        if let Err(error) = removed {
            tracing::warn!("{error}; the next sweep removes it");
        }
    }
}
