//! Moves a process that outlives its caller out of the caller's control groups.
//!
//! Workers and service managers end a job by its control group: `cgroup.kill` and `cgroup.freeze` of version 2, the freezer of
//! version 1. The process has work to do afterwards. So it moves to a group of its own in version 2, and to the top of each
//! hierarchy of version 1, which nobody freezes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The group of all such processes, at the top of the hierarchy of version 2. It limits nothing.
const GROUP: &str = "rcx-imagefs";
/// The file that a process writes to move itself.
const PROCESSES: &str = "cgroup.procs";

/// Leaves the control groups of the caller, as far as the host permits. In a container, the top is usually the container's.
///
/// # Errors
/// `/proc` cannot be read.
pub fn leave_control_groups() -> io::Result<()> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    // Most hosts with version 1 have many hierarchies, of which most processes use few.
    if groups.lines().all(|line| line.ends_with(":/")) {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for group in targets(&groups, &mounts) {
        // Another hierarchy may permit what this one refuses.
        let _ = enter(&group);
    }
    Ok(())
}

/// Moves this process to a group, which is made if it does not exist.
fn enter(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // 0 is the process that writes.
    fs::write(group.join(PROCESSES), "0")
}

/// Returns the groups to move to. `groups` is the content of `/proc/self/cgroup`, `mounts` that of `/proc/self/mountinfo`.
fn targets(groups: &str, mounts: &str) -> Vec<PathBuf> {
    groups.lines().filter_map(|line| target(line, mounts)).collect()
}

fn target(line: &str, mounts: &str) -> Option<PathBuf> {
    // cgroups(7): `ID:CONTROLLERS:PATH`. Version 2 has no controllers here.
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (top, mountpoint) = mounts.lines().find_map(|mount| {
        // proc_pid_mountinfo(5): `ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [FIELDS] - TYPE SOURCE SUPER-OPTIONS`.
        let (place, filesystem) = mount.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, mountpoint) = (place.next()?, place.next()?);
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        let is_mounted = match controllers {
            "" => kind == "cgroup2",
            _ => {
                kind == "cgroup"
                    && controllers.split(',').all(|name| options.split(',').any(|one| one == name))
            }
        };
        is_mounted.then(|| (root, PathBuf::from(mountpoint)))
    })?;
    let target = if controllers.is_empty() { mountpoint.join(GROUP) } else { mountpoint };
    let is_there = path == top || Path::new(path) == Path::new(top).join(GROUP);
    (!is_there).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "24 20 0:22 / /proc rw - proc proc rw\n\
        30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup rw\n\
        31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 25 0:28 /docker/x /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        33 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

    #[test]
    fn groups_of_all_hierarchies_are_left_for_the_top_or_a_group_of_its_own() {
        let all = |groups: &str| {
            let found = targets(groups, MOUNTS).into_iter().map(|path| path.display().to_string());
            found.collect::<Vec<_>>().join(" ")
        };
        for (groups, expected) in [
            ("0::/system.slice/worker.service\n", "/sys/fs/cgroup/unified/rcx-imagefs"),
            ("0::/\n", ""),
            ("0::/rcx-imagefs\n", ""),
            ("4:cpu,cpuacct:/job\n0::/\n", "/sys/fs/cgroup/cpu,cpuacct"),
            ("5:freezer:/docker/x/job\n", "/sys/fs/cgroup/freezer"),
            ("5:freezer:/docker/x\n", ""),
            ("1:name=systemd:/a:b\n", "/sys/fs/cgroup/systemd"),
            ("6:memory:/job\n", ""),
            ("nonsense\n", ""),
        ] {
            assert_eq!(all(groups), expected, "{groups}");
        }
    }
}
