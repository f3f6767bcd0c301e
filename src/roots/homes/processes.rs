//! Finds the processes that use a root.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::process::Pid;

/// Returns the processes whose mount table contains the overlay with this source.
///
/// For a leased root these are the processes of its sandbox; for a mounted named root they are nearly all processes. A
/// process is missed if its root directory hides the mount. Reads all of `/proc`.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn processes_with_mount(source: &str) -> io::Result<Vec<Pid>> {
    let pattern = format!(" - overlay {source} ");
    let has_mount = |pid: &Pid| {
        // The process may have ended.
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        table.windows(pattern.len()).any(|window| window == pattern.as_bytes())
    };
    Ok(all_processes()?.into_iter().filter(has_mount).collect())
}

/// Returns one process that uses the overlay with this source and device, and the name of its program.
///
/// A process uses the overlay if its root directory, working directory, program or an open file is in it, in any mount
/// namespace. The source alone is ambiguous: another store may have a root of the same name.
pub(super) fn find_user(source: &str, device: (u32, u32)) -> io::Result<Option<(Pid, String)>> {
    let pattern = format!(" - overlay {source} ");
    let device = format!("{}:{}", device.0, device.1);
    let pids = all_processes()?;
    // A mount ID is the same for all processes that see the mount, and unique on the host.
    let mut mount_ids = HashSet::new();
    for pid in &pids {
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let table = String::from_utf8_lossy(&table);
        let has_device = |line: &&str| line.split(' ').nth(2) == Some(&device);
        let mounts = table.lines().filter(|line| line.contains(&pattern)).filter(has_device);
        mount_ids.extend(mounts.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()));
    }
    if mount_ids.is_empty() {
        return Ok(None);
    }
    let is_inside = |path: &Path| {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID)
            .is_ok_and(|stat| mount_ids.contains(&stat.stx_mnt_id))
    };
    let is_user = |pid: &Pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        ["root", "cwd", "exe"].iter().any(|link| is_inside(&process.join(link)))
            || fs::read_dir(process.join("fd"))
                .is_ok_and(|files| files.flatten().any(|file| is_inside(&file.path())))
    };
    Ok(pids.into_iter().find(is_user).map(|pid| (pid, program_name(pid))))
}

fn program_name(pid: Pid) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

fn all_processes() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw));
    }
    Ok(pids)
}
