//! The memory of the host.

use std::fs;

/// Returns the part of the host's memory that programs can use without swapping, between 0 and 1; `None` if it is unknown
/// (`MemAvailable` in proc_meminfo(5)).
#[must_use]
pub fn available_memory() -> Option<f64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = table.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().ok()
    };
    Some(field("MemAvailable")? / field("MemTotal")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_of_this_host_is_available() {
        let part = available_memory().unwrap();
        assert!(part > 0.0 && part < 1.0, "{part}");
    }
}
