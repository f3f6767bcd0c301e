//! The skeleton: real directories for what a sandbox mounts upon, whatever an image has in their place.
//!
//! With `/box` a symlink in the image, isolate would bind the box somewhere else, and the program would run without it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::{RootId, home, mount, remove};

/// The directories, with their modes.
const DIRECTORIES: [(&str, u32); 5] =
    [("box", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)];
/// The shared one's directory in the run directory. Nobody else gets to it: what is in `tmp` would be in every root.
const SHARED: &str = "skeleton";
const SHARED_MODE: Mode = Mode::RWXU;
/// The layer itself, in either place.
const LAYER: &str = "layer";
/// Room for the directories.
const TMPFS_BYTES: u64 = 64 << 10;

const AS_LAYER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the skeleton that all roots with an upper share, made where it is missing.
pub(super) fn shared(run_dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let layer = format!("{SHARED}/{LAYER}");
    match rustix::fs::openat(run_dir, &layer, AS_LAYER, Mode::empty()) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    // Made elsewhere and moved: what has the name is complete.
    let building = format!(".{SHARED}-{}", RootId::random()?);
    rustix::fs::mkdirat(run_dir, &building, SHARED_MODE)?;
    let made = build(run_dir, &building, None).and_then(|_layer| {
        match rustix::fs::renameat_with(run_dir, &building, run_dir, SHARED, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    });
    if !matches!(made, Ok(true)) {
        remove::remove_tree(run_dir, building.as_ref())?;
    }
    made?;
    Ok(rustix::fs::openat(run_dir, &layer, AS_LAYER, Mode::empty())?)
}

/// Makes a skeleton in memory for one root without an upper, whose own directory then has the skeleton's attributes: those
/// of `image`. Returns the filesystem, which is attached nowhere, and the layer in it.
pub(super) fn own(source: &str, image: &Stat) -> Result<(OwnedFd, OwnedFd), super::OverlayError> {
    let tree = mount::tmpfs(source, TMPFS_BYTES)?;
    let layer = build(tree.as_fd(), ".", Some(image))
        .map_err(|error| super::OverlayError::io("make", SHARED.as_ref(), error))?;
    Ok((tree, layer))
}

fn build(directory: BorrowedFd<'_>, name: &str, like: Option<&Stat>) -> io::Result<OwnedFd> {
    let path = format!("{name}/{LAYER}");
    rustix::fs::mkdirat(directory, &path, Mode::RWXU)?;
    for (name, mode) in DIRECTORIES {
        let path = format!("{path}/{name}");
        rustix::fs::mkdirat(directory, &path, Mode::RWXU)?;
        rustix::fs::chmodat(directory, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    match like {
        Some(image) => home::dress(directory, &path, image)?,
        None => rustix::fs::chmodat(directory, &path, Mode::from_raw_mode(0o755), AtFlags::empty())?,
    }
    Ok(rustix::fs::openat(directory, &path, AS_LAYER, Mode::empty())?)
}
