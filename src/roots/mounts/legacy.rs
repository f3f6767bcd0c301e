//! Overlays by mount(2), for Linux before 6.8.
//!
//! There, fsconfig(2) takes all lower layers as one value of at most 255 bytes, which is enough for some 14 descriptor paths.
//! mount(2) takes a page of options. The layers are named by their descriptor numbers alone, relative to `/proc/self/fd`, so
//! that several hundred layers fit.
//!
//! Before Linux 6.15, the kernel also refuses layers in a filesystem that is not attached. So a tmpfs or a tree image is attached at
//! the place of the overlay meanwhile.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::mount::{DroppedCapability, attach, refused, unmount};
use super::{InodeWidth, OPEN_LAYER, plan};
use crate::roots::RootsError;

/// Longest options of mount(2), in bytes: a page without its final zero byte.
const OPTIONS_MAX: usize = 4095;

/// The filesystems below an overlay.
#[derive(Debug)]
pub(super) struct OverlayParts {
    /// The layers, topmost first.
    pub(super) lowers: Vec<OwnedFd>,
    /// The detached filesystems that contain the upper or layers.
    pub(super) unattached: Vec<OwnedFd>,
}

/// An overlay that will be made when it is attached.
#[derive(Debug)]
pub(crate) struct LegacyOverlay {
    /// Topmost first.
    lowers: Vec<OwnedFd>,
    /// The directory with the subdirectories `upper` and `work`; `None` for a read-only overlay.
    writable: Option<OwnedFd>,
    /// The detached filesystems that contain some of the above.
    unattached: Vec<OwnedFd>,
    inodes: InodeWidth,
}

impl LegacyOverlay {
    pub(super) fn new(parts: OverlayParts, writable: Option<OwnedFd>, inodes: InodeWidth) -> Self {
        Self { lowers: parts.lowers, writable, unattached: parts.unattached, inodes }
    }

    /// Mounts the overlay at `path` and returns its root directory. The path must be absolute.
    pub(super) fn attach(self, source: &str, path: &Path) -> Result<OwnedFd, RootsError> {
        let action = format!("mount overlay {source} at {}", path.display());
        let failed = |step, errno| refused(&action, step, None, errno);
        if self.unattached.is_empty() {
            self.mount(source, path).map_err(|(step, errno)| failed(step, errno))?;
            return rustix::fs::open(path, OPEN_LAYER | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|errno| failed("open", errno));
        }
        let mut attached = 0;
        let mut attach_all = || -> Result<(), RootsError> {
            for filesystem in &self.unattached {
                attach(filesystem, source, path)?;
                attached += 1;
            }
            Ok(())
        };
        let overlay = attach_all().map(|()| self.mount(source, path).and_then(|()| take(path)));
        for _ in 0..attached {
            unmount(path, true).map_err(|errno| failed("umount2", errno))?;
        }
        let overlay = overlay?;
        let overlay = overlay.map_err(|(step, errno)| failed(step, errno))?;
        attach(&overlay, source, path)?;
        Ok(overlay)
    }

    /// Mounts the overlay. On failure, returns the step that failed.
    fn mount(&self, source: &str, path: &Path) -> Result<(), (&'static str, Errno)> {
        let lowers: Vec<BorrowedFd<'_>> = self.lowers.iter().map(OwnedFd::as_fd).collect();
        let writable = self.writable.as_ref().map(OwnedFd::as_fd);
        let options = plan::legacy_overlay(&lowers, writable, self.inodes);
        if options.len() > OPTIONS_MAX {
            return Err(("options", Errno::TOOBIG));
        }
        let options = CString::new(options).map_err(|_| ("options", Errno::INVAL))?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        if writable.is_none() {
            flags |= MountFlags::RDONLY;
        }
        let mount = || {
            let _dropped = DroppedCapability::for_overlay();
            rustix::mount::mount(source, path, "overlay", flags, options.as_c_str())
        };
        in_directory_of_descriptors(mount).map_err(|errno| ("mount", errno))
    }
}

/// Detaches the topmost filesystem at `path` and returns it.
fn take(path: &Path) -> Result<OwnedFd, (&'static str, Errno)> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = rustix::mount::open_tree(CWD, path, flags).map_err(|errno| ("open_tree", errno));
    unmount(path, true).map_err(|errno| ("umount2", errno))?;
    copy
}

/// Calls `action` with `/proc/self/fd` as the working directory of this thread alone.
fn in_directory_of_descriptors<T>(action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    // SAFETY: the thread stops sharing its working directory, root and umask with other threads. No memory or code depends on
    // them.
    #[expect(unsafe_code, reason = "unshare(2) with CLONE_FS")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let previous = rustix::fs::open(".", flags, Mode::empty())?;
    rustix::process::chdir("/proc/self/fd")?;
    let result = action();
    rustix::process::fchdir(previous)?;
    result
}
