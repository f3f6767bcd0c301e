//! Finds the real isolate.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::trusted::require_trusted_path;
use super::{Caller, Rights, ShimError};
use crate::sandbox::isolate::IsolateVersion;

/// The paths at which a set-uid stand-in searches for isolate if the configuration does not name it. The stand-in itself is
/// usually installed at one of the first two paths.
const DEFAULT_PATHS: [&str; 4] = [
    "/usr/local/bin/isolate",
    "/usr/bin/isolate",
    "/usr/local/lib/rcx-imagefs/isolate",
    "/usr/lib/rcx-imagefs/isolate",
];

/// The real isolate.
#[derive(Debug)]
pub(super) struct RealIsolate {
    pub(super) path: PathBuf,
    metadata: Metadata,
}

impl RealIsolate {
    /// Finds isolate at the configured path, otherwise in `search`, otherwise at the default paths. The result is never this
    /// program.
    ///
    /// `search` is the caller's `PATH`. A set-uid stand-in ignores it; without privileges, it is harmless.
    ///
    /// # Errors
    /// [`ShimError::NoIsolate`]; for a configured path also [`ShimError::Itself`] and [`ShimError::Untrusted`].
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
            if own.as_ref().is_none_or(|own| is_same(own, path, &metadata)) {
                return Some(Err(ShimError::Itself(path.to_owned())));
            }
            if rights == Rights::SetUid
                && let Err(error) = require_trusted_path(path)
            {
                return Some(Err(error));
            }
            Some(Ok(Self { path: path.to_owned(), metadata }))
        };
        if let Some(path) = configured {
            return candidate(path).unwrap_or_else(|| Err(ShimError::NoIsolate(vec![path.to_owned()])));
        }
        let paths: Vec<PathBuf> = match (rights, search) {
            (Rights::Root | Rights::None, Some(search)) => {
                std::env::split_paths(search).map(|directory| directory.join("isolate")).collect()
            }
            _ => DEFAULT_PATHS.iter().map(PathBuf::from).collect(),
        };
        let isolate = paths.iter().filter_map(|path| candidate(path)).find_map(Result::ok);
        isolate.ok_or(ShimError::NoIsolate(paths))
    }

    /// Returns the version of isolate. It is cached in `run_dir`. If isolate must be started for it, it runs with the rights of
    /// the caller, as in every other call.
    ///
    /// # Errors
    /// The program prints no version, or the version is too old.
    pub(super) fn version(&self, run_dir: &Path, caller: &Caller) -> Result<IsolateVersion, ShimError> {
        Ok(IsolateVersion::cached(&self.path, &self.metadata, run_dir, caller.identity())?)
    }
}

/// Whether the file at `path` is this program, or a copy of it: two copies of the stand-in that take each other for isolate
/// would execute each other for ever.
fn is_same(own: &Metadata, path: &Path, metadata: &Metadata) -> bool {
    if (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()) {
        return true;
    }
    // Only files of the same size are read. An unreadable file is no copy that this program would execute.
    own.size() == metadata.size()
        && matches!((fs::read("/proc/self/exe"), fs::read(path)), (Ok(own), Ok(other)) if own == other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program `isolate` in `dir`.
    fn program(dir: &Path) -> PathBuf {
        let path = dir.join("isolate");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn path_of_the_caller_is_searched_only_without_set_uid() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path());
        let search = std::env::join_paths([Path::new("/nonexistent"), dir.path()]).unwrap();
        let real = RealIsolate::find(None, Rights::Root, Some(&search)).unwrap();
        assert_eq!(real.path, path);
        match RealIsolate::find(None, Rights::SetUid, Some(&search)) {
            Ok(real) => assert!(DEFAULT_PATHS.iter().any(|default| real.path == Path::new(default))),
            Err(error) => assert!(matches!(&error, ShimError::NoIsolate(_)), "{error}"),
        }
        let missing = dir.path().join("missing");
        let error = RealIsolate::find(Some(&missing), Rights::Root, Some(&search)).unwrap_err();
        assert_eq!(error.to_string(), format!("there is no isolate at {}", missing.display()));
    }

    #[test]
    fn configured_isolate_must_be_another_program_that_only_root_can_write() {
        let own = std::env::current_exe().unwrap();
        assert!(matches!(RealIsolate::find(Some(&own), Rights::Root, None), Err(ShimError::Itself(_))));
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        fs::copy(&own, &copy).unwrap();
        assert!(matches!(RealIsolate::find(Some(&copy), Rights::Root, None), Err(ShimError::Itself(_))));
        // Another program may have the same size.
        let file = fs::File::options().write(true).open(&copy).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"#!/bin/sh", 0).unwrap();
        drop(file);
        assert!(RealIsolate::find(Some(&copy), Rights::Root, None).is_ok());

        let path = program(dir.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(RealIsolate::find(Some(&path), Rights::Root, None).is_ok());
        let error = RealIsolate::find(Some(&path), Rights::SetUid, None).unwrap_err();
        assert!(matches!(error, ShimError::Untrusted { .. }), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(RealIsolate::find(Some(&path), Rights::SetUid, None).is_ok());
        // Whoever can write to a directory of the path can replace the program.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o757)).unwrap();
        let error = RealIsolate::find(Some(&path), Rights::SetUid, None).unwrap_err();
        assert!(matches!(&error, ShimError::Untrusted { path, .. } if path == dir.path()), "{error}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(RealIsolate::find(Some(&path), Rights::Root, None), Err(ShimError::NoIsolate(_))));
    }
}
