//! Images from files: OCI layouts (a directory or a tar) and `docker save` archives.
//!
//! Archives are untrusted. Nothing outside an archive is ever read: links in a tar lead only to its own members, and the
//! files of a directory are opened with `RESOLVE_BENEATH`. The digests of manifests and configurations are verified here. The
//! digests of layers are verified when the layers are stored.
//!
//! The files in order of dependency (each uses only those above it):
//!
//! | file | what it does |
//! |---|---|
//! | `error` | the errors of an archive |
//! | `compressed` | reads a compressed tar at any position |
//! | `tar_bytes` | the bytes of a tar, compressed or not |
//! | `members` | finds the files of a tar |
//! | `files` | reads the files of a directory or a tar |
//! | `found` | images and blobs that were found |
//! | `docker` | finds the images in docker's own format |
//! | `legacy` | finds the images in docker's format before version 1.10 |
//! | `layout` | finds the images of an OCI layout |
//! | `archive` | opens an archive of either format |

mod archive;
mod compressed;
mod docker;
mod error;
mod files;
mod found;
mod layout;
mod legacy;
mod members;
mod tar_bytes;

use crate::image::{Manifest, ManifestDigest, Reference, Tag};
use crate::registry::ResolvedIndex;

pub use archive::Archive;
pub use error::ImportError;
pub use files::BlobReader;
pub use found::RefusedImage;

/// Most images of an archive, and most names of all of them together. Each image costs the time to parse its manifest and
/// configuration, and each name one write of the store's index.json.
const IMAGES_MAX: usize = 1000;
const NAMES_MAX: usize = 1000;

/// Longest path in an archive, in bytes: `PATH_MAX` of Linux.
const PATH_MAX: usize = 4096;

/// An image of an archive, for the requested platform.
#[derive(Debug, Clone)]
pub struct ImportImage {
    /// The image's full names in the archive.
    pub names: Vec<Reference>,
    /// The image's tags without a name. Many OCI layouts contain only tags.
    pub tags: Vec<Tag>,
    /// Digest of the manifest.
    pub manifest_digest: ManifestDigest,
    /// The parsed manifest.
    pub manifest: Manifest,
    /// The manifest's bytes. If the archive has no manifest, one is generated; the same image always yields the same bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The multi-platform index from which the manifest was chosen.
    pub index: Option<ResolvedIndex>,
}
