//! Mounts and unmounts the filesystem.
//!
//! This module uses the kernel's descriptor-based mount API itself. fuser's own mount object can drop a mount that is still
//! attached, and cannot unmount lazily. The `/dev/fuse` descriptor and the mount are separate values, so that a session can
//! run on a descriptor that another process has mounted.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use tracing::{info, warn};

use super::SessionError;
use crate::os::PathError;

/// The mount's source and, after `fuse.`, its type in `/proc/self/mountinfo`.
pub const MOUNT_NAME: &str = "rcx-imagefs";

const DEVICE: &str = "/dev/fuse";

/// A new mount that is not served yet. The caller must serve `connection`, and keep `mount` while serving it.
#[derive(Debug)]
pub struct UnservedMount {
    /// The open `/dev/fuse` that delivers the kernel's requests. The connection ends when its last copy is closed.
    pub connection: OwnedFd,
    /// The mount.
    pub mount: FuseMount,
}

/// A mount of this program. Unmounted on drop.
#[derive(Debug)]
pub struct FuseMount {
    path: PathBuf,
    id: u64,
    device: (u32, u32),
    unmounted: bool,
}

/// How an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountResult {
    /// The mount and its connection are gone.
    Complete,
    /// The mount is detached from the directory tree. Programs that still use it keep the connection open.
    Detached,
    /// Another process has already unmounted it.
    AlreadyGone,
}

/// Mounts at `path`. The caller must then serve the connection.
///
/// Detaches the mount of a dead daemon first. The directory must be empty unless `allow_nonempty`.
///
/// # Errors
///
/// The mountpoint is unusable, or FUSE is unavailable or not permitted.
pub fn mount(path: &Path, allow_nonempty: bool) -> Result<UnservedMount, SessionError> {
    let path = prepare_mountpoint(path, allow_nonempty)?;
    let connection = open_device(&path)?;
    let tree = make_mount(&path, &connection)?;
    let status = rustix::fs::statx(&tree, "", EXAMINE | AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|errno| mount_error(&path, "statx", errno))?;
    rustix::mount::move_mount(&tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| mount_error(&path, "move_mount", errno))?;
    // While this descriptor is open, the mount is in use: an unmount would not end the connection.
    drop(tree);
    let device = (status.stx_dev_major, status.stx_dev_minor);
    Ok(UnservedMount {
        connection,
        mount: FuseMount { path, id: status.stx_mnt_id, device, unmounted: false },
    })
}

impl FuseMount {
    /// The mountpoint, absolute and without symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how far the kernel reads ahead in files of this mount. This also limits the size of a READ request.
    ///
    /// # Errors
    ///
    /// The kernel's setting in `/sys` cannot be written.
    pub fn set_readahead(&self, kib: u32) -> io::Result<()> {
        let (major, minor) = self.device;
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Unmounts, lazily if programs still use the mount.
    ///
    /// # Errors
    ///
    /// The kernel refused for a reason other than a mount in use.
    pub fn unmount(mut self) -> Result<UnmountResult, SessionError> {
        self.try_unmount()
            .map_err(|errno| SessionError::Unmount { path: self.path.clone(), source: errno.into() })
    }

    fn try_unmount(&mut self) -> Result<UnmountResult, Errno> {
        if std::mem::replace(&mut self.unmounted, true) {
            return Ok(UnmountResult::AlreadyGone);
        }
        // Another process may have unmounted it and mounted another filesystem there.
        match examine(&self.path) {
            Ok(examined) if examined.mount != self.id => return Ok(UnmountResult::AlreadyGone),
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(UnmountResult::AlreadyGone),
            Err(errno) => return Err(errno),
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(UnmountResult::Complete),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
                Ok(UnmountResult::Detached)
            }
            Err(Errno::INVAL) => Ok(UnmountResult::AlreadyGone),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(errno) = self.try_unmount() {
            warn!(mountpoint = %self.path.display(), error = %errno, "cannot unmount");
        }
    }
}

/// Examines a path without a request to a FUSE daemon, which may be dead, hung, or this process.
const EXAMINE: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::NO_AUTOMOUNT);

/// The properties of a path that [`examine`] returns.
struct ExaminedPath {
    mount: u64,
    directory: bool,
    mount_root: bool,
}

