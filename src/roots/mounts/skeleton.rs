//! The skeleton: real directories for the mounts of a sandbox, above the image, and files of `/etc`.
//!
//! If `/box` were a symlink of the image, isolate would bind the box to the link's target, and the program would run without
//! its box. So the skeleton is above the image in the overlay. Each root has its own, on the filesystem of its upper or in
//! memory: it depends on the image and the user, and no other user can change it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::etc::EtcLayer;
use super::{OPEN_LAYER, SKELETON, upper_dirs};

/// The directory that is the overlay's layer.
const LAYER: &str = "skeleton";
/// 1970-01-01, as for all directories that no layer has an entry for.
const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
const TIMES: Timestamps = Timestamps { last_access: EPOCH, last_modification: EPOCH };
/// Makes the skeleton, with the files of `etc`, in a directory, and returns the layer.
///
/// In a root without an upper, the topmost layer determines the attributes of the root directory. So the skeleton receives
/// the attributes of `image`.
pub(super) fn make(
    directory: BorrowedFd<'_>,
    image: &Stat,
    etc: Option<&EtcLayer>,
) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(directory, LAYER, Mode::RWXU)?;
    let layer = rustix::fs::openat(directory, LAYER, OPEN_LAYER, Mode::empty())?;
    make_directories(layer.as_fd())?;
    etc.map_or(Ok(()), |etc| etc.write(layer.as_fd()))?;
    upper_dirs::copy_attributes(directory, LAYER, image)?;
    Ok(layer)
}

/// Returns the size, in bytes, and the number of inodes that the skeleton needs at most on a tmpfs.
pub(super) fn size(etc: Option<&EtcLayer>) -> (u64, u64) {
    let (bytes, inodes) = etc.map_or((0, 0), EtcLayer::size);
    (bytes, inodes + SKELETON.len() as u64 + 1)
}

fn make_directories(layer: BorrowedFd<'_>) -> Result<(), Errno> {
    for (name, mode) in SKELETON {
        rustix::fs::mkdirat(layer, name, Mode::RWXU)?;
        // mkdirat(2) applies the umask.
        rustix::fs::chmodat(layer, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        // Set a fixed time, so that all roots of an image are identical.
        rustix::fs::utimensat(layer, name, &TIMES, AtFlags::empty())?;
    }
    Ok(())
}
