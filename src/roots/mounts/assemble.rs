//! Assembles the overlay of a root.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::legacy::OverlayParts;
use super::unattached::{self, OverlayCalls, UnattachedOverlay};
use super::{InodeWidth, Lower, Upper, mount, reopen, skeleton, upper_dirs};
use crate::os::AtPath as _;
use crate::roots::RootsError;

/// Makes or prepares the overlay of a root without attaching it.
///
/// The run directory and an empty home are each given with their paths. An upper on disk and a copy of the image are made in the home.
pub(crate) fn make_overlay(
    source: &str,
    (run, run_dir): (BorrowedFd<'_>, &Path),
    home: Option<(BorrowedFd<'_>, &Path)>,
    upper: &Upper,
    image: &Lower,
    (inodes, calls): (InodeWidth, OverlayCalls),
) -> Result<UnattachedOverlay, RootsError> {
    let copy = match home {
        Some((home, path)) => image.copy_into(home, path)?,
        None => None,
    };
    let image = copy.as_ref().unwrap_or(image);
    let image_layers = image.reopen()?;
    // The skeleton must stay above the image even where it would hide nothing: with a layer below the image's FUSE, lookups of
    // files that were copied up fail with ESTALE (seen on Linux 6.18).
    let mount = |skeleton: OwnedFd, tmpfs, writable| {
        let parts = OverlayParts { lowers: std::iter::once(skeleton).chain(image_layers).collect(), tmpfs };
        unattached::overlay(source, parts, writable, inodes, calls)
    };
    let shared_skeleton = || {
        // Opened again by its path, since the descriptor may belong to another mount namespace.
        let run = reopen(run_dir, run)?;
        skeleton::open_shared(run.as_fd(), run_dir)
    };
    match (upper, home) {
        (Upper::Dir { .. }, Some((home, path))) => {
            upper_dirs::make(home, image.stat()).at("make the upper in", path)?;
            mount(shared_skeleton()?, None, Some(home))
        }
        (Upper::Dir { .. }, None) => unreachable!("the caller makes a home for an upper on disk"),
        (Upper::Tmpfs { size }, _) => {
            let tmpfs = mount::tmpfs(source, *size)?;
            upper_dirs::make(tmpfs.as_fd(), image.stat())
                .at("make the upper in", Path::new("the tmpfs of the root"))?;
            let upper = tmpfs.try_clone().at("open", Path::new("the tmpfs of the root"))?;
            mount(shared_skeleton()?, Some(tmpfs), Some(upper.as_fd()))
        }
        (Upper::None, _) => {
            let (tmpfs, skeleton) = skeleton::make_own(source, image.stat())?;
            mount(skeleton, Some(tmpfs), None)
        }
    }
}
