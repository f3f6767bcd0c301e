//! A root that is mounted in a private mount namespace.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::unattached::UnattachedOverlay;
use crate::roots::RootsError;

/// A root that is mounted in the private mount namespace of the process that made it.
#[derive(Debug)]
pub struct PrivateRoot {
    path: PathBuf,
    fd: OwnedFd,
    source: String,
}

impl PrivateRoot {
    /// Attaches a new overlay at `path`.
    pub(crate) fn attach(
        overlay: UnattachedOverlay,
        source: String,
        path: PathBuf,
    ) -> Result<Self, RootsError> {
        let fd = overlay.attach(&source, &path)?;
        Ok(Self { path, fd, source })
    }

    /// Returns the mountpoint: the same path in every namespace, without `:` and `,`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory. The root is in use as long as a copy of this descriptor is open.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the root's source in the mount table.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}
