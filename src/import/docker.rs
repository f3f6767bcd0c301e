//! Finds images in docker's own archive format: a manifest.json lists the configuration and the layers of each image by path.
//!
//! Such an image has no OCI manifest, so one is generated from the configuration and the layers. The digest of an
//! uncompressed layer is its diff ID, which the configuration contains. Only compressed layers must be read to compute their
//! digests.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;

use serde::Deserialize;
use sha2::Digest as _;

use super::files::ArchiveFiles;
use super::members::Extent;
use super::{IMAGES_MAX, ImportError, ImportImage};
use crate::image::{
    CONFIG_MAX, Descriptor, DiffId, Digest, ImageConfig, MANIFEST_MAX, Manifest, ManifestDigest,
    ManifestError, Reference, media,
};
use crate::layer::Codec;

/// One image of manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ListedImage {
    /// The image's valid names.
    fn names(&self) -> Vec<Reference> {
        let texts = self.repo_tags.iter().flatten();
        texts
            .filter_map(|text| {
                Reference::from_archive(text)
                    .inspect_err(|error| tracing::warn!(%error, "ignoring an invalid image name"))
                    .ok()
            })
            .collect()
    }
}

/// Reads manifest.json; returns no images if it does not exist.
fn listed_images(files: &ArchiveFiles) -> Result<Vec<ListedImage>, ImportError> {
    let Some(bytes) = files.read_document("manifest.json", MANIFEST_MAX)? else { return Ok(Vec::new()) };
    let images: Vec<ListedImage> = serde_json::from_slice(&bytes)
        .map_err(|source| ImportError::Json { file: "manifest.json".to_owned(), source })?;
    if images.len() > IMAGES_MAX {
        return Err(ImportError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    Ok(images)
}

/// Returns the names in manifest.json of an archive that is also an OCI layout, by the digest of the configuration.
pub(super) fn names_by_config(files: &ArchiveFiles) -> Result<HashMap<Digest, Vec<Reference>>, ImportError> {
    let mut all: HashMap<Digest, Vec<Reference>> = HashMap::new();
    for image in listed_images(files)? {
        let hex = image.config.rsplit('/').next().unwrap_or_default();
        let Ok(digest) = format!("sha256:{hex}").parse() else { continue };
        let names = image.names();
        if !names.is_empty() {
            all.entry(digest).or_default().extend(names);
        }
    }
    Ok(all)
}

/// Returns all images, and the positions of their blobs in the tar.
pub(super) fn images(
    files: &ArchiveFiles,
) -> Result<(Vec<ImportImage>, HashMap<Digest, Extent>), ImportError> {
    if matches!(files, ArchiveFiles::Directory(_)) {
        return Err(ImportError::Unknown("it is a directory with manifest.json but without oci-layout"));
    }
    let mut blobs = HashMap::new();
    let mut known = KnownFiles::default();
    let mut images = Vec::new();
    for listed in listed_images(files)? {
        merge(&mut images, image(files, &listed, &mut blobs, &mut known)?);
    }
    Ok((images, blobs))
}

/// The files that were read for an earlier image. Several images may share a layer, which is then hashed only once, or a
/// configuration, which is then parsed only once.
#[derive(Default)]
struct KnownFiles {
    layers: HashMap<Extent, Descriptor>,
    configs: HashMap<Extent, (Descriptor, Vec<DiffId>)>,
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

/// Reads a configuration; returns its descriptor and the diff IDs of the image's layers.
fn config(
    files: &ArchiveFiles,
    listed: &ListedImage,
    extent: Extent,
) -> Result<(Descriptor, Vec<DiffId>), ImportError> {
    let invalid = |source| ImportError::document(&listed.config, source);
    let missing = || ImportError::Missing(listed.config.clone());
    let bytes = files.read_document(&listed.config, CONFIG_MAX)?.ok_or_else(missing)?;
    let config = ImageConfig::parse(&bytes).map_err(invalid)?;
    let (diff_ids, layers) = (config.diff_ids.len(), listed.layers.as_deref().unwrap_or_default().len());
    if layers != diff_ids {
        return Err(invalid(ManifestError::LayerCount { diff_ids, layers }));
    }
    Ok((Descriptor::new(media::OCI_CONFIG, Digest::of(&bytes), extent.size), config.diff_ids))
}

fn image(
    files: &ArchiveFiles,
    listed: &ListedImage,
    blobs: &mut HashMap<Digest, Extent>,
    known: &mut KnownFiles,
) -> Result<ImportImage, ImportError> {
    let missing = |path: &String| ImportError::Missing(path.clone());
    let invalid = |source| ImportError::document(&listed.config, source);
    let paths = listed.layers.as_deref().unwrap_or_default();
    let config_extent = files.extent(&listed.config)?.ok_or_else(|| missing(&listed.config))?;
    let (config_descriptor, diff_ids) = match known.configs.get(&config_extent) {
        Some(known) => known.clone(),
        None => config(files, listed, config_extent)?,
    };
    if paths.len() != diff_ids.len() {
        let (diff_ids, layers) = (diff_ids.len(), paths.len());
        return Err(invalid(ManifestError::LayerCount { diff_ids, layers }));
    }
    known.configs.insert(config_extent, (config_descriptor.clone(), diff_ids.clone()));
    blobs.insert(config_descriptor.digest, config_extent);
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(&diff_ids) {
        let extent = files.extent(path)?.ok_or_else(|| missing(path))?;
        let descriptor = match known.layers.get(&extent) {
            Some(descriptor) => descriptor.clone(),
            None => describe_layer(files, path, *diff_id)?,
        };
        known.layers.insert(extent, descriptor.clone());
        blobs.insert(descriptor.digest, extent);
        layers.push(descriptor);
    }
    let manifest = Manifest::new(config_descriptor, layers).map_err(invalid)?;
    let manifest_bytes = manifest.to_bytes();
    Ok(ImportImage {
        names: listed.names(),
        tags: Vec::new(),
        manifest_digest: ManifestDigest::new(Digest::of(&manifest_bytes)),
        media_type: manifest.media_type().to_owned(),
        manifest,
        manifest_bytes,
        index: None,
    })
}

/// Describes a layer's file. The diff ID is verified when the layer is stored.
fn describe_layer(files: &ArchiveFiles, path: &str, diff_id: DiffId) -> Result<Descriptor, ImportError> {
    let failed = |source| ImportError::Read { file: path.to_owned(), source };
    let mut reader = files.file(path)?.ok_or_else(|| ImportError::Missing(path.to_owned()))?;
    let size = reader.size();
    let mut buffer = vec![0; 256 << 10];
    let mut hash = sha2::Sha256::new();
    let mut first_codec = None;
    loop {
        let length = reader.read(&mut buffer).map_err(failed)?;
        let codec = *first_codec.get_or_insert_with(|| Codec::sniff(&buffer[..length]));
        if codec == Codec::Tar {
            return Ok(Descriptor::new(media::OCI_LAYER, diff_id.digest(), size));
        }
        if length == 0 {
            let media_type = if codec == Codec::Gzip { media::OCI_LAYER_GZIP } else { media::OCI_LAYER_ZSTD };
            return Ok(Descriptor::new(media_type, Digest::new(hash.finalize().into()), size));
        }
        hash.update(&buffer[..length]);
    }
}
