//! The skeleton: real directories for the mounts of a sandbox, above the image.
//!
//! If `/box` were a symlink of the image, isolate would bind the box to the link's target, and the program would run without
//! its box. So the skeleton is above the image in the overlay.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::{OPEN_LAYER, mount, upper_dirs};
use crate::os::AtPath as _;
use crate::roots::RootsError;
use crate::roots::trusted::open_trusted;

/// The directories with their modes.
const DIRECTORIES: [(&str, u32); 5] =
    [("box", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)];
/// The directory of the shared skeleton in the run directory. It has mode 0700: a file in its `tmp` would appear in every
/// root.
const SHARED: &str = "skeleton";
/// The directory that is the overlay's layer.
const LAYER: &str = "layer";
/// Exists when the shared skeleton is complete. A process that does not find it makes all directories again, so a process may
/// die at any point, and several may work concurrently.
const COMPLETE: &str = "complete";
/// 1970-01-01, as for all directories that no layer has an entry for.
const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
const TIMES: Timestamps = Timestamps { last_access: EPOCH, last_modification: EPOCH };
/// Size of the tmpfs for a skeleton of one root, in bytes.
const TMPFS_BYTES: u64 = 64 << 10;

/// Opens the skeleton that all roots with an upper share; makes it if it does not exist.
pub(super) fn open_shared(run: BorrowedFd<'_>, run_dir: &Path) -> Result<OwnedFd, RootsError> {
    let path = run_dir.join(SHARED);
    make_directory(run, SHARED).at("make directory", &path)?;
    let skeleton = open_trusted(run, SHARED, &path)?;
    // Not access(2): it checks for the real user ID, which in a set-uid program is the caller's.
    match rustix::fs::statat(&skeleton, COMPLETE, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => build(skeleton.as_fd(), ".")
            .and_then(|()| make_directory(skeleton.as_fd(), COMPLETE))
            .at("make the skeleton in", &path)?,
        result => result.map(drop).at("stat", &path.join(COMPLETE))?,
    }
    open_trusted(skeleton.as_fd(), LAYER, &path.join(LAYER))
}

/// Makes the skeleton of one root without an upper, in memory. Returns the tmpfs, which is not attached, and the layer.
///
/// The topmost layer determines the attributes of the root directory, so the skeleton receives the attributes of `image`. The
/// caller must keep the tmpfs open until the overlay is made: closing it unmounts the layer.
pub(super) fn make_own(source: &str, image: &Stat) -> Result<(OwnedFd, OwnedFd), RootsError> {
    let tmpfs = mount::tmpfs(source, TMPFS_BYTES)?;
    let layer = build(tmpfs.as_fd(), ".")
        .and_then(|()| upper_dirs::copy_attributes(tmpfs.as_fd(), LAYER, image))
        .and_then(|()| open(tmpfs.as_fd(), "."));
    let layer = layer.at("make the skeleton in", Path::new("the tmpfs of the root"))?;
    Ok((tmpfs, layer))
}

fn open(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, format!("{name}/{LAYER}"), OPEN_LAYER, Mode::empty())
}

fn build(directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let layer = format!("{name}/{LAYER}");
    make_directory(directory, &layer)?;
    for (name, mode) in DIRECTORIES {
        let path = format!("{layer}/{name}");
        make_directory(directory, &path)?;
        rustix::fs::chmodat(directory, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        // Set a fixed time, so that all roots of an image are identical.
        rustix::fs::utimensat(directory, &path, &TIMES, AtFlags::empty())?;
    }
    rustix::fs::chmodat(directory, &layer, Mode::from_raw_mode(0o755), AtFlags::empty())
}

fn make_directory(directory: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(directory, path, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}
