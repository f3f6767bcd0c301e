//! What is remembered of isolate's version, so that not every run starts isolate once more to ask for it.
//!
//! The memory is one file in the run directory. A set-uid stand-in reads it too: it counts only where nobody but root can
//! have written it, and only for the very file that it was asked of.

use std::fs::{self, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{IsolateError, IsolateVersion};

/// The file in the run directory.
const KNOWN: &str = "isolate-version";
/// More than [`CachedVersion`] can take as JSON, in bytes.
const KNOWN_MAX: u64 = 4 << 10;

/// A version, and the file that it is of.
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
    /// The version of the program at `path`, asked for once as long as its file stays the same. `program` is what that file
    /// is; `run_dir` is where it is remembered, which need not exist.
    ///
    /// # Errors
    /// As [`IsolateVersion::detect`].
    pub fn cached(path: &Path, program: &Metadata, run_dir: &Path) -> Result<Self, IsolateError> {
        let file = run_dir.join(KNOWN);
        if let Some(known) = read(&file)
            && known == CachedVersion::new(program, known.version)
        {
            return Ok(known.version);
        }
        let version = Self::detect(path)?;
        // Without it, the next call asks again.
        let _ = write(&file, &CachedVersion::new(program, version));
        Ok(version)
    }
}

/// Whether nobody but root, or who this process acts as, can have written a file or directory.
///
/// # Errors
/// Why that is not so.
pub fn is_trusted(metadata: &Metadata) -> Result<(), &'static str> {
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Err("it does not belong to root")
    } else if metadata.mode() & 0o022 != 0 {
        Err("others than root can write it")
    } else {
        Ok(())
    }
}

fn read(file: &Path) -> Option<CachedVersion> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || is_trusted(&metadata).is_err() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(KNOWN_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(file: &Path, known: &CachedVersion) -> std::io::Result<()> {
    let new = file.with_extension(std::process::id().to_string());
    let text = serde_json::to_vec(known)?;
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&new)
        .and_then(|mut file: File| file.write_all(&text))
        .and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    /// A program `isolate` in `dir` that prints `output` and adds a line to `asked` each time it is run.
    fn program(dir: &Path, output: &str) -> PathBuf {
        let path = dir.join("isolate");
        let asked = dir.join("asked");
        fs::write(&path, format!("#!/bin/sh\necho >> {}\necho '{output}'\n", asked.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn asked(dir: &Path) -> usize {
        fs::read_to_string(dir.join("asked")).map_or(0, |text| text.lines().count())
    }

    fn known(path: &Path, dir: &Path) -> IsolateVersion {
        IsolateVersion::cached(path, &fs::metadata(path).unwrap(), dir).unwrap()
    }

    #[test]
    fn version_is_asked_for_once_while_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 1.10.1");
        for _ in 0..3 {
            assert_eq!(known(&path, dir.path()), IsolateVersion::new(1, 10, 1));
        }
        assert_eq!(asked(dir.path()), 1);
        program(dir.path(), "The process isolator 2.6");
        assert_eq!(known(&path, dir.path()), IsolateVersion::new(2, 6, 0));
        assert_eq!(asked(dir.path()), 2);
        // What is not what was written is not believed.
        fs::write(dir.path().join(KNOWN), "{").unwrap();
        assert_eq!(known(&path, dir.path()), IsolateVersion::new(2, 6, 0));
        assert_eq!(asked(dir.path()), 3);
    }

    #[test]
    fn version_that_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        let file = dir.path().join(KNOWN);
        write(&file, &CachedVersion::new(&fs::metadata(&path).unwrap(), IsolateVersion::new(1, 8, 0)))
            .unwrap();
        assert_eq!(known(&path, dir.path()), IsolateVersion::new(1, 8, 0));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(known(&path, dir.path()), IsolateVersion::new(2, 6, 0));
    }

    #[test]
    fn version_is_told_where_it_cannot_be_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        assert_eq!(known(&path, &dir.path().join("missing")), IsolateVersion::new(2, 6, 0));
    }
}
