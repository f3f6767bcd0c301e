//! Small filesystems in memory, for tests that fill a disk or need a mount.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::images::run;

/// A tmpfs that is mounted until it is dropped.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// Mounts a tmpfs of this size, as in `20m`; all users can enter it.
    pub fn new(size: &str) -> Self {
        Self::with_options(&format!("size={size},mode=755"))
    }

    /// Mounts a tmpfs with options of `mount`, as in `size=20m,nr_inodes=500`.
    pub fn with_options(options: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-disk").tempdir().expect("temporary directory");
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(dir.path())]);
        Self(dir)
    }

    /// Changes options of the mount, as in `size=400m` or `ro`.
    pub fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), text(self.path())]);
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
