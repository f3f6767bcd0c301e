//! The caller's identity, and the privileges of this process.
//!
//! A set-uid program starts with the real user ID of its caller and the effective user ID of root. This process keeps both
//! until it executes isolate: so the caller may kill it, as a worker does, and the files that it makes belong to root.

use std::io;

use rustix::process::{Gid, Resource, Rlimit, Uid};

use super::ShimError;

/// The privileges of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The caller is root. Its environment and options are trusted.
    Root,
    /// The program is set-uid and the caller is not root. Nothing that comes from the caller is trusted.
    SetUid,
    /// The caller is not root, and the program has no privileges.
    None,
}

/// The caller's identity, and the limits and umask to restore before isolate starts.
#[derive(Debug)]
pub struct Caller {
    uid: Uid,
    gid: Gid,
    rights: Rights,
    restored: Vec<(Resource, Rlimit)>,
    umask: Option<rustix::fs::Mode>,
}

/// Limits that could stop this process in the middle of its work: the resource, the limit to set, and the lowest limit that
/// is sufficient.
const RAISED_LIMITS: [(Resource, u64, u64); 3] =
    [(Resource::Fsize, u64::MAX, 1 << 20), (Resource::Nofile, 1024, 128), (Resource::Nproc, u64::MAX, 0)];

impl Caller {
    /// Returns the caller of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let elevated = uid != rustix::process::geteuid() || gid != rustix::process::getegid();
        let rights = match (elevated, uid.is_root()) {
            // This includes programs that are set-gid, or set-uid to a user other than root.
            (true, _) => Rights::SetUid,
            (false, true) => Rights::Root,
            (false, false) => Rights::None,
        };
        Self { uid, gid, rights, restored: Vec::new(), umask: None }
    }

    /// The privileges of this process.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// The user and group of the caller, if they differ from those of this process.
    pub(super) fn identity(&self) -> Option<(u32, u32)> {
        (self.rights == Rights::SetUid).then(|| (self.uid.as_raw(), self.gid.as_raw()))
    }

    /// Raises limits that the caller may have set too low, and sets the umask.
    /// [`drop_privileges`](Self::drop_privileges) restores both.
    ///
    /// # Errors
    /// [`ShimError::Unprivileged`] if the process has no root privileges; [`ShimError::Process`].
    pub(super) fn raise_limits(&mut self) -> Result<(), ShimError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ShimError::Unprivileged);
        }
        for (resource, target, minimum) in RAISED_LIMITS {
            let old = rustix::process::getrlimit(resource);
            let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= target);
            if enough(old.current) && enough(old.maximum) {
                continue;
            }
            let value = (target != u64::MAX).then_some(target);
            let maximum = if enough(old.maximum) { old.maximum } else { value };
            let raised = Rlimit { current: value, maximum };
            // Without CAP_SYS_RESOURCE, as in a container, the limit can only be raised to its maximum. Below `minimum`, the
            // guardian could not remove the files of the root.
            let up_to_maximum = Rlimit { current: old.maximum, maximum: old.maximum };
            rustix::process::setrlimit(resource, raised)
                .or_else(|error| match old.maximum {
                    Some(maximum) if maximum < minimum => Err(error),
                    _ => rustix::process::setrlimit(resource, up_to_maximum),
                })
                .map_err(failed("raise the resource limits of the caller, which are too low"))?;
            self.restored.push((resource, old));
        }
        self.umask = Some(rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022)));
        Ok(())
    }

    /// Calls `action` with the caller's file access rights, and then restores root's rights.
    pub(super) fn as_caller<T>(&self, action: impl FnOnce() -> T) -> Result<T, ShimError> {
        if self.rights != Rights::SetUid {
            return Ok(action());
        }
        let (root, root_group) = (rustix::process::geteuid(), rustix::process::getegid());
        rustix::thread::set_thread_res_gid(None, self.gid, None)
            .map_err(failed("take the caller's identity"))?;
        rustix::thread::set_thread_res_uid(None, self.uid, None)
            .map_err(failed("take the caller's identity"))?;
        let result = action();
        rustix::thread::set_thread_res_uid(None, root, None).map_err(failed("take root's identity"))?;
        rustix::thread::set_thread_res_gid(None, root_group, None).map_err(failed("take root's identity"))?;
        Ok(result)
    }

    /// Takes the identity of the caller permanently, and restores its limits and umask. Calling it again does nothing.
    ///
    /// # Errors
    /// [`ShimError::Process`]. The process must end then: it may have more rights than its caller.
    pub fn drop_privileges(&mut self) -> Result<(), ShimError> {
        if self.rights == Rights::SetUid {
            // Change the user before the limits are restored: with a low RLIMIT_NPROC, execve(2) fails in a process that
            // changed its user.
            let (uid, gid) = (self.uid, self.gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("drop privileges"))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("drop privileges"))?;
            // Unless the caller is root, the process must not be able to become root again.
            if !uid.is_root() && rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).is_ok() {
                let source = io::Error::other("the process could become root again");
                return Err(ShimError::Process("drop privileges", source));
            }
            // Until it executes isolate, this process has the caller's identity in a mount namespace that the caller must not
            // enter. Depending on `fs.suid_dumpable`, the caller could trace it.
            let never = rustix::process::DumpableBehavior::NotDumpable;
            rustix::process::set_dumpable_behavior(never).map_err(failed("forbid tracing"))?;
        }
        if let Some(umask) = self.umask.take() {
            rustix::process::umask(umask);
        }
        for (resource, limit) in self.restored.drain(..) {
            rustix::process::setrlimit(resource, limit).map_err(failed("restore resource limits"))?;
        }
        Ok(())
    }
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> ShimError {
    move |errno| ShimError::Process(step, errno.into())
}
