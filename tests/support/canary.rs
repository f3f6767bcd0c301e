//! A directory of the host that no image may change or show.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tempfile::TempDir;

use crate::images::run;
use crate::trees;

/// The content of the canary's files, which occurs nowhere else.
pub const SECRET: &str = "of the host";

/// The directory. Its permissions allow everything to everyone: an attempt must fail because it does not reach the directory.
#[derive(Debug)]
pub struct Canary {
    dir: TempDir,
    before: Vec<String>,
}

impl Canary {
    /// Makes a canary in `/var/tmp`; sandboxes have a `/tmp` of their own.
    pub fn new() -> Self {
        Self::in_directory(Path::new("/var/tmp"))
    }

    /// Makes a canary in a directory, beside what is written there.
    pub fn in_directory(above: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-canary").tempdir_in(above).unwrap();
        let script = "cd $0; printf '%s' \"$1\" >secret; printf '%s' \"$1\" >hostname; mkdir -p dir; printf '%s' \"$1\" >dir/inner
            printf '#!/bin/sh\\necho %s\\n' \"$1\" >program; chmod 0777 . dir program; chmod 0666 secret hostname dir/inner
            ln secret linked; ln -s secret link; ln -s dir around; mkfifo fifo
            chown 2001:2002 secret dir; setfattr -n trusted.canary -v here secret dir .
            touch -h -d @1000000000.5 secret hostname dir/inner program link around fifo dir .";
        run("sh", &["-euc", script, dir.path().to_str().unwrap(), SECRET]);
        let before = describe(dir.path());
        assert!(before.len() >= 10, "{before:#?}");
        Self { dir, before }
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// The last component of its path.
    pub fn name(&self) -> &str {
        self.dir.path().file_name().unwrap().to_str().unwrap()
    }

    /// Checks that nothing has changed: bytes, modes, owners, times, extended attributes, names and link counts. The change
    /// times show writes that were undone.
    #[track_caller]
    pub fn assert_untouched(&self, after: &str) {
        let now = describe(self.dir.path());
        let gone: Vec<_> = self.before.iter().filter(|line| !now.contains(line)).collect();
        let new: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        assert!(now == self.before, "{after} changed the canary: before {gone:#?}, after {new:#?}");
    }
}

fn describe(dir: &Path) -> Vec<String> {
    let seen = trees::snapshot(dir).into_iter().zip(trees::paths(dir));
    seen.map(|(line, path)| {
        let meta = fs::symlink_metadata(dir.join(path)).unwrap();
        format!("{line} inode {} changed {}.{}", meta.ino(), meta.ctime(), meta.ctime_nsec())
    })
    .collect()
}
