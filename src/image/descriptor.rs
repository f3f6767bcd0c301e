//! Descriptors, which refer to documents and blobs, and media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

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

/// Returns a media type without its parameters, in lower case.
pub(super) fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a media type describes a kind of content rather than its container, or says nothing: old registries and registries
/// on object storage declare such types for any blob and document (`application/octet-stream`, `binary/octet-stream`,
/// `text/html`, none at all). Types of vendors (`application/vnd.…`) always describe the content.
pub(super) fn is_generic(media_type: &str) -> bool {
    let essence = essence(media_type);
    !essence.split_once('/').map_or(&*essence, |(_, subtype)| subtype).starts_with("vnd.")
}

/// A reference to a blob or a document (image-spec, descriptor.md). `data` is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of the content. May be empty.
    #[serde(default, deserialize_with = "text_or_null")]
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The length of the content in bytes.
    pub size: u64,
    /// Where the content should be fetched instead of from the registry. Other values than texts are ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "texts")]
    pub urls: Vec<String>,
    /// The type of an artifact; only in entries of an index. An image may have the type of its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations. Those that are not text are ignored.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "annotations")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The platform; only in entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// Reads a text that may be null.
pub(super) fn text_or_null<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Option::deserialize(input).map(Option::unwrap_or_default)
}

/// Reads a list of texts. What is no list of texts is an empty one.
fn texts<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let texts = Option::<serde_json::Value>::deserialize(input)?;
    Ok(texts.and_then(|texts| serde_json::from_value(texts).ok()).unwrap_or_default())
}

/// Reads annotations, without those that are not text.
pub(super) fn annotations<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let Some(all) = Option::<BTreeMap<String, serde_json::Value>>::deserialize(input)? else {
        return Ok(None);
    };
    let texts = all.into_iter().filter_map(|(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        _ => None,
    });
    Ok(Some(texts.collect()))
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            artifact_type: None,
            annotations: None,
            platform: None,
        }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Why the content may not be sent to another registry; `None` if it may (image-spec, layer.md, "Non-Distributable Layers").
    #[must_use]
    pub fn not_distributable(&self) -> Option<String> {
        let foreign = LayerMedia::parse(&self.media_type).is_some_and(|media| media.foreign);
        match self.urls.first() {
            _ if foreign => Some(format!("its media type is `{}`", self.media_type)),
            Some(url) => Some(format!("it should be fetched from `{url}`")),
            None => None,
        }
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

    /// Whether the target may be an image or an index of images, as far as the descriptor shows.
    #[must_use]
    pub fn may_be_image(&self) -> bool {
        let is_image = |kind: &str| kind.is_empty() || is_config_type(kind);
        (self.is_manifest() || self.is_index() || is_generic(&self.media_type))
            && self.artifact_type.as_deref().is_none_or(is_image)
            && !self.is_attestation()
    }

    /// Whether the target is an attestation that a builder attached to an image: provenance, an SBOM.
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_unknown)
            || self.annotation("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }
}

/// Whether a media type is that of an image's configuration.
pub(super) fn is_config_type(media_type: &str) -> bool {
    matches!(&*essence(media_type), media::OCI_CONFIG | media::DOCKER_CONFIG)
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
    /// The declared compression; `None` if the media type does not declare a known one. The content decides.
    pub compression: Option<Compression>,
    /// Whether the blob may be missing from registries, as the base layers of Windows once were.
    pub foreign: bool,
}

impl LayerMedia {
    /// Parses a layer's media type. Returns `None` if it declares content that is not a tar, or that is encrypted.
    #[must_use]
    pub fn parse(media_type: &str) -> Option<Self> {
        let media_type = &*essence(media_type);
        let prefixed = [
            ("application/vnd.oci.image.layer.v1.", false),
            ("application/vnd.oci.image.layer.nondistributable.v1.", true),
            ("application/vnd.docker.image.rootfs.diff.", false),
            ("application/vnd.docker.image.rootfs.foreign.diff.", true),
        ]
        .into_iter()
        .find_map(|(prefix, foreign)| Some((media_type.strip_prefix(prefix)?, foreign)));
        let Some((rest, foreign)) = prefixed else {
            return is_generic(media_type).then_some(Self { compression: None, foreign: false });
        };
        let suffix = rest.strip_prefix("tar")?;
        let compression = match suffix.strip_prefix(['+', '.']) {
            None if suffix.is_empty() => Some(Compression::None),
            None => return None,
            Some("gzip") => Some(Compression::Gzip),
            Some("zstd") => Some(Compression::Zstd),
            Some(other) if other.contains("encrypted") => return None,
            Some(_) => None,
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
        let read = |compression, foreign| Some(LayerMedia { compression: Some(compression), foreign });
        let unknown = Some(LayerMedia { compression: None, foreign: false });
        for (text, media) in [
            ("application/vnd.oci.image.layer.v1.tar", read(Plain, false)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", read(Gzip, false)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", read(Zstd, false)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", read(Gzip, true)),
            ("application/vnd.docker.image.rootfs.diff.tar", read(Plain, false)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", read(Gzip, false)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", read(Gzip, true)),
            ("application/vnd.oci.image.layer.v1.tar.gzip", read(Gzip, false)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", read(Zstd, false)),
            ("application/vnd.oci.image.layer.v1.tar+xz", unknown),
            ("Application/vnd.OCI.image.layer.v1.tar+gzip; charset=utf-8", read(Gzip, false)),
            ("application/octet-stream", unknown),
            ("binary/octet-stream", unknown),
            ("application/x-tar", unknown),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.squashfs", None),
            ("application/vnd.oci.image.layer.v1.tarball", None),
            ("application/vnd.oci.image.layer.nydus.blob.v1", None),
            ("application/vnd.in-toto+json", None),
            ("application/vnd.dev.cosign.simplesigning.v1+json", None),
            ("", unknown),
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
        let with_urls = |urls: &str| {
            let json = json.replace(":3", &format!(r#":3,"urls":{urls}"#));
            serde_json::from_str::<Descriptor>(&json).unwrap().not_distributable()
        };
        assert!(with_urls(r#"["https://u/x"]"#).unwrap().contains("https://u/x"));
        for none in ["[]", "null", "7", r#"[7]"#] {
            assert_eq!(with_urls(none), None, "{none}");
        }
        assert!(serde_json::from_str::<Descriptor>(&json.replace(":3", ":-3")).is_err());
    }
}
