//! Images of a `docker save` archive in its own form: a manifest.json that lists a config and layers by path.
//!
//! Such an image has no manifest in the sense of a registry, so one is made: from the config as it is, and from the layers as
//! they are. An uncompressed layer's digest is its diff ID, which the config has; only compressed ones are read for
//! theirs.

use std::collections::HashMap;
use std::io::Read as _;

use serde::Deserialize;
use sha2::Digest as _;

use super::archive::Files;
use super::members::Extent;
use super::{ImportError, ImportImage};
use crate::image::{
    CONFIG_MAX, Descriptor, DiffId, Digest, ImageConfig, MANIFEST_MAX, Manifest, ManifestDigest,
    ManifestError, Reference, media,
};
use crate::layer::Codec;

/// One image of the list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Item {
    fn names(&self) -> Vec<Reference> {
        let texts = self.repo_tags.iter().flatten();
        texts
            .filter_map(|text| {
                Reference::given(text).inspect_err(|error| tracing::warn!(%error, "passing over a name")).ok()
            })
            .collect()
    }
}

fn items(files: &Files) -> Result<Vec<Item>, ImportError> {
    let Some(bytes) = files.small("manifest.json", MANIFEST_MAX)? else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes)
        .map_err(|source| ImportError::Json { what: "manifest.json".to_owned(), source })
}

/// The names docker gave to the images of an archive that is a layout as well, by the digest of their config.
pub(super) fn names_by_config(files: &Files) -> Result<HashMap<Digest, Vec<Reference>>, ImportError> {
    let mut names: HashMap<Digest, Vec<Reference>> = HashMap::new();
    for item in items(files)? {
        let hex = item.config.rsplit('/').next().unwrap_or_default();
        let Ok(digest) = format!("sha256:{hex}").parse() else { continue };
        let found = item.names();
        if !found.is_empty() {
            names.entry(digest).or_default().extend(found);
        }
    }
    Ok(names)
}

/// Makes all images, and tells where their blobs are.
pub(super) fn images(files: &Files) -> Result<(Vec<ImportImage>, HashMap<Digest, Extent>), ImportError> {
    if matches!(files, Files::Directory(_)) {
        return Err(ImportError::Unknown("it is a directory with a manifest.json but no oci-layout"));
    }
    let mut blobs = HashMap::new();
    // A layer that several images share is hashed once.
    let mut layers = HashMap::new();
    let mut images = Vec::new();
    for item in items(files)? {
        images.push(image(files, &item, &mut blobs, &mut layers)?);
    }
    Ok((images, blobs))
}

fn image(
    files: &Files,
    item: &Item,
    blobs: &mut HashMap<Digest, Extent>,
    known: &mut HashMap<Extent, Descriptor>,
) -> Result<ImportImage, ImportError> {
    let missing = |path: &String| ImportError::Missing(path.clone());
    let wrong = |source| ImportError::document(&item.config, source);
    let bytes = files.small(&item.config, CONFIG_MAX)?.ok_or_else(|| missing(&item.config))?;
    let config = ImageConfig::parse(&bytes).map_err(wrong)?;
    let paths = item.layers.as_deref().unwrap_or_default();
    if paths.len() != config.diff_ids.len() {
        let (diff_ids, layers) = (config.diff_ids.len(), paths.len());
        return Err(wrong(ManifestError::LayerCount { diff_ids, layers }));
    }
    let config_extent = files.extent(&item.config)?.ok_or_else(|| missing(&item.config))?;
    let config_descriptor = Descriptor::new(media::OCI_CONFIG, Digest::of(&bytes), config_extent.size);
    blobs.insert(config_descriptor.digest, config_extent);
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(&config.diff_ids) {
        let extent = files.extent(path)?.ok_or_else(|| missing(path))?;
        let descriptor = match known.get(&extent) {
            Some(descriptor) => descriptor.clone(),
            None => layer(files, path, *diff_id)?,
        };
        known.insert(extent, descriptor.clone());
        blobs.insert(descriptor.digest, extent);
        layers.push(descriptor);
    }
    let manifest = Manifest::new(config_descriptor, layers).map_err(wrong)?;
    let manifest_bytes = manifest.to_bytes();
    Ok(ImportImage {
        names: item.names(),
        tags: Vec::new(),
        manifest_digest: ManifestDigest::new(Digest::of(&manifest_bytes)),
        media_type: manifest.media_type().to_owned(),
        manifest,
        manifest_bytes,
        index: None,
    })
}

/// Describes a layer's file. Which diff ID it has is checked when it is stored.
fn layer(files: &Files, path: &str, diff_id: DiffId) -> Result<Descriptor, ImportError> {
    let failed = |source| ImportError::Read { what: path.to_owned(), source };
    let mut reader = files.file(path)?.ok_or_else(|| ImportError::Missing(path.to_owned()))?;
    let size = reader.size();
    let mut buffer = vec![0; 256 << 10];
    let mut hash = sha2::Sha256::new();
    let mut codec = None;
    loop {
        let length = reader.read(&mut buffer).map_err(failed)?;
        let found = *codec.get_or_insert_with(|| Codec::sniff(&buffer[..length]));
        if found == Codec::Tar {
            return Ok(Descriptor::new(media::OCI_LAYER, diff_id.digest(), size));
        }
        if length == 0 {
            let media_type = if found == Codec::Gzip { media::OCI_LAYER_GZIP } else { media::OCI_LAYER_ZSTD };
            return Ok(Descriptor::new(media_type, Digest::new(hash.finalize().into()), size));
        }
        hash.update(&buffer[..length]);
    }
}
