//! Pointers from one document to the next, and the media types they carry.

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
    /// All that a registry may answer a request for a manifest with.
    pub const DOCUMENTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// Points at a blob or a document (image-spec, descriptor.md). `urls` and `data` are not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Free-form remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What it runs on; on entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor without annotations and platform.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: None, platform: None }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it points at an index or list.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_INDEX | media::DOCKER_LIST)
    }

    /// Whether it points at an image manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_MANIFEST | media::DOCKER_MANIFEST)
    }

    /// Whether a builder attached it to an image: provenance, an SBOM.
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_unknown)
            || self.annotation("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }
}

/// How a layer's media type says that it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What a layer's media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerMedia {
    /// How it is compressed. The bytes decide; where they differ from this, the layer is refused.
    pub compression: Compression,
    /// Whether it may be missing from registries (Windows base layers once were).
    pub foreign: bool,
}

impl LayerMedia {
    /// Reads a layer's media type; `None` if it is not one of a layer that can be read.
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

/// Reads a descriptor's digest as a manifest's.
impl From<&Descriptor> for ManifestDigest {
    fn from(descriptor: &Descriptor) -> Self {
        Self::new(descriptor.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_media_types_of_both_families_are_read() {
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
    fn descriptor_keeps_its_json_form() {
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
