//! The files that the set-uid stand-in uses: nobody but root may be able to change or replace them.

use std::fs::File;
use std::path::Path;

use super::{ShimError, ShimSettings};
use crate::os::untrusted_part;
use crate::sandbox::isolate::is_trusted;

/// The directory of a store that holds everything that is not an OCI layout.
const IN_STORE: &str = "rcx-imagefs";

/// Checks that only root or the effective user of this process can have written an open file.
///
/// # Errors
/// [`ShimError::Untrusted`].
pub fn require_trusted(file: &File, path: &Path) -> Result<(), ShimError> {
    let untrusted = |reason: &str| ShimError::Untrusted { path: path.to_owned(), reason: reason.to_owned() };
    let metadata = file.metadata().map_err(|_| untrusted("its owner and mode cannot be read"))?;
    is_trusted(&metadata).map_err(untrusted)
}

/// Checks that no user but root and the effective user of this process can make a path lead elsewhere.
///
/// # Errors
/// [`ShimError::Untrusted`] names the part of the path that others can change.
pub fn require_trusted_path(path: &Path) -> Result<(), ShimError> {
    untrusted_part(path)?.map_or(Ok(()), |part| Err(part.into()))
}

/// Checks the directories of the configuration on behalf of a set-uid program.
///
/// Of the mountpoint, only the directories above it are examined: the daemon may not answer. What is mounted there is checked
/// when it is used.
pub(super) fn require_trusted_directories(settings: &ShimSettings) -> Result<(), ShimError> {
    for path in [&settings.store, &settings.store.join(IN_STORE), &settings.run_dir, &settings.homes.path()] {
        require_trusted_path(path)?;
    }
    match settings.mountpoint.as_deref().and_then(Path::parent) {
        Some(above) => require_trusted_path(above),
        None => Ok(()),
    }
}
