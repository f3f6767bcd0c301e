//! An image whose manifest and configuration agree.
//!
//! Everything behind this module takes an [`Image`] and never pairs layers with diff IDs itself. The documents
//! cannot prove that a layer decodes to the tar with its diff ID: the pipeline verifies this with the layer's index.

use std::sync::Arc;

use super::descriptor::is_config_type;
use super::{
    Compression, Descriptor, DiffId, Digest, ImageConfig, LayerDigest, LayerMedia, Manifest, ManifestDigest,
    ManifestError,
};

/// A manifest and its configuration, which were checked against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    digest: ManifestDigest,
    manifest: Manifest,
    config: Arc<ImageConfig>,
    layers: Vec<ImageLayer>,
}

/// One layer of an image: its entry in the manifest together with its entry in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    descriptor: Descriptor,
    media: LayerMedia,
    diff_id: DiffId,
}

impl Image {
    /// Checks that `config` is the configuration that `manifest` names, and that it describes the manifest's layers.
    ///
    /// `digest` is the manifest's digest, which the caller has checked.
    ///
    /// # Errors
    /// `config` has another digest or size than the manifest declares, is not a valid configuration, or has more or fewer
    /// diff IDs than the manifest has layers.
    pub fn new(digest: ManifestDigest, manifest: Manifest, config: &[u8]) -> Result<Self, ManifestError> {
        let declared = manifest.config();
        let actual = Digest::of(config);
        if actual != declared.digest {
            return Err(ManifestError::ConfigDigest(actual));
        }
        if config.len() as u64 != declared.size {
            return Err(ManifestError::ConfigSize { actual: config.len() as u64, declared: declared.size });
        }
        let config = ImageConfig::parse(config).map_err(|error| match error {
            // Artifacts of any kind have a generic media type, too.
            ManifestError::Config(_) if !is_config_type(&declared.media_type) => {
                ManifestError::Artifact(declared.media_type.clone())
            }
            error => error,
        })?;
        Self::with_config(digest, manifest, Arc::new(config))
    }

    /// The same with a configuration that was parsed before.
    ///
    /// The caller must have checked that `config` has the digest and size in the manifest.
    ///
    /// # Errors
    /// `config` has more or fewer diff IDs than the manifest has layers.
    pub fn with_config(
        digest: ManifestDigest,
        manifest: Manifest,
        config: Arc<ImageConfig>,
    ) -> Result<Self, ManifestError> {
        let (diff_ids, layers) = (config.diff_ids.len(), manifest.layers().len());
        if diff_ids != layers {
            return Err(ManifestError::LayerCount { diff_ids, layers });
        }
        let layers = manifest
            .layers()
            .iter()
            .zip(manifest.typed_layers())
            .zip(&config.diff_ids)
            .map(|((descriptor, (_, media, _)), &diff_id)| ImageLayer {
                descriptor: descriptor.clone(),
                media,
                diff_id,
            })
            .collect();
        Ok(Self { digest, manifest, config, layers })
    }

    /// The digest of the manifest.
    #[must_use]
    pub fn digest(&self) -> ManifestDigest {
        self.digest
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The configuration, for images that share it.
    #[must_use]
    pub fn shared_config(&self) -> Arc<ImageConfig> {
        Arc::clone(&self.config)
    }

    /// The layers, lowest first. The same layer may occur more than once.
    #[must_use]
    pub fn layers(&self) -> &[ImageLayer] {
        &self.layers
    }
}

impl ImageLayer {
    /// The layer's entry in the manifest.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The digest of the blob.
    #[must_use]
    pub fn digest(&self) -> LayerDigest {
        LayerDigest::new(self.descriptor.digest)
    }

    /// The declared length of the blob in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.descriptor.size
    }

    /// The declared compression of the blob; `None` if the media type declares none. The content decides.
    #[must_use]
    pub fn compression(&self) -> Option<Compression> {
        self.media.compression
    }

    /// The declared digest of the uncompressed tar.
    #[must_use]
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::media;

    fn diff_id(number: usize) -> DiffId {
        DiffId::new(Digest::of(number.to_string().as_bytes()))
    }

