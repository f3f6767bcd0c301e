//! Opens an archive of any format and finds its images.

use std::collections::HashSet;
use std::path::Path;

use super::docker::{self, KnownFiles, ListedImages};
use super::files::{ArchiveFiles, BlobReader};
use super::found::{ArchiveBlobs, RefusedImage, merge};
use super::layout::{self, LayoutImages};
use super::{ImportError, ImportImage, NAMES_MAX, legacy};
use crate::error::chain_text;
use crate::image::{Descriptor, Digest, Platform, Reference};

/// An opened OCI layout or `docker save` archive. Its images are for one platform.
#[derive(Debug)]
pub struct Archive {
    files: ArchiveFiles,
    blobs: ArchiveBlobs,
    images: Vec<ImportImage>,
    refused: Vec<RefusedImage>,
    platform: Platform,
}

impl Archive {
    /// Opens an archive, finds its images and checks that it has all their blobs. An image that fails does not affect the
    /// others: see [`Archive::take_refused`].
    ///
    /// # Errors
    ///
    /// See [`ImportError`]. The caller adds `path`. If the only image of the archive fails, its error.
    pub fn open(path: &Path, platform: &Platform) -> Result<Self, ImportError> {
        let files = ArchiveFiles::open(path)?;
        let mut archive = Self {
            files,
            blobs: ArchiveBlobs::default(),
            images: Vec::new(),
            refused: Vec::new(),
            platform: platform.clone(),
        };
        archive.find_images()?;
        if archive.images.iter().map(|image| image.names.len() + image.tags.len()).sum::<usize>() > NAMES_MAX
        {
            return Err(ImportError::TooMany { what: "names of images", limit: NAMES_MAX });
        }
        for image in std::mem::take(&mut archive.images) {
            match archive.check_blob_sizes(&image) {
                Ok(()) => archive.images.push(image),
                Err(error) => archive.refused.push(RefusedImage::new(image.label(), error)),
            }
        }
        match (archive.images.is_empty(), archive.refused.len()) {
            (true, 0) => Err(ImportError::Empty),
            (true, 1) => Err(archive.refused.remove(0).error),
            _ => Ok(archive),
        }
    }

    /// The requested platform. An image that is the only one of its name may be for another platform.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The images that can be loaded.
    #[must_use]
    pub fn images(&self) -> &[ImportImage] {
        &self.images
    }

    /// Takes the images that cannot be loaded. If there is only one, and no other image, opening the archive has failed.
    pub fn take_refused(&mut self) -> Vec<RefusedImage> {
        std::mem::take(&mut self.refused)
    }

    /// Opens a configuration or a layer. Its content is not verified against the digest.
    ///
    /// # Errors
    ///
    /// [`ImportError::MissingBlob`] if the archive does not have the blob, or the error of opening it.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader, ImportError> {
        self.blobs.open(&self.files, digest)
    }

    /// Finds the images in whichever form the archive has.
    ///
    /// Archives of current versions of docker have two forms. `manifest.json` decides, because all versions of docker write
    /// and read it, and their `index.json` may be incomplete. But where `index.json` has a complete manifest for an
    /// image, that manifest is used, so that the image keeps its digest.
    fn find_images(&mut self) -> Result<(), ImportError> {
        let listed = docker::listed_images(&self.files);
        let layout = match self.files.has("index.json")? {
            true => Some(layout::images(&self.files, &self.platform)),
            false => None,
        };
        match (layout, listed) {
            (Some(layout), Ok(Some(listed))) if !listed.images.is_empty() => {
                let layout = layout.unwrap_or_else(|error| {
                    tracing::warn!("ignoring index.json in favour of manifest.json: {}", chain_text(&error));
                    LayoutImages::default()
                });
                self.find_listed(listed, layout);
            }
            (Some(layout), listed) => {
                let LayoutImages { images, refused } = layout?;
                if let Err(error) = listed {
                    tracing::warn!("ignoring manifest.json in favour of index.json: {}", chain_text(&error));
                }
                self.images = images;
                self.refused = refused;
            }
            (None, listed) => match listed? {
                Some(listed) => self.find_listed(listed, LayoutImages::default()),
                None if legacy::is_legacy(&self.files)? => {
                    (self.images, self.refused) = legacy::images(&self.files, &mut self.blobs)?;
                }
                None => {
                    return Err(ImportError::Unknown(
                        "it has neither index.json nor manifest.json nor repositories",
                    ));
                }
            },
        }
        Ok(())
    }

    /// Finds the images that manifest.json lists, and those that only the layout has.
    fn find_listed(&mut self, listed: ListedImages, layout: LayoutImages) {
        self.refused = listed.refused;
        let mut known = KnownFiles::default();
        let mut configs = HashSet::new();
        let mut names = HashSet::new();
        for listed in &listed.images {
            let image = known.config(&self.files, listed).and_then(|(config, diff_ids)| {
                configs.insert(config.digest);
                let of_layout = layout.images.iter().find(|image| {
                    image.manifest.config().digest == config.digest
                        && image.manifest.layers().len() == diff_ids.len()
                        && self.check_blob_sizes(image).is_ok()
                });
                match of_layout {
                    Some(image) => {
                        let mut image = image.clone();
                        if !listed.names().is_empty() {
                            (image.names, image.tags) = (listed.names(), Vec::new());
                        }
                        Ok(image)
                    }
                    None => known.image(&self.files, listed, &mut self.blobs),
                }
            });
            match image {
                Ok(image) => {
                    names.extend(listed.names().iter().map(name_for_docker));
                    merge(&mut self.images, image);
                }
                Err(error) => self.refused.push(RefusedImage::new(listed.label(), error)),
            }
        }
        // An image with a listed configuration is the listed image, possibly without its layers.
        for image in layout.images {
            if !configs.contains(&image.manifest.config().digest) {
                merge(&mut self.images, image);
            }
        }
        let is_listed =
            |image: &RefusedImage| image.names.iter().any(|name| names.contains(&name_for_docker(name)));
        self.refused.extend(layout.refused.into_iter().filter(|image| !is_listed(image)));
    }

    /// Checks for missing and incomplete blobs, so that such an image fails before a part of it is stored.
    fn check_blob_sizes(&self, image: &ImportImage) -> Result<(), ImportError> {
        for Descriptor { digest, size, .. } in image.manifest.layers().iter().chain([image.manifest.config()])
        {
            let actual = self.open_blob(digest)?.size();
            if actual != *size {
                return Err(ImportError::BlobSize { digest: *digest, expected: *size, actual });
            }
        }
        Ok(())
    }
}

/// A name in the form in which it is the same to docker with and without its default host.
fn name_for_docker(name: &Reference) -> String {
    let text = name.to_string();
    let path = text.strip_prefix("docker.io/").unwrap_or(&text);
    path.strip_prefix("library/").unwrap_or(path).to_owned()
}
