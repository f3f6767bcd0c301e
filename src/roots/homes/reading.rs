//! Named roots that are read: their image, the root as programs see it, and the directories that it consists of.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::home::Home;
use super::record::RootRecord;
use super::{RootDirs, Roots, processes};
use crate::image::Digest;
use crate::os::{AtPath as _, PathError, retry_again};
use crate::roots::mounts::{OPEN_DIRECTORY, OPEN_LAYER, mount};
use crate::roots::{RootId, RootInfo, RootState, RootsError, Upper};

/// A mounted named root.
#[derive(Debug)]
pub struct NamedRoot {
    dirs: Arc<RootDirs>,
    id: RootId,
    image: String,
    upper: Upper,
    injected: BTreeMap<String, Digest>,
    /// The lock of the home. While this process holds it, no other process removes the root.
    home: Option<Home>,
}

/// The open directories of a root. The root is in use while they are open.
#[derive(Debug)]
pub struct RootDirectories {
    /// The root as programs see it.
    pub merged: OwnedFd,
    /// The directory that receives the writes; `None` for an upper in memory, which no other process can open.
    pub upper: Option<OwnedFd>,
}

impl Roots {
    /// Finds a mounted named root, to read it.
    ///
    /// # Errors
    ///
    /// There is no such root, it is not mounted, or the daemon of its image has ended.
    pub fn named(&self, id: &RootId) -> Result<NamedRoot, RootsError> {
        let RootInfo { state, image, upper, .. } = self.describe(id.clone())?;
        match state {
            RootState::Mounted => {}
            RootState::Dead => return Err(RootsError::LostDaemon(id.clone())),
            RootState::Leased => return Err(RootsError::Locked(id.clone())),
            RootState::Detached if self.dirs.homes.ids()?.contains(id) => {
                return Err(RootsError::NotMounted(id.clone()));
            }
            RootState::Detached => return Err(RootsError::Missing(id.clone())),
        }
        let (Some(image), Some(upper)) = (image, upper) else {
            return Err(RootsError::NoRecord(id.clone()));
        };
        let Some(RootRecord { injected, .. }) = RootRecord::read(self.dirs.homes.fd(), id) else {
            return Err(RootsError::NoRecord(id.clone()));
        };
        Ok(NamedRoot { dirs: Arc::clone(&self.dirs), id: id.clone(), image, upper, injected, home: None })
    }

    /// Does the same for a root that no process uses, and keeps other processes from removing it until the result is dropped.
    ///
    /// # Errors
    ///
    /// As [`Roots::named`]; or a process uses the root, or holds its lock for more than 10 s.
    pub fn hold(&self, id: &RootId) -> Result<NamedRoot, RootsError> {
        let mut root = self.named(id)?;
        let Some(home) = self.lock_home(id)? else { return Err(RootsError::NoRecord(id.clone())) };
        root.home = Some(home);
        root.require_unused()?;
        Ok(root)
    }
}

impl NamedRoot {
    /// The image as `NAME@DIGEST`.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The kind of the upper.
    #[must_use]
    pub fn upper(&self) -> Upper {
        self.upper
    }

    /// The digests of the files that the root has in addition to its image, by their paths, which are relative. Empty if an
    /// earlier version of the program made the root.
    #[must_use]
    pub fn injected(&self) -> &BTreeMap<String, Digest> {
        &self.injected
    }

    /// The path of the root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dirs.named_root(&self.id)
    }

    /// Fails if a process other than this one uses the root. This process must not have its directories open.
    ///
    /// # Errors
    ///
    /// A process uses the root, or it is not mounted any more.
    pub fn require_unused(&self) -> Result<(), RootsError> {
        let device =
            || self.dirs.mounted_device(&self.id)?.ok_or_else(|| RootsError::NotMounted(self.id.clone()));
        let by = processes::find_users(&self.id.source(), device()?).unwrap_or_default();
        let path = self.path();
        // `/proc` does not show all uses, for example a descriptor that is being sent over a socket.
        if by.is_empty() && !mount::is_busy(&path).at("check the use of", &path)? {
            return Ok(());
        }
        Err(RootsError::InUse { id: self.id.clone(), by })
    }

    /// Opens the directories.
    ///
    /// # Errors
    ///
    /// One of them is missing.
    pub fn open(&self) -> Result<RootDirectories, RootsError> {
        let path = self.path();
        let merged =
            rustix::fs::open(&path, OPEN_LAYER | OFlags::NOFOLLOW, Mode::empty()).at("open", &path)?;
        let upper = match self.upper {
            Upper::Dir { .. } => Some(self.open_in_home("upper")?),
            Upper::Tmpfs { .. } | Upper::None => None,
        };
        Ok(RootDirectories { merged, upper })
    }

    /// The path of a directory of the home.
    #[must_use]
    pub fn path_in_home(&self, name: &str) -> PathBuf {
        self.dirs.homes.path_of(&self.id).join(name)
    }

    fn open_in_home(&self, name: &str) -> Result<OwnedFd, PathError> {
        let relative = format!("{}/{name}", self.id);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let open =
            || rustix::fs::openat2(self.dirs.homes.fd(), &*relative, OPEN_DIRECTORY, Mode::empty(), resolve);
        retry_again(open).map_err(|errno: Errno| PathError::new("open", self.path_in_home(name), errno))
    }
}

impl Drop for NamedRoot {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.unlock();
        }
    }
}
