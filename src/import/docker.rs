//! Finds images in docker's own archive format: a manifest.json lists the configuration and the layers of each image by path.
//!
//! Such an image has no OCI manifest, so one is generated from the configuration and the layers. The digest of an
//! uncompressed layer is its diff ID, which the configuration contains. Only compressed layers must be read to compute their
//! digests.

use std::collections::HashMap;
use std::io::Read as _;

use serde::Deserialize;
use serde_json::Value;
use sha2::Digest as _;

use super::files::{ArchiveFiles, FileIdentity};
use super::found::{ArchiveBlobs, RefusedImage};
use super::{IMAGES_MAX, ImportError, ImportImage};
use crate::image::{
    CONFIG_MAX, Descriptor, DiffId, Digest, ImageConfig, MANIFEST_MAX, Manifest, ManifestError, Reference,
    media,
};
use crate::layer::Codec;

/// One image of manifest.json. docker accepts the names of fields in any letter case.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedImage {
    #[serde(alias = "config")]
    config: String,
    #[serde(default, alias = "repoTags", alias = "repotags")]
    repo_tags: Option<Vec<String>>,
    #[serde(default, alias = "layers")]
    layers: Option<Vec<String>>,
}

impl ListedImage {
    /// The image's valid names.
    pub(super) fn names(&self) -> Vec<Reference> {
        let texts = self.repo_tags.iter().flatten().filter(|text| *text != "<none>:<none>");
        texts
            .filter_map(|text| {
                Reference::from_archive(text)
                    .inspect_err(|error| tracing::warn!(%error, "ignoring an invalid image name"))
                    .ok()
            })
            .collect()
    }

    /// The image's first name as it is written, or the path of its configuration.
    pub(super) fn label(&self) -> String {
        self.repo_tags.iter().flatten().next().unwrap_or(&self.config).clone()
    }
}

/// The content of manifest.json.
#[derive(Default)]
pub(super) struct ListedImages {
    pub(super) images: Vec<ListedImage>,
    /// Entries that cannot be parsed.
    pub(super) refused: Vec<RefusedImage>,
}

/// Reads manifest.json. `None` if it does not exist.
pub(super) fn listed_images(files: &ArchiveFiles) -> Result<Option<ListedImages>, ImportError> {
    let Some(bytes) = files.read_document("manifest.json", MANIFEST_MAX)? else { return Ok(None) };
    let invalid = |file: String, source| ImportError::Json { file, source };
    let document: Value =
        serde_json::from_slice(&bytes).map_err(|source| invalid("manifest.json".to_owned(), source))?;
    if document.is_object() {
        return Err(ImportError::Unknown("its manifest.json is the manifest of a single image"));
    }
    let entries = Option::<Vec<Value>>::deserialize(document)
        .map_err(|source| invalid("manifest.json".to_owned(), source))?
        .unwrap_or_default();
    if entries.len() > IMAGES_MAX {
        return Err(ImportError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    let mut listed = ListedImages::default();
    for (number, entry) in (1..).zip(entries) {
        match ListedImage::deserialize(entry) {
            Ok(image) => listed.images.push(image),
            Err(source) => {
                let label = format!("entry {number} of manifest.json");
                listed.refused.push(RefusedImage::new(label.clone(), invalid(label, source)));
            }
        }
    }
    Ok(Some(listed))
}

/// The files that were read for an earlier image. Several images may share a layer, which is then hashed only once, or a
/// configuration, which is then parsed only once.
#[derive(Default)]
pub(super) struct KnownFiles {
    layers: HashMap<FileIdentity, Descriptor>,
    configs: HashMap<FileIdentity, (Descriptor, Vec<DiffId>)>,
}

impl KnownFiles {
    /// Reads the configuration of a listed image; returns its descriptor and the diff IDs of the image's layers.
    pub(super) fn config(
        &mut self,
        files: &ArchiveFiles,
        listed: &ListedImage,
    ) -> Result<(Descriptor, Vec<DiffId>), ImportError> {
        let path = &listed.config;
        let file = files.file(path)?.ok_or_else(|| ImportError::Missing(path.clone()))?;
        let identity = file.identity();
        if let Some(known) = self.configs.get(&identity) {
            return Ok(known.clone());
        }
        let bytes = file.read_all(path, CONFIG_MAX)?;
        let config = ImageConfig::parse(&bytes).map_err(|source| ImportError::document(path, source))?;
        let size = bytes.len() as u64;
        let known = (Descriptor::new(media::OCI_CONFIG, Digest::of(&bytes), size), config.diff_ids);
        self.configs.insert(identity, known.clone());
        Ok(known)
    }

    /// Describes the layer at a path. The diff ID is verified when the layer is stored.
    pub(super) fn layer(
        &mut self,
        files: &ArchiveFiles,
        path: &str,
        diff_id: DiffId,
    ) -> Result<Descriptor, ImportError> {
        let file = files.file(path)?.ok_or_else(|| ImportError::Missing(path.to_owned()))?;
        let identity = file.identity();
        if let Some(known) = self.layers.get(&identity) {
            return Ok(known.clone());
        }
        let failed = |source| ImportError::Read { file: path.to_owned(), source };
        let mut reader = file;
        let size = reader.size();
        let mut buffer = vec![0; 256 << 10];
        let mut hash = sha2::Sha256::new();
        let mut first_codec = None;
        let descriptor = loop {
            let length = reader.read(&mut buffer).map_err(failed)?;
            let codec = *first_codec.get_or_insert_with(|| Codec::sniff(&buffer[..length]));
            if codec == Codec::Tar {
                break Descriptor::new(media::OCI_LAYER, diff_id.digest(), size);
            }
            if length == 0 {
                let media_type =
                    if codec == Codec::Gzip { media::OCI_LAYER_GZIP } else { media::OCI_LAYER_ZSTD };
                break Descriptor::new(media_type, Digest::new(hash.finalize().into()), size);
            }
            hash.update(&buffer[..length]);
        };
        self.layers.insert(identity, descriptor.clone());
        Ok(descriptor)
    }

    /// Generates the manifest of a listed image. Adds the positions of its blobs to `blobs`.
    pub(super) fn image(
        &mut self,
        files: &ArchiveFiles,
        listed: &ListedImage,
        blobs: &mut ArchiveBlobs,
    ) -> Result<ImportImage, ImportError> {
        let paths = listed.layers.as_deref().unwrap_or_default();
        let (config, diff_ids) = self.config(files, listed)?;
        if paths.len() != diff_ids.len() {
            let (diff_ids, layers) = (diff_ids.len(), paths.len());
            return Err(ImportError::document(
                &listed.config,
                ManifestError::LayerCount { diff_ids, layers },
            ));
        }
        blobs.add_path(config.digest, &listed.config);
        let mut layers = Vec::new();
        for (path, diff_id) in paths.iter().zip(&diff_ids) {
            let descriptor = self.layer(files, path, *diff_id)?;
            blobs.add_path(descriptor.digest, path);
            layers.push(descriptor);
        }
        let manifest =
            Manifest::new(config, layers).map_err(|source| ImportError::document(&listed.config, source))?;
        Ok(ImportImage::generated(manifest, listed.names()))
    }
}
