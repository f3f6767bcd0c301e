//! The skeleton: real directories for what a sandbox mounts upon, whatever an image has in their place.
//!
//! With `/box` a symlink in the image, isolate would bind the box somewhere else, and the program would run without it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::home;
use crate::roots::mounts::lower;
use crate::roots::mounts::mount;

/// The directories, with their modes.
const DIRECTORIES: [(&str, u32); 5] =
    [("box", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)];
/// The shared one's directory in the run directory. Nobody else gets to it: what is in `tmp` would be in every root.
const SHARED: &str = "skeleton";
/// The layer itself, in either place.
const LAYER: &str = "layer";
/// There when the shared one is complete. Whoever finds it missing makes all of it again, so that a process may die
/// anywhere in between, and two may do it at once.
const COMPLETE: &str = "complete";
/// 1970-01-01, as of every directory that no layer has an entry for.
const TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
const TIMES: Timestamps = Timestamps { last_access: TIME, last_modification: TIME };
/// Room for the directories.
const TMPFS_BYTES: u64 = 64 << 10;

/// Opens the skeleton that all roots with an upper share, made where it is missing.
pub(crate) fn shared(run_dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let complete = format!("{SHARED}/{COMPLETE}");
    // access(2) would ask for the real user, who in a set-uid program is the caller.
    match rustix::fs::statat(run_dir, &complete, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {
            make(run_dir, SHARED)?;
            build(run_dir, SHARED)?;
            make(run_dir, &complete)?;
        }
        found => found.map(|_| ())?,
    }
    open(run_dir, SHARED)
}

/// Makes a skeleton in memory for one root without an upper, whose own directory has the skeleton's attributes: those of
/// `image`. Returns the filesystem, which is attached nowhere, and the layer in it.
pub(crate) fn own(source: &str, image: &Stat) -> Result<(OwnedFd, OwnedFd), RootsError> {
    let memory = mount::tmpfs(source, TMPFS_BYTES)?;
    let made = build(memory.as_fd(), ".")
        .and_then(|()| home::dress(memory.as_fd(), LAYER, image))
        .and_then(|()| open(memory.as_fd(), "."));
    let layer = made.at("make the skeleton in", "memory".as_ref())?;
    Ok((memory, layer))
}

fn open(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, format!("{name}/{LAYER}"), lower::AS_LAYER, Mode::empty())
}

fn build(directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let layer = format!("{name}/{LAYER}");
    make(directory, &layer)?;
    for (name, mode) in DIRECTORIES {
        let path = format!("{layer}/{name}");
        make(directory, &path)?;
        rustix::fs::chmodat(directory, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        // A fixed time: the roots of an image are alike.
        rustix::fs::utimensat(directory, &path, &TIMES, AtFlags::empty())?;
    }
    rustix::fs::chmodat(directory, &layer, Mode::from_raw_mode(0o755), AtFlags::empty())
}

fn make(directory: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(directory, path, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}
