//! Describes the images of a store, for users. The daemon gives the same descriptions to users who may not read the store.

use serde::{Deserialize, Serialize};

use super::{PipelineError, open_layer, read_image, read_manifest};
use crate::error::chain_text;
use crate::image::{ImageLayer, ManifestDigest};
use crate::store::{ImageRecord, Store, StoreError};

/// An image of the store, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Its name, tags and digest.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// Number of layers; `None` if the manifest cannot be read.
    #[serde(default)]
    pub layers: Option<usize>,
    /// Total size of the blobs in bytes. A shared layer counts for each image. `None` if the manifest cannot be read.
    #[serde(default)]
    pub blob_bytes: Option<u64>,
    /// When it was built, as its configuration states it. `None` also if the configuration cannot be read.
    #[serde(default)]
    pub created: Option<String>,
    /// Why the manifest cannot be read.
    #[serde(default)]
    pub failure: Option<ReadFailureText>,
}

/// The parts of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDescription {
    /// The media type of the manifest.
    pub media_type: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerDescription>,
    /// The digest of the configuration, which other tools call the ID of the image.
    pub config_digest: String,
    /// The whole configuration document.
    pub config: serde_json::Value,
}

/// A layer of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerDescription {
    /// The digest of its blob.
    pub digest: String,
    /// The digest of its tar.
    pub diff_id: String,
    /// The media type in the manifest.
    pub media_type: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Its index; `None` if the layer cannot be served.
    pub index: Option<IndexDescription>,
    /// Whether it has a plain layer.
    pub plain: bool,
    /// Why the layer cannot be served.
    pub failure: Option<ReadFailureText>,
}

/// The index of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexDescription {
    /// Size of the tar in bytes.
    pub tar_size: u64,
    /// Number of entries.
    pub entries: usize,
    /// Number of spans.
    pub spans: usize,
    /// Size of the index file in bytes.
    pub file_size: u64,
    /// Size of the seekable form in bytes; 0 if the layer needs none.
    pub seekable_size: u64,
}

/// Why a part of an image cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadFailureText {
    /// The stable code of the error.
    pub code: String,
    /// The error chain.
    pub message: String,
}

impl From<&PipelineError> for ReadFailureText {
    fn from(error: &PipelineError) -> Self {
        Self { code: error.code().as_str().to_owned(), message: chain_text(error) }
    }
}

/// Lists the images of a store.
///
/// # Errors
/// The references of the store cannot be read. An image that cannot be read is listed with the reason.
pub fn list_images(store: &Store) -> Result<Vec<ImageSummary>, StoreError> {
    let list = |record: ImageRecord| {
        let manifest = read_manifest(store, &record.digest);
        let failure = manifest.as_ref().err().map(Into::into);
        let manifest = manifest.ok();
        let config = manifest.as_ref().and_then(|_| read_image(store, &record.digest).ok());
        ImageSummary {
            record,
            created: config.and_then(|image| image.config().created.clone()),
            layers: manifest.as_ref().map(|manifest| manifest.layers().len()),
            blob_bytes: manifest.map(|manifest| {
                manifest.layers().iter().map(|layer| layer.size).sum::<u64>() + manifest.config().size
            }),
            failure,
        }
    };
    Ok(store.refs()?.images.into_iter().map(list).collect())
}

/// Describes the parts of an image of the store.
///
/// # Errors
/// The errors of [`read_image`]. A layer that cannot be opened is described with the reason.
pub fn describe_image(store: &Store, digest: &ManifestDigest) -> Result<ImageDescription, PipelineError> {
    let image = read_image(store, digest)?;
    let describe = |layer: &ImageLayer| {
        let opened = open_layer(store, layer.digest());
        let index = opened.as_ref().ok().map(|open| open.index()).map(|index| IndexDescription {
            tar_size: index.tar_size(),
            entries: index.len(),
            spans: index.span_count(),
            file_size: index.file_size(),
            seekable_size: index.seekable_size(),
        });
        LayerDescription {
            digest: layer.digest().to_string(),
            diff_id: layer.diff_id().to_string(),
            media_type: layer.descriptor().media_type.clone(),
            size: layer.size(),
            index,
            plain: store.has_plain(&layer.digest()).unwrap_or(false),
            failure: opened.as_ref().err().map(Into::into),
        }
    };
    Ok(ImageDescription {
        media_type: image.manifest().media_type().to_owned(),
        layers: image.layers().iter().map(describe).collect(),
        config_digest: image.manifest().config().digest.to_string(),
        config: image.config().raw.clone(),
    })
}
