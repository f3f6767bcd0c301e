//! Tries out what mounts and roots need of the kernel. What is mounted for this disappears with its descriptor.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::legacy::OverlayParts;
use super::mount::{enter_private_namespace, open, refused, tmpfs};
use super::plan::fd_path;
use super::unattached::{OverlayCalls, UnattachedOverlay, overlay};
use super::{InodeWidth, OPEN_DIRECTORY};
use crate::os::AtPath as _;
use crate::roots::RootsError;

/// The source of the filesystems that are mounted.
const SOURCE: &str = "rcx-imagefs-probe";
/// A directory that every host has.
const EXISTING: &str = "/dev";
/// The filesystems that this program uses.
const FILESYSTEMS: [&str; 3] = ["fuse", "overlay", "erofs"];

/// Returns those of fuse, overlay and erofs that the kernel has loaded. It loads others when they are first used, if it has them as
/// modules.
#[must_use]
pub fn loaded_filesystems() -> Vec<&'static str> {
    let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_loaded = |kind: &&str| listed.lines().any(|line| line.split_whitespace().last() == Some(*kind));
    FILESYSTEMS.into_iter().filter(is_loaded).collect()
}

/// Tries to open a filesystem type, such as `fuse`.
///
/// # Errors
/// The kernel lacks it, or the process lacks the privilege.
pub fn try_filesystem(kind: &'static str) -> Result<(), RootsError> {
    open(kind, |errno| refused(&format!("use {kind}"), "fsopen", None, errno)).map(drop)
}

/// Tries to mount an overlay as roots are: two detached lowers, an upper, and inode numbers of this width.
///
/// # Errors
/// The kernel refuses the mount, or the process lacks the privilege.
pub fn try_overlay(inodes: InodeWidth) -> Result<(), RootsError> {
    let scratch = tmpfs(SOURCE, Some(1 << 20), (0, 0))?;
    let make = |parent: BorrowedFd<'_>, name: &str| -> Result<OwnedFd, RootsError> {
        let path = Path::new(name);
        rustix::fs::mkdirat(parent, name, Mode::RWXU).at("make directory", path)?;
        Ok(rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty()).at("open", path)?)
    };
    let [upper_lower, lower] = [make(scratch.as_fd(), "upper-lower")?, make(scratch.as_fd(), "lower")?];
    let home = make(scratch.as_fd(), "home")?;
    make(home.as_fd(), "upper")?;
    make(home.as_fd(), "work")?;
    let parts = OverlayParts { lowers: vec![upper_lower, lower], unattached: vec![scratch] };
    match overlay(SOURCE, parts, Some(home.as_fd()), inodes, OverlayCalls::Newest)? {
        UnattachedOverlay::Detached(_) => Ok(()),
        // Made when it is attached: in a mount namespace that disappears with the thread.
        legacy @ UnattachedOverlay::Legacy(_) => {
            let attach = || {
                enter_private_namespace()?;
                legacy.attach(SOURCE, Path::new(EXISTING)).map(drop)
            };
            std::thread::spawn(attach).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }
    }
}

/// Tries whether EROFS mounts images from files (Linux 6.12). `directory` must be on a disk, not on a tmpfs.
///
/// # Errors
/// The kernel cannot mount such images, or the process lacks the privilege.
pub fn try_erofs_file(directory: &Path) -> Result<(), RootsError> {
    let failed = |step, errno| Err(refused("mount erofs from a file", step, None, errno));
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR).at("make a temporary file in", directory)?;
    rustix::fs::ftruncate(&file, 4096).at("set the length of a temporary file in", directory)?;
    let context = open("erofs", |errno| refused("use erofs", "fsopen", None, errno))?;
    if let Err(errno) = rustix::mount::fsconfig_set_string(&context, "source", fd_path(file.as_fd())) {
        return failed("source", errno);
    }
    match rustix::mount::fsconfig_create(&context) {
        // The file was read, and found to be no image.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => failed("fsconfig", errno),
    }
}
