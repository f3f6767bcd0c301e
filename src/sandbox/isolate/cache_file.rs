//! Small files in the run directory that keep what isolate has printed, so that most runs need not start it for that.
//!
//! The set-uid stand-in reads them too, so a file is used only if no user but root can have written it.

use std::fs::{self, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file that is read, in bytes. All take less as JSON.
const FILE_MAX: u64 = 4 << 10;

/// Checks that only root or the effective user of this process can have written a file or directory.
///
/// # Errors
/// The reason why another user can have written it.
pub fn is_trusted(metadata: &Metadata) -> Result<(), &'static str> {
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Err("it does not belong to root")
    } else if metadata.mode() & 0o022 != 0 {
        Err("users other than root can write it")
    } else {
        Ok(())
    }
}

/// Reads a cache file. Returns `None` if it does not exist, is damaged, or is not trusted.
pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || is_trusted(&metadata).is_err() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes or replaces a cache file.
pub(super) fn write<T: Serialize>(file: &Path, cached: &T) -> std::io::Result<()> {
    let new = file.with_extension(std::process::id().to_string());
    let text = serde_json::to_vec(cached)?;
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
