//! Mounts and unmounts.
//!
//! Mounting is done here with the mount API's file descriptors, not by fuser: its own mount object forgets a mount
//! that is still there and has no lazy unmount. The descriptor of `/dev/fuse` and the mount are separate values, so
//! that a session can be run on a descriptor that another process has mounted.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use tracing::{info, warn};

/// What `/proc/self/mountinfo` shows as the mount's source and, behind `fuse.`, as its type.
pub const MOUNT_NAME: &str = "rcx-imagefs";

const DEVICE: &str = "/dev/fuse";

/// Why the filesystem could not be mounted, served or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is nothing at the mountpoint.
    #[error("mountpoint {0} does not exist")]
    Missing(PathBuf),
    /// Something else than a directory is there.
    #[error("mountpoint {0} is not a directory")]
    NotADirectory(PathBuf),
    /// The directory has entries, which the mount would hide.
    #[error("mountpoint {0} is not empty")]
    NotEmpty(PathBuf),
    /// A running daemon serves this directory.
    #[error("mountpoint {0} is busy: an rcx-imagefs mount is there already")]
    Served(PathBuf),
    /// Something else is mounted there.
    #[error("mountpoint {0} is busy: something is mounted there already")]
    Busy(PathBuf),
    /// The mountpoint could not be examined.
    #[error("mountpoint {path}")]
    Mountpoint {
        /// The mountpoint.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The kernel has no FUSE, or its module is not loaded.
    #[error("no FUSE in this kernel: {DEVICE} is missing (is the module `fuse` loaded?)")]
    NoFuse(#[source] io::Error),
    /// Mounting takes a privilege that this process does not have.
    #[error("mount at {path}: no permission (mounting takes CAP_SYS_ADMIN and access to {DEVICE})")]
    Permission {
        /// The mountpoint.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// A step of mounting was refused.
    #[error("mount at {path}: {step}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The system call, or the option that it was to set.
        step: &'static str,
        /// What came of it.
        source: io::Error,
    },
    /// The kernel and this program did not come to terms, or a thread could not be started.
    #[error("serve the FUSE connection")]
    Serve(#[source] io::Error),
    /// The mount could not be taken away.
    #[error("unmount {path}")]
    Unmount {
        /// The mountpoint.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
}

/// A mount that no one serves yet: serve `connection`, and keep `mount` for as long.
#[derive(Debug)]
pub struct UnservedMount {
    /// The open `/dev/fuse` that the kernel's requests come from. The connection ends when its last copy is closed.
    pub connection: OwnedFd,
    /// The mount.
    pub mount: FuseMount,
}

/// A mount of this program; it is undone when this is dropped.
#[derive(Debug)]
pub struct FuseMount {
    path: PathBuf,
    id: u64,
    device: (u32, u32),
    undone: bool,
}

/// What unmounting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountResult {
    /// The mount is gone, and with it the connection.
    Clean,
    /// The mount is out of the directory tree; programs that use it keep the connection until they let go.
    Detached,
    /// Somebody else had unmounted it before.
    Before,
}

/// Mounts at `path`, for a session to be started on the connection.
///
/// The mount of a daemon that died is detached first. The directory has to be empty unless `allow_nonempty`.
///
/// # Errors
///
/// Each way in which the mountpoint does not serve, FUSE is not there or not permitted.
pub fn mount(path: &Path, allow_nonempty: bool) -> Result<UnservedMount, SessionError> {
    let path = prepare_mountpoint(path, allow_nonempty)?;
    let connection = open_device(&path)?;
    let tree = make_mount(&path, &connection)?;
    let made = rustix::fs::statx(&tree, "", EXAMINE | AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|errno| failed(&path, "statx", errno))?;
    rustix::mount::move_mount(&tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| failed(&path, "move_mount", errno))?;
    // While this descriptor is open, the mount is in use: unmounting would leave the connection up.
    drop(tree);
    let device = (made.stx_dev_major, made.stx_dev_minor);
    Ok(UnservedMount { connection, mount: FuseMount { path, id: made.stx_mnt_id, device, undone: false } })
}

impl FuseMount {
    /// The mountpoint, absolute and without symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how far the kernel reads ahead in files of this mount. A READ request is never longer.
    ///
    /// # Errors
    ///
    /// What writing to the kernel's setting in `/sys` gave.
    pub fn set_readahead(&self, kib: u32) -> io::Result<()> {
        let (major, minor) = self.device;
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Takes the mount away, lazily where programs still use it.
    ///
    /// # Errors
    ///
    /// That the kernel refused for another reason than use.
    pub fn unmount(mut self) -> Result<UnmountResult, SessionError> {
        self.undo().map_err(|errno| SessionError::Unmount { path: self.path.clone(), source: errno.into() })
    }

    fn undo(&mut self) -> Result<UnmountResult, Errno> {
        if std::mem::replace(&mut self.undone, true) {
            return Ok(UnmountResult::Before);
        }
        // Whoever unmounted it may have mounted something else there.
        match examine(&self.path) {
            Ok(there) if there.mount != self.id => return Ok(UnmountResult::Before),
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(UnmountResult::Before),
            Err(errno) => return Err(errno),
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(UnmountResult::Clean),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
                Ok(UnmountResult::Detached)
            }
            Err(Errno::INVAL) => Ok(UnmountResult::Before),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(errno) = self.undo() {
            warn!(mountpoint = %self.path.display(), error = %errno, "cannot unmount");
        }
    }
}

/// Looks without a request to a filesystem's daemon, which may be gone, hung, or this process.
const EXAMINE: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::NO_AUTOMOUNT);

/// What stands at a path.
struct ExaminedPath {
    mount: u64,
    directory: bool,
    mount_root: bool,
}

fn examine(path: &Path) -> Result<ExaminedPath, Errno> {
    let there = rustix::fs::statx(CWD, path, EXAMINE, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok(ExaminedPath {
        mount: there.stx_mnt_id,
        directory: rustix::fs::FileType::from_raw_mode(there.stx_mode.into()).is_dir(),
        mount_root: there.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// Checks the mountpoint, detaches dead mounts from it, and returns its path without symlinks.
///
/// # Errors
///
/// Each way in which it does not serve.
pub fn prepare_mountpoint(given: &Path, allow_nonempty: bool) -> Result<PathBuf, SessionError> {
    let unusable = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => SessionError::Missing(given.to_owned()),
        Some(Errno::NOTDIR) => SessionError::NotADirectory(given.to_owned()),
        _ => SessionError::Mountpoint { path: given.to_owned(), source: error },
    };
    let path = given.canonicalize().map_err(unusable)?;
    loop {
        let there = examine(&path).map_err(|errno| unusable(errno.into()))?;
        if !there.directory {
            return Err(SessionError::NotADirectory(path));
        }
        if !there.mount_root {
            break;
        }
        if !is_ours(there.mount).map_err(unusable)? {
            return Err(SessionError::Busy(path));
        }
        // A request to the daemon, so as to see whether there is one: attributes are cached beyond its death.
        match rustix::fs::statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::MODE) {
            Err(Errno::NOTCONN) => {
                info!(mountpoint = %path.display(), "detaching the mount of a daemon that is gone");
                rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(|errno| failed(&path, "umount2 of the mount of a daemon that is gone", errno))?;
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

/// Whether the mount with this id is one of this program (proc_pid_mountinfo(5)).
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
        _ => failed(path, "open of /dev/fuse", errno),
    })
}

/// Makes the mount, without a place in the directory tree yet.
fn make_mount(path: &Path, connection: &OwnedFd) -> Result<OwnedFd, SessionError> {
    let at = |step| move |errno: Errno| failed(path, step, errno);
    let context =
        rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
            Errno::NODEV => SessionError::NoFuse(errno.into()),
            _ => failed(path, "fsopen", errno),
        })?;
    let fd = connection.as_raw_fd().to_string();
    let uid = rustix::process::geteuid().as_raw().to_string();
    let gid = rustix::process::getegid().as_raw().to_string();
    let options = [
        ("source", MOUNT_NAME),
        ("subtype", MOUNT_NAME),
        ("fd", &fd),
        // S_IFDIR: of the root's mode, the kernel takes the type from here and the rest from GETATTR.
        ("rootmode", "40000"),
        ("user_id", &uid),
        ("group_id", &gid),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, key, value).map_err(at(key))?;
    }
    // `ro` makes the filesystem itself read-only, so that no bind mount of it is writable. Where root remounts the filesystem,
    // the kernel asks, and every request for a change is refused.
    for flag in ["ro", "allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(&context, flag).map_err(at(flag))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(at("fsconfig"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(at("fsmount"))
}

fn failed(path: &Path, step: &'static str, errno: Errno) -> SessionError {
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
    fn mountpoint_that_does_not_serve_is_named_with_the_reason() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        assert!(matches!(mount(&missing, false), Err(SessionError::Missing(path)) if path == missing));

        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(mount(&file, false), Err(SessionError::NotADirectory(_))));
        assert!(matches!(mount(&file.join("below"), false), Err(SessionError::NotADirectory(_))));
        assert!(matches!(mount(Path::new("/proc"), false), Err(SessionError::Busy(_))));

        // Holds `file`.
        let full = scratch.path().canonicalize().unwrap();
        match mount(&full, false) {
            Err(error @ SessionError::NotEmpty(_)) => {
                assert_eq!(error.to_string(), format!("mountpoint {} is not empty", full.display()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_mounts_of_this_program_count_as_ours() {
        let root = examine(Path::new("/")).unwrap();
        assert!(root.mount_root && root.directory);
        assert!(!is_ours(root.mount).unwrap());
        assert!(!is_ours(u64::MAX).unwrap());
    }
}
