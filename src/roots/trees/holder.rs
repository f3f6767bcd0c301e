//! The holder: a process that keeps the superblock of one image, and gives a clone of its mount to each root.
//!
//! It belongs to no caller: a root may be made by the stand-in for isolate, whose caller may end or be stopped at any moment. The
//! mount is attached in a mount namespace of its own, because before Linux 6.15 the kernel clones only attached mounts. The
//! namespace has no mounts of the host, which would stay in use after the host has unmounted them.
//!
//! Whether a root still exists is looked up in the mount tables of all processes, each time the image has not been used for a
//! while. inotify(7) would tell at once, but a user has only 128 instances of it, and a host may use more images than that.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::WaitOptions;

use super::TreeMounts;
use crate::os::{
    AtPath as _, Forked, PathError, close_all_but, detach_from_caller, end_now, fork, leave_control_groups,
};
use crate::roots::RootsError;
use crate::roots::mounts::{enter_private_namespace, mount, wire};

/// The most connections at a time. Each is open until its root is made.
const CONNECTIONS_MAX: usize = 256;
/// The report of a holder that is ready. Any other report is an error message.
const READY: &[u8] = b"ready";
/// How often to look whether the socket is still there.
const LOOK: Duration = Duration::from_secs(2);

pub(super) struct Holder<'a> {
    trees: &'a TreeMounts,
    name: &'a str,
    mount: OwnedFd,
    /// The devices of the mount, with their locks.
    _devices: Vec<File>,
    listener: OwnedFd,
    connections: Vec<OwnedFd>,
    /// The host's `/proc`.
    processes: OwnedFd,
    /// The devices of the overlays of roots that may exist.
    roots: HashSet<u64>,
}

