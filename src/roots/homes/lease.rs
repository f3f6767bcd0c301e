//! Leased roots: each belongs to one sandbox, in a private mount namespace, for as long as the sandbox runs.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::home::Home;
use super::{RootDirs, Roots};
use crate::os::PathError;
use crate::roots::mounts::{RootOverlay, RootParts, make_overlay, mount, reopen};
use crate::roots::{Injection, InodeWidth, Lower, OverlayCalls, PrivateRoot, RootId, RootsError, Upper};

/// The right to mount one root, and the ownership of its files.
///
/// The holder must outlive the processes in the root, and then call [`RootLease::release`]. If the holder dies, the next sweep
/// removes the files.
///
/// A forked process has the lease too, as long as it keeps [`RootLease::descriptors`] open. Exactly one of the processes may
/// release or drop the lease; the others must end by exec or `_exit`.
#[derive(Debug)]
pub struct RootLease {
    dirs: Arc<RootDirs>,
    id: RootId,
    upper: Upper,
    inodes: InodeWidth,
    calls: OverlayCalls,
    /// `None` for a root without files on disk.
    home: Option<Home>,
}

impl RootLease {
    /// Takes a lease of a new root. If `needs_copy`, the image is copied into its home.
    pub(super) fn new(roots: &Roots, upper: &Upper, needs_copy: bool) -> Result<Self, RootsError> {
        let dirs = &roots.dirs;
        let (mut id, mut home) = (random_id()?, None);
        if let Upper::Dir { .. } = upper {
            dirs.homes.check_filesystem()?;
        }
        if needs_copy || matches!(upper, Upper::Dir { .. }) {
            home = loop {
                match dirs.homes.make(&id)? {
                    Some(home) => break Some(home),
                    None => id = random_id()?,
                }
            };
        }
        let lease = Self {
            dirs: Arc::clone(dirs),
            id,
            upper: *upper,
            inodes: roots.inodes,
            calls: roots.calls,
            home,
        };
        if let (Upper::Dir { limit: Some(bytes) }, Some(home)) = (upper, &lease.home) {
            dirs.homes.limit(home, *bytes)?;
        }
        Ok(lease)
    }

    /// The name of the root.
    #[must_use]
    pub fn id(&self) -> &RootId {
        &self.id
    }

    /// The source of the root's overlay in the mount table.
    #[must_use]
    pub fn source(&self) -> String {
        self.id.source()
    }

    /// The descriptor that holds the lock of the lease. The lock is free when all copies of it are closed. `None` for a root
    /// without files on disk.
    #[must_use]
    pub fn lock_fd(&self) -> Option<BorrowedFd<'_>> {
        self.home.as_ref().map(Home::as_fd)
    }

    /// The descriptors that must stay open in a forked process that will release the lease.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.lock_fd().into_iter().chain(self.dirs.descriptors()).collect()
    }

    /// Makes the root and mounts it at `<run-dir>/root`.
    ///
    /// The caller must be in a private mount namespace ([`enter_private_namespace`](crate::roots::enter_private_namespace)),
    /// and must call this only once.
    ///
    /// # Errors
    ///
    /// The kernel refuses a mount, or the disk is full. Nothing stays mounted.
    pub fn mount(&self, image: &Lower, injection: Option<&Injection>) -> Result<PrivateRoot, RootsError> {
        let home_path = self.dirs.homes.path_of(&self.id);
        // Open the home again by its path, since the descriptor belongs to another mount namespace.
        let home = match &self.home {
            Some(home) => Some(reopen(&home_path, home.as_fd())?),
            None => None,
        };
        let home = home.as_ref().map(|home: &OwnedFd| (home.as_fd(), home_path.as_path()));
        let source = self.source();
        let RootOverlay { overlay, .. } = make_overlay(&RootParts {
            source: &source,
            home,
            upper: &self.upper,
            image,
            inodes: self.inodes,
            calls: self.calls,
            injection,
        })?;
        let root = PrivateRoot::attach(overlay, source, self.dirs.private_root())?;
        image.keep_for(root.fd());
        Ok(root)
    }

    /// Returns whether the kernel still uses the root's overlay. Returns false for a root without files on disk, where this is
    /// unknown.
    ///
    /// # Errors
    ///
    /// The kernel refuses the probe.
    pub fn is_alive(&self) -> Result<bool, RootsError> {
        self.home.as_ref().map_or(Ok(false), |home| mount::is_upper_in_use(home.as_fd()))
    }

    /// Removes the root's files.
    ///
    /// The overlay must be dead: its mount namespace is gone, or a [`RootWatch`](crate::roots::RootWatch) reported its death.
    ///
    /// # Errors
    ///
    /// A file cannot be removed. The next sweep tries again.
    pub fn release(mut self) -> Result<(), RootsError> {
        match self.home.take() {
            Some(home) => self.dirs.homes.remove(&self.id, home),
            None => Ok(()),
        }
    }

    fn remove_unless_alive(&self, home: Home) -> Result<(), RootsError> {
        if mount::is_upper_in_use(home.as_fd())? {
            return Err(RootsError::Alive(self.id.clone()));
        }
        self.dirs.homes.remove(&self.id, home)
    }
}

impl Drop for RootLease {
    /// Releases the lease, after asking the kernel whether the overlay is dead.
    fn drop(&mut self) {
        if let Some(home) = self.home.take()
            && let Err(error) = self.remove_unless_alive(home)
        {
            tracing::warn!("{error}; a later sweep removes its files");
        }
    }
}

pub(super) fn random_id() -> Result<RootId, RootsError> {
    Ok(RootId::random().map_err(|error| PathError::new("read", Path::new("random numbers"), error))?)
}
