//! The process of a request, and its ancestors.

use std::fs;

/// Longest chain of parents that is recorded.
const ANCESTORS_MAX: usize = 64;

/// Returns the process of a thread, and the ancestors of that process; `None` if the thread has ended or is not visible.
pub(super) fn family(tid: u32) -> Option<(u32, Vec<u32>)> {
    let (pid, mut parent) = process_and_parent(tid)?;
    let mut ancestors = Vec::new();
    while parent != 0 && ancestors.len() < ANCESTORS_MAX {
        ancestors.push(parent);
        parent = process_and_parent(parent).map_or(0, |(_, parent)| parent);
    }
    Some((pid, ancestors))
}

/// Returns the process of a thread, and the parent of that process (proc_pid_status(5)).
fn process_and_parent(tid: u32) -> Option<(u32, u32)> {
    if tid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some((field("Tgid:")?, field("PPid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_of_this_thread_is_this_process_and_its_parents() {
        let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let (pid, ancestors) = family(tid).unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!(ancestors.first().copied(), Some(std::os::unix::process::parent_id()));
        assert_eq!(family(0), None);
    }
}
