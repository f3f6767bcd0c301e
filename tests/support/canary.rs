//! A directory of the host's that nothing of an image may change or show.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tempfile::TempDir;

use crate::images::run;
use crate::trees;

/// What stands in the canary's files, and nowhere else.
pub const SECRET: &str = "of the host";

/// The directory. Whoever gets there can do anything: what keeps others out must be that they do not get there.
#[derive(Debug)]
pub struct Canary {
    dir: TempDir,
    before: Vec<String>,
}

impl Canary {
    /// Not in `/tmp`, which each sandbox has of its own.
    pub fn new() -> Self {
        Self::in_directory(Path::new("/var/tmp"))
    }

    /// In a directory, so that it stands beside what is written there.
    pub fn in_directory(above: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-canary").tempdir_in(above).unwrap();
        let script = "cd $0; printf '%s' \"$1\" >secret; printf '%s' \"$1\" >hostname; mkdir -p dir; printf '%s' \"$1\" >dir/inner
            printf '#!/bin/sh\\necho %s\\n' \"$1\" >program; chmod 0777 . dir program; chmod 0666 secret hostname dir/inner
            ln secret linked; ln -s secret link; ln -s dir around; mkfifo fifo
            chown 2001:2002 secret dir; setfattr -n trusted.canary -v here secret dir .
            touch -h -d @1000000000.5 secret hostname dir/inner program link around fifo dir .";
        run("sh", &["-euc", script, dir.path().to_str().unwrap(), SECRET]);
        let before = look(dir.path());
        assert!(before.len() >= 10, "{before:#?}");
        Self { dir, before }
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Its last name.
    pub fn name(&self) -> &str {
        self.dir.path().file_name().unwrap().to_str().unwrap()
    }

    /// Everything is as it was: bytes, modes, owners, times, extended attributes, names, link counts; and nothing of it has
    /// been written at all, which would show in the times of change.
    #[track_caller]
    pub fn is_untouched(&self, after: &str) {
        let now = look(self.dir.path());
        let gone: Vec<_> = self.before.iter().filter(|line| !now.contains(line)).collect();
        let new: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        assert!(now == self.before, "{after} changed the canary: there was {gone:#?}, there is {new:#?}");
    }
}

fn look(dir: &Path) -> Vec<String> {
    let seen = trees::snapshot(dir).into_iter().zip(trees::paths(dir));
    seen.map(|(line, path)| {
        let meta = fs::symlink_metadata(dir.join(path)).unwrap();
        format!("{line} inode {} changed {}.{}", meta.ino(), meta.ctime(), meta.ctime_nsec())
    })
    .collect()
}
