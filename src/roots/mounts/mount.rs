//! Makes filesystems with the file-descriptor mount API (fsopen(2)), and private mount namespaces.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::InodeWidth;
use super::plan::{self, MountOption};
use crate::roots::RootsError;

/// Longest kernel message that is read, in bytes. A message is one or two lines long.
const LOG_MAX: usize = 512;

/// Moves the calling thread into a new mount namespace.
///
/// Mounts made in it are invisible on the host, and disappear with the last process in it. Mounts and unmounts of the host
/// still propagate into it.
///
/// # Errors
///
/// unshare(2) or mount(2) fails: a privilege is missing, or memory is short.
pub fn enter_private_namespace() -> Result<(), RootsError> {
    let failed = |step| move |errno| refused("enter a private mount namespace", step, None, errno);
    // SAFETY: A new mount namespace changes only how paths resolve, and descriptors stay open. No memory or code depends on
    // that.
    #[expect(unsafe_code, reason = "unshare(2) with CLONE_NEWNS")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("unshare"))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(failed("mount propagation"))
}

/// Makes a detached overlay of `lowers`, topmost first.
pub(super) fn detached_overlay(
    source: &str,
    lowers: &[BorrowedFd<'_>],
    writable: Option<BorrowedFd<'_>>,
    inodes: InodeWidth,
) -> Result<OwnedFd, RootsError> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if writable.is_none() {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let _dropped = DroppedCapability::for_overlay();
    make("overlay", source, &plan::overlay(source, lowers, writable, inodes), attributes)
}

/// Makes a detached tmpfs with room for an upper of at most `limit` bytes, if there is one, and for the bytes and inodes of a
/// skeleton.
pub(super) fn tmpfs(source: &str, limit: Option<u64>, skeleton: (u64, u64)) -> Result<OwnedFd, RootsError> {
    make("tmpfs", source, &plan::tmpfs(source, limit, skeleton), MountAttrFlags::empty())
}

/// Makes a detached EROFS of a tree image whose devices are files, in the order of [`crate::erofs::TreeImage::devices`].
///
/// The kernel needs file-backed mounts (Linux 6.12, `CONFIG_EROFS_FS_BACKED_BY_FILE`). Where it has `directio` (Linux 6.15), the
/// devices are read past their page cache.
///
/// # Errors
/// The kernel has no such EROFS, or refuses the image.
pub fn mount_tree_image(
    name: &str,
    image: BorrowedFd<'_>,
    devices: &[BorrowedFd<'_>],
) -> Result<OwnedFd, RootsError> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    match make("erofs", name, &plan::erofs(image, devices, true), attributes) {
        Err(RootsError::Mount { step: "directio", .. }) => {
            make("erofs", name, &plan::erofs(image, devices, false), attributes)
        }
        result => result,
    }
}

/// Returns whether an overlay uses the upper in `home`, in any namespace, attached or not.
///
/// Probes with a second overlay with `index=on`, which the kernel refuses exactly in this case (fs/overlayfs/super.c,
/// `ovl_report_in_use`). The caller must hold the lock of the home, so that no other process mounts or probes the overlay at
/// the same time.
pub(crate) fn is_upper_in_use(home: BorrowedFd<'_>) -> Result<bool, RootsError> {
    let failed = |step| move |errno| refused("check whether an overlay is in use", step, None, errno);
    let context = open("overlay", failed("fsopen"))?;
    match configure(&context, &plan::probe(home, home)) {
        // A part of the home is already removed.
        Err((_, Errno::NOENT)) => return Ok(false),
        result => result.map_err(|(key, errno)| failed(key)(errno))?,
    }
    match rustix::mount::fsconfig_create(&context) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::PERM) => Err(failed("fsconfig")(Errno::PERM)),
        // On success, closing the context removes the overlay. Other errors are expected, since a used upper refers to other
        // lower layers; the kernel checks for use first.
        Ok(()) | Err(_) => Ok(false),
    }
}

/// Attaches a new filesystem at a directory.
pub(crate) fn attach(tree: &OwnedFd, source: &str, path: &Path) -> Result<(), RootsError> {
    rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| refused(&format!("mount {source} at {}", path.display()), "move_mount", None, errno))
}

/// Unmounts the topmost mount at a path; lazily with `detach`.
pub(crate) fn unmount(path: &Path, detach: bool) -> Result<(), Errno> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)
}

