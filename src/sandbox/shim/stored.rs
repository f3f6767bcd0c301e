//! The store of the stand-in: opened only if it is trusted, and what a process that may not read it can know.

use std::path::PathBuf;
use std::time::Duration;

use super::{ShimError, ShimSettings};
use crate::daemon::{ControlRequest, ControlResponse, ask, control_socket};
use crate::store::{Store, StoreError};

/// How long to wait for the daemon's status.
const STATUS: Duration = Duration::from_secs(2);

/// Opens the store; `None` if there is none.
///
/// # Errors
/// The store cannot be opened, or another user could change it: it says where the images are mounted.
pub(super) fn open_store(settings: &ShimSettings) -> Result<Option<Store>, ShimError> {
    if !Store::exists(&settings.store)? {
        return Ok(None);
    }
    let store = Store::open(&settings.store)?;
    store.require_trusted()?;
    Ok(Some(store))
}

/// Returns the mountpoint of the running or last daemon of the store.
///
/// A stand-in that is not set-uid may be unable to read the store. It cannot make a root, but must know calls for an image, so it
/// asks the daemon.
fn daemon_mountpoint(settings: &ShimSettings) -> Result<Option<PathBuf>, ShimError> {
    let refused = match open_store(settings) {
        Ok(store) => {
            let daemon = store.map(|store| store.last_daemon()).transpose()?.flatten();
            return Ok(daemon.map(|daemon| daemon.mountpoint));
        }
        Err(error @ ShimError::Store(StoreError::Private { .. })) => error,
        Err(error) => return Err(error),
    };
    match ask(&control_socket(&settings.run_dir), ControlRequest::Status, STATUS) {
        Ok(ControlResponse::Status(status)) => Ok(Some(status.mountpoint)),
        _ => Err(refused),
    }
}

/// Returns the mountpoint of the images: the configured one, or that of the running or last daemon.
///
/// A call for the mountpoint of a daemon that has ended is a call for an image. Otherwise its program would run on the host.
pub(super) fn known_mountpoint(settings: &ShimSettings) -> Result<Option<PathBuf>, ShimError> {
    if let Some(path) = &settings.mountpoint {
        return Ok(Some(path.clone()));
    }
    daemon_mountpoint(settings)
}
