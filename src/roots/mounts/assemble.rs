//! Assembles the overlay of a root.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::etc::EtcLayer;
use super::legacy::OverlayParts;
use super::unattached::{self, OverlayCalls, UnattachedOverlay};
use super::{Injection, InodeWidth, Lower, Upper, mount, skeleton, upper_dirs};
use crate::image::Digest;
use crate::os::AtPath as _;
use crate::roots::RootsError;

/// The parts of a root.
#[derive(Debug)]
pub(crate) struct RootParts<'a> {
    /// The source of the overlay in the mount table.
    pub(crate) source: &'a str,
    /// An empty home and its path. An upper on disk and a copy of the image are made in it.
    pub(crate) home: Option<(BorrowedFd<'a>, &'a Path)>,
    pub(crate) upper: &'a Upper,
    pub(crate) image: &'a Lower,
    pub(crate) inodes: InodeWidth,
    pub(crate) calls: OverlayCalls,
    /// `None`: nothing in addition to the image.
    pub(crate) injection: Option<&'a Injection>,
}

/// The overlay of a root, and what it has in addition to its image.
#[derive(Debug)]
pub(crate) struct RootOverlay {
    pub(crate) overlay: UnattachedOverlay,
    /// The digests of the injected files by their paths, which are relative.
    pub(crate) injected: BTreeMap<String, Digest>,
}

/// Makes or prepares the overlay of a root without attaching it.
pub(crate) fn make_overlay(parts: &RootParts<'_>) -> Result<RootOverlay, RootsError> {
    let RootParts { source, home, upper, image, inodes, calls, injection } = *parts;
    let copy = match home {
        Some((home, path)) => image.copy_into(home, path)?,
        None => None,
    };
    let image = copy.as_ref().unwrap_or(image);
    let image_layers = image.reopen()?;
    let etc = match injection {
        Some(injection) => plan_etc(parts, injection, &image_layers)?,
        None => None,
    };
    let has_upper = *upper != Upper::None;
    let tree = image.unattached()?;
    let prepare = |directory: BorrowedFd<'_>, path: &Path, tmpfs: Option<OwnedFd>| {
        if has_upper {
            upper_dirs::make(directory, image.stat()).at("make the upper in", path)?;
        }
        let skeleton = skeleton::make(directory, image.stat(), etc.as_ref());
        let skeleton = skeleton.at("make the skeleton in", path)?;
        // The skeleton is above the image: it hides what the image has in its place.
        let lowers = std::iter::once(skeleton).chain(image_layers).collect();
        let parts = OverlayParts { lowers, unattached: tmpfs.into_iter().chain(tree).collect() };
        let overlay = unattached::overlay(source, parts, has_upper.then_some(directory), inodes, calls)?;
        Ok(RootOverlay { overlay, injected: etc.as_ref().map(EtcLayer::digests).unwrap_or_default() })
    };
    let limit = match (upper, home) {
        (Upper::Dir { .. }, Some((home, path))) => return prepare(home, path, None),
        (Upper::Dir { .. }, None) => unreachable!("the caller makes a home for an upper on disk"),
        (Upper::Tmpfs { size }, _) => Some(*size),
        (Upper::None, _) => None,
    };
    let tmpfs = mount::tmpfs(source, limit, skeleton::size(etc.as_ref()))?;
    let path = Path::new("the tmpfs of the root");
    let directory = tmpfs.try_clone().at("open", path)?;
    prepare(directory.as_fd(), path, Some(tmpfs))
}

/// Plans the files of `/etc` that the root has in addition to those of the image.
fn plan_etc(
    parts: &RootParts<'_>,
    injection: &Injection,
    image_layers: &[OwnedFd],
) -> Result<Option<EtcLayer>, RootsError> {
    let name = parts.image.resolved_name();
    if let [image] = image_layers {
        return injection.plan(image.as_fd(), name);
    }
    // Only overlayfs knows which file of several layers a path leads to.
    let layers: Vec<_> = image_layers.iter().map(OwnedFd::as_fd).collect();
    match mount::detached_overlay(parts.source, &layers, None, parts.inodes) {
        Ok(image) => injection.plan(image.as_fd(), name),
        // Linux before 6.8.
        Err(RootsError::Mount { step: "lowerdir+", .. }) => {
            tracing::warn!("/etc of image {name} stays as it is: this needs Linux 6.8, or the engine `fuse`");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
