//! The isolate to become: where it is, and which version.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Rights, ShimError};
use crate::sandbox::isolate::Version;

/// Where a set-uid stand-in looks for isolate when the configuration does not say. It lies at one of the first places itself.
const PLACES: [&str; 4] = [
    "/usr/local/bin/isolate",
    "/usr/bin/isolate",
    "/usr/local/lib/rcx-imagefs/isolate",
    "/usr/lib/rcx-imagefs/isolate",
];
/// The file in the run directory that keeps the version, so that not every call starts isolate once more to ask for it.
const KNOWN: &str = "isolate-version";
/// More than [`Known`] can take as JSON.
const KNOWN_MAX: u64 = 4 << 10;

/// The real isolate.
#[derive(Debug)]
pub(super) struct Real {
    pub(super) path: PathBuf,
    metadata: Metadata,
}

/// A version, and the file that it is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    device: u64,
    ino: u64,
    size: u64,
    changed: (i64, i64),
    version: Version,
}

impl Real {
    /// Finds it: at the configured path, or in the `PATH` of a caller who is trusted, or who gives nothing by it but their
    /// own rights; else at the usual places. It is never this program.
    ///
    /// # Errors
    /// [`ShimError::NoIsolate`]; [`ShimError::Itself`] and [`ShimError::Untrusted`] for the configured one.
    pub(super) fn find(
        configured: Option<&Path>,
        rights: Rights,
        search: Option<&OsStr>,
    ) -> Result<Self, ShimError> {
        let own = fs::metadata("/proc/self/exe").ok();
        let candidate = |path: &Path| -> Option<Result<Self, ShimError>> {
            let metadata = fs::metadata(path).ok().filter(Metadata::is_file)?;
            if metadata.mode() & 0o111 == 0 {
                return None;
            }
            if own.as_ref().is_none_or(|own| is_same(own, &metadata)) {
                return Some(Err(ShimError::Itself(path.to_owned())));
            }
            let real = Self { path: path.to_owned(), metadata };
            if rights == Rights::SetUid
                && let Err(why) = is_trusted(&real.metadata)
            {
                return Some(Err(ShimError::Untrusted { path: path.to_owned(), why }));
            }
            Some(Ok(real))
        };
        if let Some(path) = configured {
            return candidate(path).unwrap_or_else(|| Err(ShimError::NoIsolate(vec![path.to_owned()])));
        }
        let places: Vec<PathBuf> = match (rights, search) {
            (Rights::Root | Rights::None, Some(search)) => {
                std::env::split_paths(search).map(|place| place.join("isolate")).collect()
            }
            _ => PLACES.iter().map(PathBuf::from).collect(),
        };
        let found = places.iter().filter_map(|path| candidate(path)).find_map(Result::ok);
        found.ok_or(ShimError::NoIsolate(places))
    }

    /// Its version, asked for once as long as the file stays the same.
    ///
    /// # Errors
    /// That it does not tell, or is too old.
    pub(super) fn version(&self, run_dir: &Path) -> Result<Version, ShimError> {
        let file = run_dir.join(KNOWN);
        if let Some(known) = read(&file)
            && known == self.known(known.version)
        {
            return Ok(known.version);
        }
        let version = Version::detect(&self.path)?;
        // Without it, the next call asks again.
        let _ = write(&file, &self.known(version));
        Ok(version)
    }

    fn known(&self, version: Version) -> Known {
        let is = &self.metadata;
        let changed = (is.ctime(), is.ctime_nsec());
        Known { device: is.dev(), ino: is.ino(), size: is.size(), changed, version }
    }
}

/// The same file, or a copy: two copies that take each other for the real one would execute each other for ever.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino()) || one.size() == other.size()
}

/// Whether nobody but root, or who this process acts as, can have written a file or directory.
pub(super) fn is_trusted(metadata: &Metadata) -> Result<(), &'static str> {
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Err("it does not belong to root")
    } else if metadata.mode() & 0o022 != 0 {
        Err("others than root can write it")
    } else {
        Ok(())
    }
}

fn read(file: &Path) -> Option<Known> {
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

fn write(file: &Path, known: &Known) -> std::io::Result<()> {
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

    use super::*;

    /// A directory with a program `isolate` that prints `output` and adds a line to `asked` each time it is run.
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

    #[test]
    fn isolate_is_searched_for_where_the_caller_may_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        let search = std::env::join_paths([Path::new("/nonexistent"), dir.path()]).unwrap();
        let found = Real::find(None, Rights::Root, Some(&search)).unwrap();
        assert_eq!(found.path, path);
        // Of what is there, and not of what the caller wants to be there.
        match Real::find(None, Rights::SetUid, Some(&search)) {
            Ok(real) => assert!(PLACES.iter().any(|place| real.path == Path::new(place))),
            Err(error) => assert!(matches!(&error, ShimError::NoIsolate(_)), "{error}"),
        }
        let missing = dir.path().join("missing");
        let error = Real::find(Some(&missing), Rights::Root, Some(&search)).unwrap_err();
        assert_eq!(error.to_string(), format!("there is no isolate at {}", missing.display()));
    }

    #[test]
    fn configured_isolate_is_neither_this_program_nor_somebody_elses() {
        let own = std::env::current_exe().unwrap();
        assert!(matches!(Real::find(Some(&own), Rights::Root, None), Err(ShimError::Itself(_))));
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        fs::copy(&own, &copy).unwrap();
        assert!(matches!(Real::find(Some(&copy), Rights::Root, None), Err(ShimError::Itself(_))));

        let path = program(dir.path(), "");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(Real::find(Some(&path), Rights::Root, None).is_ok());
        let error = Real::find(Some(&path), Rights::SetUid, None).unwrap_err();
        assert!(matches!(error, ShimError::Untrusted { .. }), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Real::find(Some(&path), Rights::Root, None), Err(ShimError::NoIsolate(_))));
    }

    #[test]
    fn version_is_asked_for_once_while_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 1.10.1");
        let find = || Real::find(Some(&path), Rights::Root, None).unwrap();
        for _ in 0..3 {
            assert_eq!(find().version(dir.path()).unwrap(), Version::new(1, 10, 1));
        }
        assert_eq!(asked(dir.path()), 1);
        program(dir.path(), "The process isolator 2.6");
        assert_eq!(find().version(dir.path()).unwrap(), Version::new(2, 6, 0));
        assert_eq!(asked(dir.path()), 2);
        // What is not what was written is not believed.
        fs::write(dir.path().join(KNOWN), "{").unwrap();
        assert_eq!(find().version(dir.path()).unwrap(), Version::new(2, 6, 0));
        assert_eq!(asked(dir.path()), 3);
    }

    #[test]
    fn version_that_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "The process isolator 2.6");
        let real = Real::find(Some(&path), Rights::Root, None).unwrap();
        let known = dir.path().join(KNOWN);
        write(&known, &real.known(Version::new(1, 8, 0))).unwrap();
        assert_eq!(real.version(dir.path()).unwrap(), Version::new(1, 8, 0));
        fs::set_permissions(&known, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(real.version(dir.path()).unwrap(), Version::new(2, 6, 0));
    }
}