    fn config(diff_ids: usize) -> Vec<u8> {
        let diff_ids: Vec<DiffId> = (0..diff_ids).map(diff_id).collect();
        let rootfs = serde_json::json!({"type": "layers", "diff_ids": diff_ids});
        serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).to_string().into_bytes()
    }

    fn manifest(layers: u64, config: &[u8]) -> Manifest {
        let config = Descriptor::new(media::OCI_CONFIG, Digest::of(config), config.len() as u64);
        let layer = |number: u64| {
            Descriptor::new(media::OCI_LAYER_GZIP, Digest::of(&number.to_le_bytes()), number + 1)
        };
        Manifest::new(config, (0..layers).map(layer).collect()).unwrap()
    }

    fn image(layers: u64, diff_ids: usize) -> Result<Image, ManifestError> {
        let config = config(diff_ids);
        Image::new(ManifestDigest::new(Digest::of(b"manifest")), manifest(layers, &config), &config)
    }

    #[test]
    fn layers_have_descriptor_and_diff_id_lowest_first() {
        assert!(image(0, 0).unwrap().layers().is_empty());
        let image = image(3, 3).unwrap();
        let sizes: Vec<u64> = image.layers().iter().map(ImageLayer::size).collect();
        assert_eq!(sizes, [1, 2, 3]);
        let diff_ids: Vec<DiffId> = image.layers().iter().map(ImageLayer::diff_id).collect();
        assert_eq!(diff_ids, [diff_id(0), diff_id(1), diff_id(2)]);
        assert_eq!(image.layers()[0].compression(), Some(Compression::Gzip));
    }

    #[test]
    fn too_few_and_too_many_diff_ids_are_refused_with_both_counts() {
        for (layers, diff_ids) in [(3, 2), (3, 0), (2, 3), (0, 1)] {
            let error = image(layers, diff_ids).unwrap_err();
            let expected =
                format!("configuration has {diff_ids} diff IDs, but the manifest has {layers} layers");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn configuration_with_another_digest_or_size_is_refused() {
        let digest = ManifestDigest::new(Digest::of(b"manifest"));
        let config = config(1);
        let longer = [&config[..], b"\n"].concat();
        let error = Image::new(digest, manifest(1, &config), &longer).unwrap_err();
        assert!(matches!(error, ManifestError::ConfigDigest(actual) if actual == Digest::of(&longer)));
        let descriptor = Descriptor::new(media::OCI_CONFIG, Digest::of(&config), 7);
        let manifest = Manifest::new(descriptor, manifest(1, &config).layers().to_vec()).unwrap();
        let error = Image::new(digest, manifest, &config).unwrap_err();
        assert!(matches!(error, ManifestError::ConfigSize { declared: 7, .. }), "{error:?}");
    }

    #[test]
    fn configuration_of_an_artifact_is_refused() {
        let layers = manifest(1, b"{}").layers().to_vec();
        let descriptor = Descriptor::new("application/vnd.cncf.helm.config.v1+json", Digest::of(b"{}"), 2);
        assert!(matches!(Manifest::new(descriptor, layers), Err(ManifestError::Artifact(_))));
    }

    #[test]
    fn content_decides_whether_a_blob_of_a_generic_type_is_a_configuration() {
        let digest = ManifestDigest::new(Digest::of(b"manifest"));
        let with_type = |media_type: &str, config: &[u8]| {
            let descriptor = Descriptor::new(media_type, Digest::of(config), config.len() as u64);
            let manifest = Manifest::new(descriptor, manifest(1, b"{}").layers().to_vec())?;
            Image::new(digest, manifest, config)
        };
        for media_type in
            ["application/octet-stream", "binary/octet-stream", "text/html", "application/json", ""]
        {
            assert!(with_type(media_type, &config(1)).is_ok(), "{media_type}");
            let chart = with_type(media_type, br#"{"name":"chart","version":"1.0.0"}"#);
            assert!(matches!(chart, Err(ManifestError::Artifact(_))), "{media_type}: {chart:?}");
        }
        for media_type in [
            "application/vnd.docker.plugin.v1+json",
            "application/vnd.oci.empty.v1+json",
            "application/vnd.buildkit.cacheconfig.v0",
            "application/vnd.wasm.config.v0+json",
        ] {
            let artifact = with_type(media_type, &config(1));
            assert!(matches!(artifact, Err(ManifestError::Artifact(_))), "{media_type}");
        }
    }
}