impl<'a> Holder<'a> {
    /// Starts a process that holds `mount`, and returns when it listens. The caller has the lock of the name, and knows that no
    /// process listens at it. This process must have one thread.
    pub(super) fn start(
        trees: &'a TreeMounts,
        name: &'a str,
        mount: OwnedFd,
        devices: Vec<File>,
    ) -> Result<(), RootsError> {
        let path = trees.path.join(name);
        let failed = |error: io::Error| PathError::new("start the holder of", &path, error);
        let listener = listen(trees.dir.as_fd(), name).at("listen at", &path)?;
        let (reports, report) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        match fork().map_err(failed)? {
            Forked::Parent(child) => {
                drop(report);
                let wait = || rustix::process::waitpid(Some(child), WaitOptions::empty());
                rustix::io::retry_on_intr(wait).map_err(|errno| failed(errno.into()))?;
                let mut text = Vec::new();
                File::from(reports).read_to_end(&mut text).map_err(failed)?;
                match text.as_slice() {
                    READY => Ok(()),
                    b"" => Err(failed(io::Error::other("the process has ended")).into()),
                    message => Err(failed(io::Error::other(String::from_utf8_lossy(message))).into()),
                }
            }
            // The child of a child that has ended belongs to the host's first process.
            Forked::Child => match fork() {
                Ok(Forked::Child) => {
                    let holder = || Self::prepare(trees, name, (mount, devices), listener, &report);
                    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(holder)) {
                        Ok(Ok(holder)) => {
                            let mut report = File::from(report);
                            let _ = report.write_all(READY);
                            drop(report);
                            let run = std::panic::AssertUnwindSafe(|| holder.run());
                            let _ = std::panic::catch_unwind(run);
                        }
                        Ok(Err(error)) => {
                            let _ = File::from(report).write_all(error.to_string().as_bytes());
                        }
                        Err(_) => {}
                    }
                    end_now(0)
                }
                _ => end_now(0),
            },
        }
    }

    /// Leaves the caller, and attaches the mount.
    fn prepare(
        trees: &'a TreeMounts,
        name: &'a str,
        (mount, devices): (OwnedFd, Vec<File>),
        listener: OwnedFd,
        report: &OwnedFd,
    ) -> io::Result<Self> {
        let kept = [trees.dir.as_fd(), mount.as_fd(), listener.as_fd(), report.as_fd()];
        let kept = kept.into_iter().chain(devices.iter().map(File::as_fd));
        close_all_but(&kept.map(|fd| fd.as_raw_fd()).collect::<Vec<_>>())?;
        detach_from_caller(c"rcx-tree")?;
        // In a group that the caller cannot leave, the holder ends with the caller. The next root starts another one.
        let _ = leave_control_groups();
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let processes = rustix::fs::open("/proc", directory, Mode::empty())?;
        enter_private_namespace().map_err(io::Error::other)?;
        // In a chroot the kernel does not change the root, and the host's mounts stay.
        let attached = if leave_host_mounts(trees).is_ok() { Path::new("/") } else { &trees.path };
        mount::attach(&mount, "rcx-imagefs", attached).map_err(io::Error::other)?;
        let (connections, roots) = (Vec::new(), HashSet::new());
        Ok(Self { trees, name, mount, _devices: devices, listener, connections, processes, roots })
    }

    /// Answers until the image has had no root for a while, or the socket is removed.
    fn run(mut self) {
        let mut used = Instant::now();
        loop {
            if !self.connections.is_empty() {
                used = Instant::now();
            }
            let timeout = Timespec::try_from(LOOK.min(self.trees.idle)).ok();
            let mut fds: Vec<_> = std::iter::once(&self.listener)
                .chain(&self.connections)
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(0) if !self.is_listed() => return,
                Ok(0) if used.elapsed() >= self.trees.idle => {
                    drop(fds);
                    if !self.has_roots() && self.end() {
                        return;
                    }
                    used = Instant::now();
                    continue;
                }
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let mut ready = is_ready[1..].iter();
            let connections = std::mem::take(&mut self.connections);
            for connection in connections {
                match ready.next() {
                    Some(true) => self.add_root(connection.as_fd()),
                    _ => self.connections.push(connection),
                }
            }
            if is_ready[0] {
                self.accept();
            }
        }
    }

    /// Accepts a connection and sends it a mount.
    fn accept(&mut self) -> bool {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = rustix::net::accept_with(&self.listener, flags) else { return false };
        // Only root can reach the socket.
        let is_root = rustix::net::sockopt::socket_peercred(&connection).is_ok_and(|peer| peer.uid.is_root());
        if !is_root || self.connections.len() >= CONNECTIONS_MAX {
            return false;
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = rustix::mount::open_tree(&self.mount, "", flags);
        let is_sent = clone.is_ok_and(|clone| wire::send(connection.as_fd(), clone.as_fd()).is_ok());
        if is_sent {
            self.connections.push(connection);
        }
        is_sent
    }

    /// Notes the root that a connection sends. A connection that sends none has made none.
    fn add_root(&mut self, connection: BorrowedFd<'_>) {
        let Ok(Some(root)) = wire::receive(connection) else { return };
        if let Ok(stat) = rustix::fs::fstat(&root) {
            self.roots.insert(stat.st_dev);
        }
    }

    /// Whether a process still has a root in its mount table. Forgets the others.
    fn has_roots(&mut self) -> bool {
        let mounted =
            mounted_devices(self.processes.as_fd(), &self.roots).unwrap_or_else(|_| self.roots.clone());
        self.roots = mounted;
        !self.roots.is_empty()
    }

    /// Whether the socket still has its name.
    fn is_listed(&self) -> bool {
        rustix::fs::statat(&self.trees.dir, self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes the socket unless another process is about to use it. Returns whether this process may end.
    fn end(&mut self) -> bool {
        let Ok(Some(lock)) = self.trees.lock(self.name, Duration::ZERO) else { return false };
        if self.accept() {
            return false;
        }
        let _ = rustix::fs::unlinkat(&self.trees.dir, self.name, AtFlags::empty());
        drop(lock);
        true
    }
}

/// Listens at a socket in place of a process that has ended.
fn listen(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&listener, &wire::address(dir, name)?)?;
    rustix::net::listen(&listener, 128)?;
    Ok(listener)
}

/// Makes the directory of the sockets the root of this process, and detaches all other mounts from its namespace.
fn leave_host_mounts(trees: &TreeMounts) -> Result<(), RootsError> {
    let failed = |step| move |errno: Errno| PathError::new(step, &trees.path, errno);
    // By its path: the kernel clones no mount of the namespace that this process has left.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = rustix::mount::open_tree(CWD, &trees.path, flags).map_err(failed("clone the mount of"))?;
    mount::attach(&root, "rcx-imagefs", &trees.path)?;
    rustix::process::fchdir(&root).map_err(failed("enter"))?;
    // With the same directory twice, the old root lies over the new one until it is detached (pivot_root(2)).
    rustix::process::pivot_root(".", ".").map_err(failed("change the root to"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("detach the old root from"))?;
    Ok(())
}

/// Returns those of the devices (`st_dev`) that are mounted for a process, in any namespace. Reads all of `processes`, a
/// directory of the proc filesystem.
fn mounted_devices(processes: BorrowedFd<'_>, devices: &HashSet<u64>) -> io::Result<HashSet<u64>> {
    let mut mounted = HashSet::new();
    for process in Dir::read_from(processes)? {
        if mounted.len() == devices.len() {
            break;
        }
        // Not a process, or one that has ended.
        let table = mount_table(processes, process?.file_name().to_bytes()).unwrap_or_default();
        for line in table.lines() {
            // proc_pid_mountinfo(5): `ID PARENT MAJOR:MINOR ...`.
            let device = line.split(' ').nth(2).and_then(|device| device.split_once(':'));
            let number = |text: &str| text.parse::<u32>().ok();
            let Some((Some(major), Some(minor))) = device.map(|(a, b)| (number(a), number(b))) else {
                continue;
            };
            let device = rustix::fs::makedev(major, minor);
            if devices.contains(&device) {
                mounted.insert(device);
            }
        }
    }
    Ok(mounted)
}

/// Reads the mount table of a process.
fn mount_table(processes: BorrowedFd<'_>, process: &[u8]) -> io::Result<String> {
    let path = [process, b"/mountinfo"].concat();
    let mut table = Vec::new();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(processes, path, flags, Mode::empty())?).read_to_end(&mut table)?;
    // The paths in it may have any bytes.
    Ok(String::from_utf8_lossy(&table).into_owned())
}
