//! Finds the processes that keep a root, for messages and for ending what a dead sandbox left.

use std::fs;
use std::io;

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

/// All processes.
pub(super) fn all() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw));
    }
    Ok(pids)
}
