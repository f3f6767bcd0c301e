//! What is found in an archive: images, blobs at unusual places, and images that cannot be loaded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::files::{ArchiveFiles, BlobReader};
use super::tar_bytes::TarBytes;
use super::{ImportError, ImportImage};
use crate::image::{Digest, Manifest, ManifestDigest, Reference};

/// An image of an archive that cannot be loaded.
#[derive(Debug)]
pub struct RefusedImage {
    /// Its name, tag, digest or place in the archive.
    pub label: String,
    /// The reason.
    pub error: ImportError,
    /// Its full names.
    pub(super) names: Vec<Reference>,
}

impl RefusedImage {
    pub(super) fn new(label: String, error: ImportError) -> Self {
        Self { label, error, names: Vec::new() }
    }
}

/// Blobs that are not at their path in an OCI layout.
#[derive(Debug, Default)]
pub(super) struct ArchiveBlobs(HashMap<Digest, BlobPlace>);

#[derive(Debug)]
enum BlobPlace {
    /// A file of the archive.
    Path(String),
    /// A generated document.
    Memory(Arc<TarBytes>),
}

impl ArchiveBlobs {
    pub(super) fn add_path(&mut self, digest: Digest, path: &str) {
        self.0.insert(digest, BlobPlace::Path(path.to_owned()));
    }

    /// Adds a document that was generated for the archive; returns its digest.
    pub(super) fn add_document(&mut self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.0.insert(digest, BlobPlace::Memory(Arc::new(TarBytes::Memory(bytes))));
        digest
    }

    /// Opens a blob.
    pub(super) fn open(&self, files: &ArchiveFiles, digest: &Digest) -> Result<BlobReader, ImportError> {
        match self.0.get(digest) {
            Some(BlobPlace::Memory(bytes)) => Ok(BlobReader::in_memory(bytes)),
            Some(BlobPlace::Path(path)) => files.file(path)?.ok_or(ImportError::MissingBlob(*digest)),
            None => files.blob(digest),
        }
    }
}

impl ImportImage {
    /// An image without a manifest in the archive, for which one was generated.
    pub(super) fn generated(manifest: Manifest, names: Vec<Reference>) -> Self {
        let manifest_bytes = manifest.to_bytes();
        Self {
            names,
            tags: Vec::new(),
            manifest_digest: ManifestDigest::new(Digest::of(&manifest_bytes)),
            media_type: manifest.media_type().to_owned(),
            manifest,
            manifest_bytes,
            index: None,
        }
    }

    /// A text that identifies the image for users: its first name, or its tag and digest.
    #[must_use]
    pub fn label(&self) -> String {
        match (self.names.first(), self.tags.first()) {
            (Some(name), _) => name.to_string(),
            (None, Some(tag)) => format!("{} (tagged {tag})", self.manifest_digest),
            (None, None) => self.manifest_digest.to_string(),
        }
    }
}

/// Adds an image to the list. An archive may list an image several times, once for each of its names.
pub(super) fn merge(images: &mut Vec<ImportImage>, image: ImportImage) {
    match images.iter_mut().find(|other| other.manifest_digest == image.manifest_digest) {
        Some(other) => {
            other.names.extend(image.names);
            other.tags.extend(image.tags);
            let mut seen = HashSet::new();
            other.names.retain(|name| seen.insert(name.to_string()));
            other.tags.sort();
            other.tags.dedup();
        }
        None => images.push(image),
    }
}
