//! The manifest of an image for one platform (image-spec, manifest.md).

use std::collections::BTreeMap;

use serde::Serialize;

use super::descriptor::{Descriptor, LayerMedia, media};
use super::limits::{CONFIG_MAX, LAYERS_MAX};
use super::{LayerDigest, ManifestError};

/// An image manifest whose layers all have a known media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Makes a manifest from its parts.
    ///
    /// # Errors
    /// As [`Document::parse`] for the layers and sizes.
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
            return Err(ManifestError::TooMany { what: "layers", count: layers.len(), limit: LAYERS_MAX });
        }
        if !is_image_config(&config) {
            return Err(ManifestError::Artifact(config.media_type));
        }
        if config.size == 0 || config.size > CONFIG_MAX {
            return Err(ManifestError::Size { what: "config", digest: config.digest, size: config.size });
        }
        for layer in &layers {
            let (digest, media_type) = (layer.digest, layer.media_type.clone());
            if media_type.contains("encrypted") {
                return Err(ManifestError::EncryptedLayer { digest, media_type });
            }
            if LayerMedia::parse(&media_type).is_none() {
                return Err(ManifestError::LayerType { digest, media_type });
            }
            // Positions are signed 64-bit numbers in files and in HTTP ranges.
            if layer.size == 0 || i64::try_from(layer.size).is_err() {
                return Err(ManifestError::Size { what: "layer", digest, size: layer.size });
            }
        }
        Ok(Self { media_type, config, layers, annotations })
    }

    /// The media type of the document itself.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The image's config.
    #[must_use]
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// The layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// The layers with their role and what their media type says, the lowest first.
    pub fn typed_layers(&self) -> impl ExactSizeIterator<Item = (LayerDigest, LayerMedia, u64)> + '_ {
        self.layers.iter().map(|layer| {
            let media = LayerMedia::parse(&layer.media_type).expect("checked when the manifest was made");
            (LayerDigest::new(layer.digest), media, layer.size)
        })
    }

    /// Free-form remarks.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The document's bytes: the same for the same manifest, for images that came without one.
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

/// Whether a descriptor points at the configuration of an image.
pub(super) fn is_image_config(config: &Descriptor) -> bool {
    matches!(config.media_type.as_str(), media::OCI_CONFIG | media::DOCKER_CONFIG)
}
