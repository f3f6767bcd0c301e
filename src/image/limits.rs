//! Limits on the size of documents.

use super::ManifestError;

/// Largest manifest or index in bytes: the size that registries must accept (distribution-spec, "Pushing Manifests").
pub const MANIFEST_MAX: u64 = 4 << 20;

/// Largest image configuration in bytes. No specification limits it; the largest ones known have some 100 KiB of history.
pub const CONFIG_MAX: u64 = 8 << 20;

/// Maximum number of layers of an image. Docker stops at 127 and overlayfs at 500; each layer costs an open index.
pub const LAYERS_MAX: usize = 1000;

/// Maximum number of manifests of an index.
pub(super) const INDEX_ENTRIES_MAX: usize = 10_000;

/// Refuses a document that is larger than its limit.
pub(super) fn check_length(bytes: &[u8], limit: u64) -> Result<(), ManifestError> {
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > limit { Err(ManifestError::TooLong { size, limit }) } else { Ok(()) }
}

/// Entries of an index that are passed over because they turn out to be no image.
pub const TWINS_MAX: usize = 4;
