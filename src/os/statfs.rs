//! statfs(2) with a deadline.

#![expect(unsafe_code, reason = "rustix has no fork and no close_range(2)")]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// Returns whether statfs(2) succeeds for `path`, and its error if it fails; `None` if there is no answer within `timeout`.
///
/// The kernel never answers this call of a FUSE mount from a cache. A process that waits for a FUSE server may be unkillable,
/// so a child process makes the call. If it cannot be killed, it stays behind, without any descriptor.
///
/// # Errors
///
/// The child cannot be started.
pub fn statfs_within(path: &Path, timeout: Duration) -> io::Result<Option<Result<(), Errno>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the child only makes system calls: it takes no lock that another thread could hold, and allocates nothing.
    let pid = match unsafe { libc::fork() } {
        0 => {
            // SAFETY: nothing in the child uses a descriptor after this. A pipe of the caller must not stay open.
            unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
            // All error numbers fit into an exit code.
            let code = rustix::fs::statfs(path.as_c_str()).map_or_else(Errno::raw_os_error, |_| 0);
            // SAFETY: ends the child without the exit handlers of its parent.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid.max(0)).ok_or_else(io::Error::last_os_error)?,
    };
    if !ends_within(pid, timeout)? {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        return Ok(None);
    }
    let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))?;
    let code = status.and_then(|(_, status)| status.exit_status());
    let code = code.ok_or_else(|| io::Error::other("the child was killed"))?;
    Ok(Some(if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }))
}

fn ends_within(pid: Pid, timeout: Duration) -> io::Result<bool> {
    let child = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        let remaining = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match rustix::event::poll(&mut [PollFd::new(&child, PollFlags::IN)], remaining.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_that_of_the_system_call() {
        let ask = |path: &str| statfs_within(Path::new(path), Duration::from_secs(60)).unwrap();
        assert_eq!(ask("/"), Some(Ok(())));
        assert_eq!(ask("/nonexistent"), Some(Err(Errno::NOENT)));
    }
}
