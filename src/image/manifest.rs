//! The manifest of an image for one platform (image-spec, manifest.md).

use std::collections::BTreeMap;

use serde::Serialize;

use super::descriptor::{Descriptor, LayerMedia, is_config_type, is_generic, media};
use super::limits::{CONFIG_MAX, LAYERS_MAX};
use super::{LayerDigest, ManifestError};

/// An image manifest. Its configuration and all layers have supported media types and valid sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Creates an OCI manifest.
    ///
    /// # Errors
    /// A media type is not supported, a size is not valid, or there are too many layers.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        Self::checked(media::OCI_MANIFEST.to_owned(), config, layers, BTreeMap::new())
    }

    pub(super) fn checked(
        media_type: String,
        config: Descriptor,
        layers: Vec<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        if layers.len() > LAYERS_MAX {
            return Err(ManifestError::TooMany { items: "layers", count: layers.len(), limit: LAYERS_MAX });
        }
        if !is_image_config(&config) {
            return Err(ManifestError::Artifact(config.media_type));
        }
        if config.size == 0 || config.size > CONFIG_MAX {
            return Err(ManifestError::Size { object: "config", digest: config.digest, size: config.size });
        }
        for layer in &layers {
            let (digest, media_type) = (layer.digest, layer.media_type.clone());
            if media_type.contains("encrypted") {
                return Err(ManifestError::EncryptedLayer { digest, media_type });
            }
            if LayerMedia::parse(&media_type).is_none() {
                return Err(ManifestError::LayerType { digest, media_type });
            }
            // Offsets in files and in HTTP ranges are signed 64-bit numbers. A layer of no bytes is empty.
            if i64::try_from(layer.size).is_err() {
                return Err(ManifestError::Size { object: "layer", digest, size: layer.size });
            }
        }
        Ok(Self { media_type, config, layers, annotations })
    }

    /// The media type of the manifest.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The descriptor of the configuration.
    #[must_use]
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// The descriptors of the layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Digest, media type and size of each layer, lowest first.
    pub fn typed_layers(&self) -> impl ExactSizeIterator<Item = (LayerDigest, LayerMedia, u64)> + '_ {
        self.layers.iter().map(|layer| {
            let media =
                LayerMedia::parse(&layer.media_type).expect("the constructor checked all media types");
            (LayerDigest::new(layer.digest), media, layer.size)
        })
    }

    /// Annotations.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// Serializes the manifest, always to the same bytes. Used for images that arrive without a manifest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct ManifestJson<'a> {
            schema_version: u64,
            media_type: &'a str,
            config: &'a Descriptor,
            layers: &'a [Descriptor],
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        serde_json::to_vec(&ManifestJson {
            schema_version: 2,
            media_type: &self.media_type,
            config: &self.config,
            layers: &self.layers,
            annotations: &self.annotations,
        })
        .expect("strings and numbers always serialize")
    }
}

/// Whether a descriptor may point to the configuration of an image. A generic media type may: the content decides, see
/// [`Image::new`](super::Image::new).
pub(super) fn is_image_config(config: &Descriptor) -> bool {
    is_config_type(&config.media_type) || is_generic(&config.media_type)
}