fn examine(path: &Path) -> Result<ExaminedPath, Errno> {
    let examined = rustix::fs::statx(CWD, path, EXAMINE, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok(ExaminedPath {
        mount: examined.stx_mnt_id,
        directory: rustix::fs::FileType::from_raw_mode(examined.stx_mode.into()).is_dir(),
        mount_root: examined.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// Checks the mountpoint, detaches mounts of dead daemons from it, and returns its path without symlinks.
///
/// # Errors
///
/// The mountpoint is missing, not a directory, not empty, or already used as a mountpoint.
pub fn prepare_mountpoint(mountpoint: &Path, allow_nonempty: bool) -> Result<PathBuf, SessionError> {
    let unusable = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => SessionError::Missing(mountpoint.to_owned()),
        Some(Errno::NOTDIR) => SessionError::NotADirectory(mountpoint.to_owned()),
        _ => PathError::new("examine mountpoint", mountpoint, error).into(),
    };
    let path = mountpoint.canonicalize().map_err(unusable)?;
    loop {
        let examined = examine(&path).map_err(|errno| unusable(errno.into()))?;
        if !examined.directory {
            return Err(SessionError::NotADirectory(path));
        }
        if !examined.mount_root {
            break;
        }
        if !is_ours(examined.mount).map_err(unusable)? {
            return Err(SessionError::Busy(path));
        }
        // Force a request, to check whether the daemon is alive: cached attributes outlive it.
        match rustix::fs::statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::MODE) {
            Err(Errno::NOTCONN) => {
                info!(mountpoint = %path.display(), "detaching the mount of a dead daemon");
                rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(|errno| mount_error(&path, "detach the mount of a dead daemon", errno))?;
            }
            _ => return Err(SessionError::Served(path)),
        }
    }
    let mut entries = fs::read_dir(&path).map_err(unusable)?;
    if !allow_nonempty && entries.next().is_some() {
        return Err(SessionError::NotEmpty(path));
    }
    Ok(path)
}

/// Returns whether the mount with this ID belongs to this program (proc_pid_mountinfo(5)).
fn is_ours(id: u64) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let id = id.to_string();
    let mount = mounts.lines().find(|line| line.split(' ').next() == Some(&id));
    let kind = mount.and_then(|line| line.split_once(" - ")).and_then(|(_, rest)| rest.split(' ').next());
    Ok(kind.and_then(|kind| kind.strip_prefix("fuse.")) == Some(MOUNT_NAME))
}

fn open_device(path: &Path) -> Result<OwnedFd, SessionError> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => SessionError::NoFuse(errno.into()),
        _ => mount_error(path, "open /dev/fuse", errno),
    })
}

/// Creates the mount without attaching it to the directory tree.
fn make_mount(path: &Path, connection: &OwnedFd) -> Result<OwnedFd, SessionError> {
    let error_of = |step| move |errno: Errno| mount_error(path, step, errno);
    let context =
        rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
            Errno::NODEV => SessionError::NoFuse(errno.into()),
            _ => mount_error(path, "fsopen", errno),
        })?;
    let fd = connection.as_raw_fd().to_string();
    let uid = rustix::process::geteuid().as_raw().to_string();
    let gid = rustix::process::getegid().as_raw().to_string();
    let options = [
        ("source", MOUNT_NAME),
        ("subtype", MOUNT_NAME),
        ("fd", &fd),
        // S_IFDIR. The kernel takes only the root's file type from here, and the rest of its mode from GETATTR.
        ("rootmode", "40000"),
        ("user_id", &uid),
        ("group_id", &gid),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, key, value).map_err(error_of(key))?;
    }
    // `ro` makes the filesystem itself read-only, so that no bind mount of it is writable. If root remounts it writable, the
    // adapter refuses every request for a change.
    for flag in ["ro", "allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(&context, flag).map_err(error_of(flag))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(error_of("fsconfig"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(error_of("fsmount"))
}

fn mount_error(path: &Path, step: &'static str, errno: Errno) -> SessionError {
    let (path, source) = (path.to_owned(), errno.into());
    match errno {
        Errno::PERM | Errno::ACCESS => SessionError::Permission { path, source },
        _ => SessionError::Mount { path, step, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_mountpoint_is_named_with_the_reason() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        assert!(matches!(mount(&missing, false), Err(SessionError::Missing(path)) if path == missing));

        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(mount(&file, false), Err(SessionError::NotADirectory(_))));
        assert!(matches!(mount(&file.join("below"), false), Err(SessionError::NotADirectory(_))));
        assert!(matches!(mount(Path::new("/proc"), false), Err(SessionError::Busy(_))));

        // Contains `file`.
        let full = scratch.path().canonicalize().unwrap();
        match mount(&full, false) {
            Err(error @ SessionError::NotEmpty(_)) => {
                assert_eq!(error.to_string(), format!("mountpoint {} is not empty", full.display()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mounts_of_other_programs_are_not_ours() {
        let root = examine(Path::new("/")).unwrap();
        assert!(root.mount_root && root.directory);
        assert!(!is_ours(root.mount).unwrap());
        assert!(!is_ours(u64::MAX).unwrap());
    }
}
