//! Makes a root's filesystems with the mount API's file descriptors, and the namespace that they are made in.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::roots::RootsError;
use crate::roots::mounts::plan::{self, LowerForm, Setting, Writable};

/// What the kernel says of one mistake is a line or two.
const LOG_MAX: usize = 512;

/// Gives the calling thread a mount namespace of its own, for the roots that are mounted in it: they are gone when its last
/// process is. What the host mounts or unmounts still shows in it; nothing from it shows on the host.
///
/// # Errors
///
/// That takes a privilege, or memory, which is not there.
pub fn enter_private_namespace() -> Result<(), RootsError> {
    let failed = |step| move |errno| refused("private mount namespace", step, None, errno);
    // SAFETY: The mount namespace is not among the things that the language relies on; descriptors stay shared.
    #[expect(unsafe_code, reason = "a namespace of one's own")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("unshare"))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(failed("mount propagation"))
}

/// Makes an overlay that is not attached anywhere yet. `lowers` are topmost first.
pub(crate) fn overlay(
    source: &str,
    lowers: &[BorrowedFd<'_>],
    writable: Option<Writable<'_>>,
) -> Result<OwnedFd, RootsError> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if writable.is_none() {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    // Whatever is written through an overlay is written with the credentials that it was made with. With this one, neither a
    // disk's reserve nor a quota would stop a program.
    let _less = Without::new(CapabilitySet::SYS_RESOURCE);
    let settings = plan::overlay(source, lowers, LowerForm::Each, writable);
    match make("overlay", source, &settings, attributes) {
        // Before Linux 6.8.
        Err(RootsError::Mount { step: "lowerdir+", .. }) => {
            let settings = plan::overlay(source, lowers, LowerForm::Joined, writable);
            make("overlay", source, &settings, attributes)
        }
        made => made,
    }
}

/// Makes a filesystem in memory that is not attached anywhere yet.
pub(crate) fn tmpfs(source: &str, size: u64) -> Result<OwnedFd, RootsError> {
    make("tmpfs", source, &plan::tmpfs(source, size), MountAttrFlags::empty())
}

/// Whether the kernel has an overlay whose upper is in `home`, mounted or not, in whatever namespace.
///
/// Asked by making another one, which is refused exactly then (`index=on`; fs/overlayfs/super.c, `ovl_report_in_use`). The
/// caller holds the home's lock, so that nobody is just about to mount it, or asks the same.
pub(crate) fn is_alive(home: BorrowedFd<'_>) -> Result<bool, RootsError> {
    const WHAT: &str = "overlay, to see whether there is another";
    let failed = |step| move |errno| refused(WHAT, step, None, errno);
    let context = open("overlay", WHAT)?;
    match set(&context, &plan::probe(home, home)) {
        // Half of it is removed already.
        Err((_, Errno::NOENT)) => return Ok(false),
        configured => configured.map_err(|(key, errno)| failed(key)(errno))?,
    }
    match rustix::mount::fsconfig_create(&context) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::PERM) => Err(failed("fsconfig")(Errno::PERM)),
        // Made, and gone with the context; or not made for another reason, which a used upper has by design.
        Ok(()) | Err(_) => Ok(false),
    }
}

/// Attaches a filesystem that was made here at a directory.
pub(crate) fn attach(tree: &OwnedFd, path: &Path) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn make(
    kind: &'static str,
    source: &str,
    settings: &[Setting],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, RootsError> {
    let what = format!("{kind} {source}");
    let context = open(kind, &what)?;
    set(&context, settings).map_err(|(key, errno)| refused(&what, key, log(&context), errno))?;
    rustix::mount::fsconfig_create(&context)
        .map_err(|errno| refused(&what, "fsconfig", log(&context), errno))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| refused(&what, "fsmount", log(&context), errno))
}

fn open(kind: &'static str, what: &str) -> Result<OwnedFd, RootsError> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => RootsError::NoOverlay(errno.into()),
        _ => refused(what, "fsopen", None, errno),
    })
}

fn set(context: &OwnedFd, settings: &[Setting]) -> Result<(), (&'static str, Errno)> {
    for setting in settings {
        match setting {
            Setting::Value(key, value) => {
                rustix::mount::fsconfig_set_string(context, *key, value).map_err(|errno| (*key, errno))?;
            }
            Setting::Flag(key) => {
                rustix::mount::fsconfig_set_flag(context, *key).map_err(|errno| (*key, errno))?;
            }
        }
    }
    Ok(())
}

/// The last thing the kernel had to say about a filesystem that it did not make.
fn log(context: &OwnedFd) -> Option<String> {
    let mut last = None;
    let mut buffer = [0; LOG_MAX];
    // Each read gives one message, behind its severity and a space (fsopen(2)).
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned();
        last = Some(message.split_once(' ').map_or(message.clone(), |(_, text)| text.to_owned()));
    }
    last
}

pub(crate) fn refused(what: &str, step: &'static str, log: Option<String>, errno: Errno) -> RootsError {
    let (what, source): (_, io::Error) = (what.to_owned(), errno.into());
    match errno {
        Errno::PERM | Errno::ACCESS => RootsError::Permission { what, source },
        _ => RootsError::Mount { what, step, log, source },
    }
}

/// Takes every mount from a mountpoint, lazily with `detach`.
pub(crate) fn unmount(path: &Path, detach: bool) -> Result<(), Errno> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)
}

/// The calling thread without a capability, until dropped.
struct Without(Option<CapabilitySets>);

impl Without {
    fn new(capability: CapabilitySet) -> Self {
        let had = rustix::thread::capabilities(None).ok().filter(|had| had.effective.contains(capability));
        let less = |had: CapabilitySets| CapabilitySets { effective: had.effective - capability, ..had };
        Self(had.filter(|had| rustix::thread::set_capabilities(None, less(*had)).is_ok()))
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        if let Some(had) = self.0
            && let Err(errno) = rustix::thread::set_capabilities(None, had)
        {
            tracing::warn!(error = %errno, "a capability that was put aside is gone");
        }
    }
}
