//! Finds the processes that use a root.

use std::collections::{HashMap, HashSet};
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

/// Returns the processes that use the overlay with this source and device, each with the name of its program.
///
/// A process uses the overlay if its root directory, working directory, program or an open file is in it or in a filesystem
/// mounted below it, in any mount namespace. The source alone is ambiguous: another store may have a root of the same name.
pub(super) fn find_users(source: &str, device: (u32, u32)) -> io::Result<Vec<(Pid, String)>> {
    let pids = all_processes()?;
    let mount_ids = mount_ids(&pids, source, device);
    if mount_ids.is_empty() {
        return Ok(Vec::new());
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
    Ok(pids.into_iter().filter(is_user).map(|pid| (pid, program_name(pid))).collect())
}

/// Returns the IDs of the mounts of an overlay and of all mounts below them, in the mount namespaces of these processes.
fn mount_ids(pids: &[Pid], source: &str, device: (u32, u32)) -> HashSet<u64> {
    let pattern = format!(" - overlay {source} ");
    let device = format!("{}:{}", device.0, device.1);
    // A mount ID is the same for all processes that see the mount, and unique on the host.
    let (mut ids, mut parents) = (HashSet::new(), HashMap::new());
    for pid in pids {
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let table = String::from_utf8_lossy(&table);
        if !table.contains(&pattern) {
            continue;
        }
        for line in table.lines() {
            let mut fields = line.split(' ');
            let mut number = || fields.next()?.parse::<u64>().ok();
            if let (Some(id), Some(parent)) = (number(), number()) {
                parents.insert(id, parent);
                if fields.next() == Some(&device) && line.contains(&pattern) {
                    ids.insert(id);
                }
            }
        }
    }
    loop {
        let below = parents.iter().filter(|(id, parent)| !ids.contains(*id) && ids.contains(*parent));
        let below: Vec<u64> = below.map(|(id, _)| *id).collect();
        if below.is_empty() {
            return ids;
        }
        ids.extend(below);
    }
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
