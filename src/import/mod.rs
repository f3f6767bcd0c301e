//! Images from files: OCI layouts (a directory or a tar of one) and `docker save` archives.
//!
//! An archive is somebody else's. Nothing outside it is ever read: links in a tar are followed among its own members, and
//! a directory is opened beneath itself. Manifests and configs are checked against their digests here; layers are
//! hashed by whoever stores them.

mod archive;
mod docker;
mod error;
mod layout;
mod members;

use crate::image::{Manifest, ManifestDigest, Reference, Tag};
use crate::registry::ResolvedIndex;

pub use archive::{Archive, BlobReader};
pub use error::ImportError;

/// One image of an archive, for the wanted platform.
#[derive(Debug, Clone)]
pub struct ImportImage {
    /// Its full names in the archive.
    pub names: Vec<Reference>,
    /// Tags that stand in the archive without a name: OCI layouts often say only those.
    pub tags: Vec<Tag>,
    /// Digest of the manifest.
    pub manifest_digest: ManifestDigest,
    /// The manifest read.
    pub manifest: Manifest,
    /// The manifest's bytes: for an archive that has none, always the same for the same image.
    pub manifest_bytes: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The multi-platform index that led to it, where one did.
    pub index: Option<ResolvedIndex>,
}
