//! Leased roots: one sandbox's own, in a private mount namespace, for as long as it runs.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::Places;
use crate::roots::homes::home::{self, Home};
use crate::roots::mounts::lower;
use crate::roots::mounts::mount;
use crate::roots::mounts::skeleton;
use crate::roots::{Lower, RootId, Upper};

/// The right to one root, and what it has on disk.
///
/// Its holder outlives what runs in the root, and then calls [`RootLease::release`]. When it dies, the next sweep does that.
/// A process that was forked with it has it too, as long as it keeps [`RootLease::descriptors`] open; exactly one of them may
/// release or drop it, the others end without (exec, `_exit`).
#[derive(Debug)]
pub struct RootLease {
    places: Arc<Places>,
    id: RootId,
    upper: Upper,
    home: Option<Home>,
}

/// A root that is mounted in the private mount namespace of the process that made it.
#[derive(Debug)]
pub struct PrivateRoot {
    path: PathBuf,
    fd: OwnedFd,
    source: String,
}

impl RootLease {
    pub(crate) fn new(places: &Arc<Places>, upper: &Upper, copies: bool) -> Result<Self, RootsError> {
        let random =
            || RootId::random().map_err(|error| RootsError::io("read", "random numbers".as_ref(), error));
        let (mut id, mut home) = (random()?, None);
        if let Upper::Dir { .. } = upper {
            places.homes.check_filesystem()?;
        }
        if copies || matches!(upper, Upper::Dir { .. }) {
            home = loop {
                match places.homes.make(&id)? {
                    Some(home) => break Some(home),
                    None => id = random()?,
                }
            };
        }
        let lease = Self { places: Arc::clone(places), id, upper: *upper, home };
        if let (Upper::Dir { limit: Some(bytes) }, Some(home)) = (upper, &lease.home) {
            places.homes.limit(home, *bytes)?;
        }
        Ok(lease)
    }

    /// The root's name.
    #[must_use]
    pub fn id(&self) -> &RootId {
        &self.id
    }

    /// What the mount table shows as the source of the root's overlay.
    #[must_use]
    pub fn source(&self) -> String {
        self.id.source()
    }

    /// The lock that tells others that the lease is held: it is free when all copies of this descriptor are closed. `None`
    /// for a root that has nothing on disk.
    #[must_use]
    pub fn lock_fd(&self) -> Option<BorrowedFd<'_>> {
        self.home.as_ref().map(Home::as_fd)
    }

    /// What has to stay open in a forked process that is to release the lease.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.lock_fd().into_iter().chain(self.places.descriptors()).collect()
    }

    /// Makes the root and mounts it at `<run-dir>/root`.
    ///
    /// The caller is in a mount namespace of its own ([`enter_private_namespace`](crate::roots::enter_private_namespace)), and
    /// calls this once.
    ///
    /// # Errors
    ///
    /// Each way in which the kernel or the disk refuses. Nothing stays mounted then.
    pub fn mount(&self, image: &Lower) -> Result<PrivateRoot, RootsError> {
        // By path, since the namespace may be another than that of the descriptor.
        let home = match &self.home {
            Some(home) => Some(lower::reopen(&self.places.homes.path_of(&self.id), home.as_fd())?),
            None => None,
        };
        let path = self.places.private_root();
        let fd = make(&self.places, &self.id, &self.upper, home.as_ref().map(OwnedFd::as_fd), image)?;
        mount::attach(&fd, &path)
            .map_err(|errno| mount::refused(&self.source(), "move_mount", None, errno))?;
        Ok(PrivateRoot { path, fd, source: self.source() })
    }

    /// Whether the kernel has the root's overlay still. Of one that has nothing on disk, this is not known: false.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn is_alive(&self) -> Result<bool, RootsError> {
        self.home.as_ref().map_or(Ok(false), |home| mount::is_alive(home.as_fd()))
    }

    /// Removes the root's files. Its overlay is dead: the mount namespace is gone, or a [`RootWatch`](crate::roots::RootWatch) has told so.
    ///
    /// # Errors
    ///
    /// Not everything could be removed; the next sweep tries again.
    pub fn release(mut self) -> Result<(), RootsError> {
        match self.home.take() {
            Some(home) => self.places.homes.remove(&self.id, home),
            None => Ok(()),
        }
    }

    fn remove_unless_alive(&self, home: Home) -> Result<(), RootsError> {
        if mount::is_alive(home.as_fd())? {
            return Err(RootsError::Alive(self.id.clone()));
        }
        self.places.homes.remove(&self.id, home)
    }
}

impl Drop for RootLease {
    /// As [`RootLease::release`], but asks the kernel first whether the overlay is dead.
    fn drop(&mut self) {
        if let Some(home) = self.home.take()
            && let Err(error) = self.remove_unless_alive(home)
        {
            tracing::warn!("{error}; a later sweep removes its files");
        }
    }
}

impl PrivateRoot {
    /// Where it is mounted: the same path in every namespace, free of `:` and `,`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory. While this is open somewhere, the root is in use.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What the mount table shows as its source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Makes a root's overlay, attached nowhere yet. `home` is where an upper on disk is made, and the copy of an
/// image that is copied.
pub(crate) fn make(
    places: &Places,
    id: &RootId,
    upper: &Upper,
    home: Option<BorrowedFd<'_>>,
    image: &Lower,
) -> Result<OwnedFd, RootsError> {
    let source = id.source();
    let copied = match home {
        Some(home) => image.copied(home, &places.homes.path_of(id))?,
        None => None,
    };
    let image = copied.as_ref().unwrap_or(image);
    let images = image.reopen()?;
    let stack = |top: &OwnedFd, writable| {
        let lowers: Vec<_> = std::iter::once(top).chain(&images).map(OwnedFd::as_fd).collect();
        mount::overlay(&source, &lowers, writable)
    };
    let shared = || {
        let run = rustix::fs::open(&places.run_dir, lower::AS_LAYER, rustix::fs::Mode::empty())
            .at("open", &places.run_dir)?;
        skeleton::shared(run.as_fd()).at("make the skeleton in", &places.run_dir)
    };
    match (upper, home) {
        (Upper::Dir { .. }, Some(home)) => {
            home::make_upper(home, image.stat()).at("make the upper in", &places.homes.path_of(id))?;
            stack(&shared()?, Some(home))
        }
        (Upper::Dir { .. }, None) => unreachable!("a root with an upper on disk has a home"),
        (Upper::Tmpfs { size }, _) => {
            let memory = mount::tmpfs(&source, *size)?;
            home::make_upper(memory.as_fd(), image.stat()).at("make the upper in", "memory".as_ref())?;
            stack(&shared()?, Some(memory.as_fd()))
        }
        (Upper::None, _) => {
            let (_memory, top) = skeleton::own(&source, image.stat())?;
            stack(&top, None)
        }
    }
}
