//! Processes that outlive their caller.

#![expect(unsafe_code, reason = "rustix has no fork and no close_range(2)")]

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid};

/// Limit of open files of a detached process. Removing a tree needs a bounded number of descriptors.
const FILES_MAX: u64 = 1024;

/// The side of a fork that this process is on.
#[derive(Debug)]
pub enum Forked {
    /// The process that called fork(2), with the process ID of its child.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks. The child must end with [`std::process::exit`] or execute a program; it must not return from the caller.
///
/// # Errors
/// Memory or process numbers are short.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so no thread that is missing in the child can hold a lock. If there were another
    // thread, the child could hang on such a lock until its parent's death kills it.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(Forked::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Ends this process at once. Nothing that it inherited is written or released a second time.
pub fn end_now(code: i32) -> ! {
    // SAFETY: _exit(2) runs no handlers and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Drops everything inherited from the caller besides descriptors, so that the caller cannot reach this process. Names the process.
///
/// # Errors
/// A privilege is missing.
pub fn detach_from_caller(name: &CStr) -> io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    rustix::process::setsid()?;
    let _ = rustix::thread::set_name(name);
    rustix::process::chdir("/")?;
    let unlimited = Rlimit { current: None, maximum: None };
    let files = Rlimit { current: Some(FILES_MAX), maximum: Some(FILES_MAX) };
    for (resource, limit) in [
        (Resource::Cpu, unlimited),
        (Resource::Fsize, unlimited),
        (Resource::Data, unlimited),
        (Resource::As, unlimited),
        (Resource::Nofile, files),
    ] {
        // Fails without CAP_SYS_RESOURCE; the limit is then unchanged.
        let _ = rustix::process::setrlimit(resource, limit);
    }
    let _ = rustix::process::setpriority_process(None, 0);
    Ok(())
}

/// Closes every descriptor except `kept`, and redirects the three standard streams to `/dev/null`.
///
/// The caller must not return to code that owns one of the other descriptors.
///
/// # Errors
/// `/dev/null` cannot be opened.
pub fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: close_range(2) touches no memory. The owners of these descriptors are in stack frames that this process
            // never returns to, so no descriptor is used or closed again after its number was reused.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1).max(first);
    }
    Ok(())
}
