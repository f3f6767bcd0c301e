//! Who calls, and what is done as whom.
//!
//! A set-uid program starts with the real identity of its caller and the effective one of root. So does this one, and it
//! keeps both until it is done: the caller may kill it, as a worker does, and its files are root's.

use std::io;

use rustix::process::{Gid, Resource, Rlimit, Uid};

use super::ShimError;

/// What the process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Root called: its environment and options are trusted.
    Root,
    /// Somebody else called a set-uid program: nothing of theirs is trusted.
    SetUid,
    /// Somebody else called, and there are no privileges.
    None,
}

/// The caller's identity, and what else has to be as it was when the real isolate starts.
#[derive(Debug)]
pub struct Caller {
    uid: Uid,
    gid: Gid,
    rights: Rights,
    restored: Vec<(Resource, Rlimit)>,
    umask: Option<rustix::fs::Mode>,
}

/// Limits that could end this process, or keep it from making files, in the middle of its work: what is wanted, and what
/// it cannot do without.
const LIFTED: [(Resource, u64, u64); 3] =
    [(Resource::Fsize, u64::MAX, 1 << 20), (Resource::Nofile, 1024, 128), (Resource::Nproc, u64::MAX, 0)];

impl Caller {
    /// Looks at the identities of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let elevated = uid != rustix::process::geteuid() || gid != rustix::process::getegid();
        let rights = match (elevated, uid.is_root()) {
            // Also a set-gid program, or one that is set-uid to somebody else.
            (true, _) => Rights::SetUid,
            (false, true) => Rights::Root,
            (false, false) => Rights::None,
        };
        Self { uid, gid, rights, restored: Vec::new(), umask: None }
    }

    /// What this process may do.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Makes the process fit for work: limits that the caller may have set too low, and the mode of new files.
    /// [`leave_privileges`](Self::leave_privileges) takes it back.
    ///
    /// # Errors
    /// [`ShimError::Unprivileged`] where the process is not root's, [`ShimError::Process`].
    pub(super) fn prepare(&mut self) -> Result<(), ShimError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ShimError::Unprivileged);
        }
        for (resource, wanted, least) in LIFTED {
            let old = rustix::process::getrlimit(resource);
            let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
            if enough(old.current) && enough(old.maximum) {
                continue;
            }
            let value = (wanted != u64::MAX).then_some(wanted);
            let maximum = if enough(old.maximum) { old.maximum } else { value };
            let lifted = Rlimit { current: value, maximum };
            // Without the right to raise them (in a container), as far as they go. With less than is needed, the guardian
            // could not remove what has been made.
            let half = Rlimit { current: old.maximum, maximum: old.maximum };
            rustix::process::setrlimit(resource, lifted)
                .or_else(|error| match old.maximum {
                    Some(maximum) if maximum < least => Err(error),
                    _ => rustix::process::setrlimit(resource, half),
                })
                .map_err(failed("limits of the caller are too low, and cannot be lifted"))?;
            self.restored.push((resource, old));
        }
        self.umask = Some(rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022)));
        Ok(())
    }

    /// Does something with the caller's rights to files, and takes root's up again.
    pub(super) fn acting<T>(&self, act: impl FnOnce() -> T) -> Result<T, ShimError> {
        if self.rights != Rights::SetUid {
            return Ok(act());
        }
        let (root, root_group) = (rustix::process::geteuid(), rustix::process::getegid());
        rustix::thread::set_thread_res_gid(None, self.gid, None).map_err(failed("act as the caller"))?;
        rustix::thread::set_thread_res_uid(None, self.uid, None).map_err(failed("act as the caller"))?;
        let done = act();
        rustix::thread::set_thread_res_uid(None, root, None).map_err(failed("act as root"))?;
        rustix::thread::set_thread_res_gid(None, root_group, None).map_err(failed("act as root"))?;
        Ok(done)
    }

    /// Becomes the caller, for good, with its limits. May be called again.
    ///
    /// # Errors
    /// [`ShimError::Process`]; the process must end then, since it may have more rights than its caller.
    pub fn leave_privileges(&mut self) -> Result<(), ShimError> {
        if self.rights == Rights::SetUid {
            // Before the limits: with a low one on processes, a process that has just changed its user cannot execute.
            let (uid, gid) = (self.uid, self.gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("drop privileges"))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("drop privileges"))?;
            // Whoever is root can always come back; nobody else may.
            if !uid.is_root() && rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).is_ok() {
                return Err(ShimError::Process("drop privileges", io::Error::other("root came back")));
            }
            // Until isolate is executed, this process has its caller's identity in a namespace that is not the caller's.
            // `fs.suid_dumpable` could say that it may be traced nevertheless.
            let never = rustix::process::DumpableBehavior::NotDumpable;
            rustix::process::set_dumpable_behavior(never).map_err(failed("refuse to be traced"))?;
        }
        if let Some(umask) = self.umask.take() {
            rustix::process::umask(umask);
        }
        for (resource, limit) in self.restored.drain(..) {
            rustix::process::setrlimit(resource, limit).map_err(failed("restore limits"))?;
        }
        Ok(())
    }
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> ShimError {
    move |errno| ShimError::Process(step, errno.into())
}
