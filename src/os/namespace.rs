//! The namespaces of this process.

/// Returns a number that identifies the PID namespace of this process; 0 if it is unknown.
///
/// Process IDs that two processes exchange mean the same only if both are in one namespace.
#[must_use]
pub fn pid_namespace() -> u64 {
    rustix::fs::stat("/proc/self/ns/pid").map_or(0, |stat| stat.st_ino)
}
