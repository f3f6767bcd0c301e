//! Finds the processes that keep a root, for messages and for ending what a dead sandbox left.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::process::Pid;

/// The processes in whose mount namespace the overlay with this source is mounted, as far as their own root shows it.
///
/// For a leased root these are the processes of its sandbox. For a named root, as long as it is mounted for everybody, it
/// is nearly everybody. Reads all of `/proc`.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn holders(source: &str) -> io::Result<Vec<Pid>> {
    let mark = format!(" - overlay {source} ");
    let holds = |pid: &Pid| {
        // It may have ended meanwhile.
        let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    Ok(all()?.into_iter().filter(holds).collect())
}

/// One process that works in the overlay with this source and device, in whatever namespace, and its program: one that has
/// its root, its current directory, its program or an open file there. The source alone would not do: another store may
/// have a root of the same name.
pub(crate) fn user(source: &str, device: (u32, u32)) -> io::Result<Option<(Pid, String)>> {
    let mark = format!(" - overlay {source} ");
    let device = format!("{}:{}", device.0, device.1);
    let pids = all()?;
    // A mount's number is the same for everybody who sees it, and nobody else's.
    let mut mounts = HashSet::new();
    for pid in &pids {
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let table = String::from_utf8_lossy(&table);
        let of_device = |line: &&str| line.split(' ').nth(2) == Some(&device);
        let ours = table.lines().filter(|line| line.contains(&mark)).filter(of_device);
        mounts.extend(ours.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()));
    }
    if mounts.is_empty() {
        return Ok(None);
    }
    let is_there = |path: &Path| {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID)
            .is_ok_and(|stat| mounts.contains(&stat.stx_mnt_id))
    };
    let uses = |pid: &Pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        ["root", "cwd", "exe"].iter().any(|link| is_there(&process.join(link)))
            || fs::read_dir(process.join("fd"))
                .is_ok_and(|files| files.flatten().any(|file| is_there(&file.path())))
    };
    Ok(pids.into_iter().find(uses).map(|pid| (pid, program(pid))))
}

/// What a process calls itself.
fn program(pid: Pid) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// All processes.
pub(crate) fn all() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw));
    }
    Ok(pids)
}