/// Returns whether the kernel would refuse to unmount the topmost mount at a path because it is in use. Does not unmount it.
///
/// With `MNT_EXPIRE`, umount2(2) marks a mount that is not in use, and unmounts it only at a second call without an access in between.
/// The caller must hold a lock against other such calls, and must not have the mount open.
pub(crate) fn is_busy(path: &Path) -> Result<bool, Errno> {
    // Accesses that remove the mark, also one that a killed process has left.
    let access = || rustix::fs::lstat(path).map(drop);
    access()?;
    let result = rustix::mount::unmount(path, UnmountFlags::EXPIRE | UnmountFlags::NOFOLLOW);
    access()?;
    match result {
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(errno) => Err(errno),
        Ok(()) => Err(Errno::INVAL),
    }
}

pub(super) fn make(
    kind: &'static str,
    source: &str,
    options: &[MountOption],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, RootsError> {
    let action = format!("mount {kind} {source}");
    let context = open(kind, |errno| refused(&action, "fsopen", None, errno))?;
    configure(&context, options).map_err(|(key, errno)| refused(&action, key, read_log(&context), errno))?;
    rustix::mount::fsconfig_create(&context)
        .map_err(|errno| refused(&action, "fsconfig", read_log(&context), errno))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| refused(&action, "fsmount", read_log(&context), errno))
}

pub(super) fn open(kind: &'static str, failed: impl Fn(Errno) -> RootsError) -> Result<OwnedFd, RootsError> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => RootsError::NoFilesystem(kind, errno.into()),
        _ => failed(errno),
    })
}

/// Sets the options. On failure, returns the key of the failed option.
fn configure(context: &OwnedFd, options: &[MountOption]) -> Result<(), (&'static str, Errno)> {
    for option in options {
        match option {
            MountOption::Value(key, value) => {
                rustix::mount::fsconfig_set_string(context, *key, value).map_err(|errno| (*key, errno))?;
            }
            MountOption::Flag(key) => {
                rustix::mount::fsconfig_set_flag(context, *key).map_err(|errno| (*key, errno))?;
            }
        }
    }
    Ok(())
}

/// Reads the kernel's last message about a filesystem context.
fn read_log(context: &OwnedFd) -> Option<String> {
    let mut last = None;
    let mut buffer = [0; LOG_MAX];
    // Each read returns one message: a letter for the severity, a space, and the text (fsopen(2)).
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned();
        last = Some(message.split_once(' ').map_or(message.clone(), |(_, text)| text.to_owned()));
    }
    last
}

/// An error of the mount API. `action` completes the sentence "cannot ...".
pub(crate) fn refused(action: &str, step: &'static str, log: Option<String>, errno: Errno) -> RootsError {
    let (action, source): (_, io::Error) = (action.to_owned(), errno.into());
    match errno {
        Errno::PERM | Errno::ACCESS => RootsError::Permission { action, source },
        _ => RootsError::Mount { action, step, log, source },
    }
}

/// Removes a capability from the calling thread, and restores it on drop. Holds the previous capabilities if they changed.
pub(super) struct DroppedCapability(Option<CapabilitySets>);

impl DroppedCapability {
    /// Removes CAP_SYS_RESOURCE.
    ///
    /// An overlay writes to its upper with the credentials of the process that made it. With this capability, programs could
    /// exceed quotas and use the blocks that the disk reserves for root.
    pub(super) fn for_overlay() -> Self {
        Self::new(CapabilitySet::SYS_RESOURCE)
    }

    fn new(capability: CapabilitySet) -> Self {
        let previous = rustix::thread::capabilities(None)
            .ok()
            .filter(|previous| previous.effective.contains(capability));
        let reduced = |previous: CapabilitySets| CapabilitySets {
            effective: previous.effective - capability,
            ..previous
        };
        Self(previous.filter(|previous| rustix::thread::set_capabilities(None, reduced(*previous)).is_ok()))
    }
}

impl Drop for DroppedCapability {
    fn drop(&mut self) {
        if let Some(previous) = self.0
            && let Err(errno) = rustix::thread::set_capabilities(None, previous)
        {
            tracing::warn!(error = %errno, "cannot restore the capability CAP_SYS_RESOURCE");
        }
    }
}
