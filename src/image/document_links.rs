//! What a manifest or an index refers to, whether or not it is an image.

use serde::Deserialize;

use super::descriptor::essence;
use super::document::{agreed_type, is_html, is_schema1};
use super::limits::{INDEX_ENTRIES_MAX, LAYERS_MAX, MANIFEST_MAX, check_length};
use super::refusal::refuse;
use super::{Descriptor, DocumentKind, ManifestError};

/// The descriptors of a manifest or of an index.
///
/// [`Document`](super::Document) is for images only. This also reads the other entries of an index: attestations, signatures, images
/// of unknown formats. So a document can be copied with everything that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentLinks {
    /// The media type of the document.
    pub media_type: String,
    /// The configuration and the layers of a manifest.
    pub blobs: Vec<Descriptor>,
    /// The entries of an index.
    pub manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LinkFields {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl DocumentLinks {
    /// Parses a manifest or an index. `announced` is the media type of the response, or of the descriptor that referred to the
    /// document.
    ///
    /// # Errors
    /// See [`ManifestError`]. Unlike in [`Document::parse`](super::Document::parse), an entry of an index with an unknown digest
    /// algorithm is an error.
    pub fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self, ManifestError> {
        check_length(bytes, MANIFEST_MAX)?;
        let announced = announced.map(essence).filter(|announced| !announced.is_empty());
        let announced = announced.as_deref();
        if is_html(bytes) {
            return Err(ManifestError::Html);
        }
        let fields: LinkFields = serde_json::from_slice(bytes)
            .map_err(|error| refuse(bytes, announced).unwrap_or_else(|| error.into()))?;
        if fields.schema_version == Some(1) || announced.is_some_and(is_schema1) {
            return Err(ManifestError::Schema1);
        }
        let is_manifest = fields.config.is_some() || fields.layers.is_some();
        let kind = match (is_manifest, fields.manifests.is_some()) {
            (true, true) => return Err(ManifestError::Both),
            (true, false) => DocumentKind::Manifest,
            (false, true) => DocumentKind::Index,
            (false, false) => {
                let neither = || ManifestError::Neither("no `config`, `layers` or `manifests`".to_owned());
                return Err(refuse(bytes, announced).unwrap_or_else(neither));
            }
        };
        let media_type = agreed_type(kind, fields.media_type.as_deref(), announced)?;
        let layers = fields.layers.unwrap_or_default();
        let manifests = fields.manifests.unwrap_or_default();
        for (items, count, limit) in
            [("layers", layers.len(), LAYERS_MAX), ("manifests", manifests.len(), INDEX_ENTRIES_MAX)]
        {
            if count > limit {
                return Err(ManifestError::TooMany { items, count, limit });
            }
        }
        let blobs = fields.config.into_iter().chain(layers).collect();
        Ok(Self { media_type, blobs, manifests })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::image::{Digest, media};

    fn parse(value: &serde_json::Value) -> Result<DocumentLinks, ManifestError> {
        DocumentLinks::parse(value.to_string().as_bytes(), None)
    }

    #[test]
    fn entries_that_are_no_images_are_listed_too() {
        let part = |media_type: &str, text: &str| json!({ "mediaType": media_type, "digest": Digest::of(text.as_bytes()), "size": text.len() });
        let attestation = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": part(media::OCI_CONFIG, "{}"), "layers": [part("application/vnd.in-toto+json", "proof")],
        });
        let links = parse(&attestation).unwrap();
        assert_eq!((links.blobs.len(), links.media_type.as_str()), (2, media::OCI_MANIFEST));
        let index = json!({
            "schemaVersion": 2,
            "manifests": [part(media::OCI_MANIFEST, "a"), part("application/vnd.example", "b")],
        });
        let links = parse(&index).unwrap();
        assert_eq!((links.manifests.len(), links.media_type.as_str()), (2, media::OCI_INDEX));
    }

    #[test]
    fn document_that_cannot_be_copied_whole_is_refused() {
        let sha512 =
            json!({ "mediaType": "a/b", "digest": format!("sha512:{}", "0".repeat(128)), "size": 1 });
        assert!(parse(&json!({ "manifests": [sha512] })).is_err());
        assert!(matches!(parse(&json!({ "schemaVersion": 1, "layers": [] })), Err(ManifestError::Schema1)));
        assert!(matches!(parse(&json!({ "layers": [], "manifests": [] })), Err(ManifestError::Both)));
        assert!(matches!(parse(&json!({ "x": 1 })), Err(ManifestError::Neither(_))));
        assert!(matches!(DocumentLinks::parse(b" <html>", None), Err(ManifestError::Html)));
    }
}
