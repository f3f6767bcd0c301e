//! Descriptors, which refer to documents and blobs, and media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, ManifestDigest, Platform};

/// Media types of documents.
pub mod media {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// OCI layer, not compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// The media types that a registry may return for a manifest.
    pub const DOCUMENTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// A reference to a blob or a document (image-spec, descriptor.md). `urls` and `data` are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of the content.
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The length of the content in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The platform; only in entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: None, platform: None }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether the target is an index or a manifest list.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_INDEX | media::DOCKER_LIST)
    }

    /// Whether the target is an image manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_MANIFEST | media::DOCKER_MANIFEST)
    }

    /// Whether the target is an attestation that a builder attached to an image: provenance, an SBOM.
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_unknown)
            || self.annotation("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }
}

/// The compression that a layer's media type declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// The parsed media type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerMedia {
    /// The compression. A layer whose content is compressed differently is refused.
    pub compression: Compression,
    /// Whether the blob may be missing from registries, as the base layers of Windows once were.
    pub foreign: bool,
}

impl LayerMedia {
    /// Parses a layer's media type. Returns `None` if it is not supported.
    #[must_use]
    pub fn parse(media_type: &str) -> Option<Self> {
        let (rest, foreign) = [
            ("application/vnd.oci.image.layer.v1.", false),
            ("application/vnd.oci.image.layer.nondistributable.v1.", true),
            ("application/vnd.docker.image.rootfs.diff.", false),
            ("application/vnd.docker.image.rootfs.foreign.diff.", true),
        ]
        .into_iter()
        .find_map(|(prefix, foreign)| Some((media_type.strip_prefix(prefix)?, foreign)))?;
        let separator = if media_type.contains("vnd.oci.") { '+' } else { '.' };
        let compression = match rest.strip_prefix("tar")? {
            "" => Compression::None,
            suffix => match suffix.strip_prefix(separator)? {
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                _ => return None,
            },
        };
        Some(Self { compression, foreign })
    }
}

/// Takes the digest of a descriptor that points to a manifest.
impl From<&Descriptor> for ManifestDigest {
    fn from(descriptor: &Descriptor) -> Self {
        Self::new(descriptor.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_and_docker_layer_types_are_parsed() {
        use Compression::{Gzip, None as Plain, Zstd};
        let read = |compression, foreign| Some(LayerMedia { compression, foreign });
        for (text, media) in [
            ("application/vnd.oci.image.layer.v1.tar", read(Plain, false)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", read(Gzip, false)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", read(Zstd, false)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", read(Gzip, true)),
            ("application/vnd.docker.image.rootfs.diff.tar", read(Plain, false)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", read(Gzip, false)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", read(Gzip, true)),
            ("application/vnd.oci.image.layer.v1.tar.gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.squashfs", None),
            ("application/tar", None),
            ("", None),
        ] {
            assert_eq!(LayerMedia::parse(text), media, "{text}");
        }
    }

    #[test]
    fn descriptor_round_trips_through_json() {
        let json = r#"{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":3,"annotations":{"k":"v"},"platform":{"os":"linux","architecture":"arm","variant":"v6"}}"#;
        let descriptor: Descriptor = serde_json::from_str(json).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(json).unwrap(),
            serde_json::to_value(&descriptor).unwrap()
        );
        assert_eq!(descriptor.annotation("k"), Some("v"));
        assert!(serde_json::from_str::<Descriptor>(&json.replace(":3", ":-3")).is_err());
    }
}
