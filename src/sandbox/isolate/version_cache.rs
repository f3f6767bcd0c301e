//! A cache of isolate's version, so that most runs need not start isolate to read it. It is used only for the program file that
//! it describes.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{IsolateError, IsolateVersion, cache_file};

/// Name of the cache file in the run directory.
const CACHE_FILE: &str = "isolate-version";

/// A version, and the identity of its program file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CachedVersion {
    device: u64,
    ino: u64,
    size: u64,
    changed: (i64, i64),
    version: IsolateVersion,
}

impl CachedVersion {
    fn new(program: &Metadata, version: IsolateVersion) -> Self {
        let changed = (program.ctime(), program.ctime_nsec());
        Self { device: program.dev(), ino: program.ino(), size: program.size(), changed, version }
    }
}

impl IsolateVersion {
    /// Returns the version of the program at `path`, which is started only if its file has changed since the last call.
    /// `program` holds the attributes of this file. The cache is in `run_dir`, which need not exist. The program runs as
    /// `identity`, a user and a group, if that is given.
    ///
    /// # Errors
    /// The version cannot be detected: see [`IsolateVersion::detect`].
    pub fn cached(
        path: &Path,
        program: &Metadata,
        run_dir: &Path,
        identity: Option<(u32, u32)>,
    ) -> Result<Self, IsolateError> {
        let file = run_dir.join(CACHE_FILE);
        if let Some(cached) = cache_file::read::<CachedVersion>(&file)
            && cached == CachedVersion::new(program, cached.version)
        {
            return Ok(cached.version);
        }
        let version = Self::detect(path, identity)?;
        // If the cache cannot be written, the next call detects the version again.
        let _ = cache_file::write(&file, &CachedVersion::new(program, version));
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    /// A program `isolate` in `dir` that prints `output` and adds a line to the file `runs` each time it is run.
    fn program(dir: &Path, output: &str) -> PathBuf {
        let path = dir.join("isolate");
        let runs = dir.join("runs");
        fs::write(&path, format!("#!/bin/sh\necho >> {}\necho '{output}'\n", runs.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn run_count(dir: &Path) -> usize {
        fs::read_to_string(dir.join("runs")).map_or(0, |text| text.lines().count())
    }

    fn cached(path: &Path, dir: &Path) -> IsolateVersion {
        IsolateVersion::cached(path, &fs::metadata(path).unwrap(), dir, None).unwrap()
    }

    #[test]
    fn version_is_detected_once_while_the_program_file_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 1.10.1");
        for _ in 0..3 {
            assert_eq!(cached(&path, dir.path()), IsolateVersion::new(1, 10, 1));
        }
        assert_eq!(run_count(dir.path()), 1);
        program(dir.path(), "The process isolator 2.6");
        assert_eq!(cached(&path, dir.path()), IsolateVersion::new(2, 6, 0));
        assert_eq!(run_count(dir.path()), 2);
        // A damaged cache is ignored.
        fs::write(dir.path().join(CACHE_FILE), "{").unwrap();
        assert_eq!(cached(&path, dir.path()), IsolateVersion::new(2, 6, 0));
        assert_eq!(run_count(dir.path()), 3);
    }

    #[test]
    fn cache_that_others_can_write_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        let file = dir.path().join(CACHE_FILE);
        cache_file::write(
            &file,
            &CachedVersion::new(&fs::metadata(&path).unwrap(), IsolateVersion::new(1, 8, 0)),
        )
        .unwrap();
        assert_eq!(cached(&path, dir.path()), IsolateVersion::new(1, 8, 0));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(cached(&path, dir.path()), IsolateVersion::new(2, 6, 0));
    }

    #[test]
    fn version_is_detected_if_the_cache_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        assert_eq!(cached(&path, &dir.path().join("missing")), IsolateVersion::new(2, 6, 0));
    }
}
