//! Overlays that are attached later: made by fsopen(2), or by mount(2) on kernels whose fsopen(2) does not suffice.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::InodeWidth;
use super::legacy::{LegacyOverlay, OverlayParts};
use super::mount::{attach, detached_overlay};
use crate::os::AtPath as _;
use crate::roots::RootsError;

/// How overlays are mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OverlayCalls {
    /// By fsopen(2) if the kernel takes lower layers one by one (Linux 6.8), otherwise by mount(2).
    #[default]
    Newest,
    /// By mount(2), for tests.
    Legacy,
}

/// An overlay that is not attached yet.
#[derive(Debug)]
pub(crate) enum UnattachedOverlay {
    /// Made by fsopen(2).
    Detached(OwnedFd),
    /// To be made by mount(2).
    Legacy(LegacyOverlay),
}

impl UnattachedOverlay {
    /// Mounts the overlay at `path`, which must be absolute. Returns its root directory.
    pub(crate) fn attach(self, source: &str, path: &Path) -> Result<OwnedFd, RootsError> {
        match self {
            Self::Detached(overlay) => attach(&overlay, source, path).map(|()| overlay),
            Self::Legacy(overlay) => overlay.attach(source, path),
        }
    }
}

/// Prepares an overlay. `writable` is a directory with the subdirectories `upper` and `work`.
pub(super) fn overlay(
    source: &str,
    parts: OverlayParts,
    writable: Option<BorrowedFd<'_>>,
    inodes: InodeWidth,
    calls: OverlayCalls,
) -> Result<UnattachedOverlay, RootsError> {
    if calls == OverlayCalls::Newest {
        let lowers: Vec<_> = parts.lowers.iter().map(OwnedFd::as_fd).collect();
        match detached_overlay(source, &lowers, writable, inodes) {
            // Linux before 6.8 does not know `lowerdir+`, and Linux before 6.15 refuses filesystems that are not attached.
            Err(RootsError::Mount { step: "lowerdir+", .. }) => {}
            Err(RootsError::Mount { step: "fsconfig", .. }) if !parts.unattached.is_empty() => {}
            result => return result.map(UnattachedOverlay::Detached),
        }
    }
    let writable = writable.map(|directory| directory.try_clone_to_owned()).transpose();
    let writable = writable.at("open", Path::new("the upper of the root"))?;
    Ok(UnattachedOverlay::Legacy(LegacyOverlay::new(parts, writable, inodes)))
}
