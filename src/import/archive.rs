//! Opens an archive of any format and finds its images.

use std::collections::HashMap;
use std::path::Path;

use super::files::{ArchiveFiles, BlobReader};
use super::members::Extent;
use super::{ImportError, ImportImage, NAMES_MAX, docker, layout};
use crate::image::{Descriptor, Digest, Platform};

/// An opened OCI layout or `docker save` archive. Its images are for one platform.
#[derive(Debug)]
pub struct Archive {
    files: ArchiveFiles,
    /// Blobs that are not at their path in an OCI layout.
    blobs: HashMap<Digest, Extent>,
    images: Vec<ImportImage>,
    platform: Platform,
}

impl Archive {
    /// Opens an archive, finds its images and checks that it has all their blobs.
    ///
    /// # Errors
    ///
    /// See [`ImportError`]. The caller adds `path`.
    pub fn open(path: &Path, platform: &Platform) -> Result<Self, ImportError> {
        let files = ArchiveFiles::open(path)?;
        let (images, blobs) = if files.has("oci-layout")? && files.has("index.json")? {
            (layout::images(&files, platform)?, HashMap::new())
        } else if files.has("manifest.json")? {
            docker::images(&files)?
        } else {
            return Err(ImportError::Unknown(if files.has("repositories")? {
                "it has only a `repositories` file, as written by docker before version 1.10"
            } else {
                "it has neither oci-layout and index.json nor manifest.json"
            }));
        };
        if images.is_empty() {
            return Err(ImportError::Empty);
        }
        if images.iter().map(|image| image.names.len() + image.tags.len()).sum::<usize>() > NAMES_MAX {
            return Err(ImportError::TooMany { what: "names of images", limit: NAMES_MAX });
        }
        let archive = Self { files, blobs, images, platform: platform.clone() };
        archive.check_blob_sizes()?;
        Ok(archive)
    }

    /// The requested platform. An image that is the only one of its name may be for another platform.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The images; at least one.
    #[must_use]
    pub fn images(&self) -> &[ImportImage] {
        &self.images
    }

    /// Opens a configuration or a layer. Its content is not verified against the digest.
    ///
    /// # Errors
    ///
    /// [`ImportError::MissingBlob`] if the archive does not have the blob, or the error of opening it.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader, ImportError> {
        match self.blobs.get(digest).and_then(|extent| self.files.at(*extent)) {
            Some(blob) => Ok(blob),
            None => self.files.blob(digest),
        }
    }

    /// Checks for missing and incomplete blobs, so that such an archive fails before a part of an image is stored.
    fn check_blob_sizes(&self) -> Result<(), ImportError> {
        for image in &self.images {
            for Descriptor { digest, size, .. } in
                image.manifest.layers().iter().chain([image.manifest.config()])
            {
                let actual = self.open_blob(digest)?.size();
                if actual != *size {
                    return Err(ImportError::BlobSize { digest: *digest, expected: *size, actual });
                }
            }
        }
        Ok(())
    }
}
