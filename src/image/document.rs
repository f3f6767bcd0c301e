//! Manifests and indexes, in their OCI and Docker forms.
//!
//! The content of a document determines its kind. The document's own `mediaType` and the announced media type must agree with
//! the content: the same bytes must never be a manifest to one program and an index to another (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::descriptor::{self, Descriptor, essence, is_generic, media};
use super::image_index::ImageIndex;
use super::limits::{MANIFEST_MAX, check_length};
use super::manifest::{Manifest, is_image_config};
use super::refusal::refuse;
use super::{DocumentKind, ManifestError};

/// A manifest or an index, as determined by the content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a document is taken apart once it is parsed: there are no lists of them"
)]
pub enum Document {
    /// An image for one platform.
    Manifest(Manifest),
    /// Manifests for several platforms.
    Index(ImageIndex),
}

/// The fields that decide the kind of a document. A field that occurs twice is an error, since readers differ on which
/// one applies.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DocumentFields {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_or_missing")]
    layers: Option<Option<Vec<Descriptor>>>,
    #[serde(default, deserialize_with = "null_or_missing")]
    manifests: Option<Option<Vec<IndexEntry>>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "descriptor::annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

/// An entry of an index.
#[derive(Deserialize)]
#[serde(untagged)]
enum IndexEntry {
    Usable(Descriptor),
    /// An entry that cannot be used, for example because of its digest algorithm. Indexes may contain anything.
    Unusable(serde_json::Value),
}

/// Reads a field so that `null` (`Some(None)`) differs from a missing field (`None`). Builders in Go write `null` for an empty
/// list.
fn null_or_missing<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    input: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(input).map(Some)
}

impl Document {
    /// Parses a manifest or an index. `announced` is the media type of the response, or of the descriptor that referred to the
    /// document. Generic types such as `application/json` are ignored.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self, ManifestError> {
        check_length(bytes, MANIFEST_MAX)?;
        let announced = announced.map(essence).filter(|announced| !announced.is_empty());
        if is_html(bytes) {
            return Err(ManifestError::Html);
        }
        if announced.as_deref().is_some_and(is_schema1) {
            return Err(ManifestError::Schema1);
        }
        let fields = match serde_json::from_slice::<DocumentFields>(bytes) {
            Ok(fields) => fields,
            // Schema 1 and artifact manifests have fields with these names but other types.
            Err(error) => return Err(refuse(bytes, announced.as_deref()).unwrap_or(error.into())),
        };
        if fields.fs_layers.is_some()
            || fields.schema_version == Some(1)
            || fields.media_type.as_deref().is_some_and(is_schema1)
        {
            return Err(ManifestError::Schema1);
        }
        let (layers, manifests) =
            (matches!(fields.layers, Some(Some(_))), matches!(fields.manifests, Some(Some(_))));
        let kind = match (fields.config.is_some() || layers, manifests) {
            (true, true) => return Err(ManifestError::Both),
            (false, false) if fields.manifests.is_some() => DocumentKind::Index,
            (true, false) => DocumentKind::Manifest,
            (false, true) => DocumentKind::Index,
            (false, false) => {
                return Err(refuse(bytes, announced.as_deref()).unwrap_or_else(|| {
                    ManifestError::Neither("no value in `config`, `layers` or `manifests`".to_owned())
                }));
            }
        };
        match fields.schema_version {
            // Documents of schema version 1 have other fields, so nothing is ambiguous without a version.
            Some(2) | None => {}
            Some(version) => return Err(ManifestError::SchemaVersion(version)),
        }
        let media_type = agreed_type(kind, fields.media_type.as_deref(), announced.as_deref())?;
        let annotations = fields.annotations.unwrap_or_default();
        match kind {
            DocumentKind::Manifest => {
                let Some(config) = fields.config else {
                    return Err(ManifestError::Neither("`layers`, but no value in `config`".to_owned()));
                };
                let layers = fields.layers.flatten().unwrap_or_default();
                if let (Some(artifact), false) = (&fields.artifact_type, is_image_config(&config)) {
                    return Err(ManifestError::Artifact(artifact.clone()));
                }
                Manifest::checked(media_type, config, layers, annotations).map(Self::Manifest)
            }
            DocumentKind::Index => {
                let entries = fields.manifests.flatten().unwrap_or_default().into_iter();
                let manifests = entries.filter_map(|entry| match entry {
                    IndexEntry::Usable(entry) => Some(entry),
                    IndexEntry::Unusable(entry) => {
                        tracing::debug!(%entry, "ignoring an entry of an index");
                        None
                    }
                });
                let manifests = manifests.collect();
                ImageIndex::checked(media_type, manifests, annotations).map(Self::Index)
            }
        }
    }
}

/// Whether a document is a web page: a login form, or the message of a proxy.
pub(super) fn is_html(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'<')
}

pub(super) fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

fn kind_of(media_type: &str) -> Option<DocumentKind> {
    match media_type {
        media::OCI_MANIFEST | media::DOCKER_MANIFEST => Some(DocumentKind::Manifest),
        media::OCI_INDEX | media::DOCKER_LIST => Some(DocumentKind::Index),
        _ => None,
    }
}

/// Returns the media type of a document, after comparing its content, its own field and the announced type.
pub(super) fn agreed_type(
    kind: DocumentKind,
    own: Option<&str>,
    announced: Option<&str>,
) -> Result<String, ManifestError> {
    let contradiction = |declared: &str| ManifestError::Contradiction { kind, declared: declared.to_owned() };
    if let Some(own) = own
        && kind_of(own) != Some(kind)
    {
        return Err(contradiction(own));
    }
    let own = own.map(essence);
    let own = own.as_deref().filter(|own| !is_generic(own));
    let announced = announced.filter(|announced| !is_generic(announced));
    match (own, announced) {
        // Registries announce manifests of OCI as docker's and the reverse. Only the kind matters.
        (_, Some(announced)) if kind_of(announced) != Some(kind) => Err(contradiction(announced)),
        (Some(declared), _) | (None, Some(declared)) => Ok(declared.to_owned()),
        // Only OCI documents may lack a media type.
        (None, None) => Ok(match kind {
            DocumentKind::Manifest => media::OCI_MANIFEST,
            DocumentKind::Index => media::OCI_INDEX,
        }
        .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::image::{LAYERS_MAX, Platform};

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": HEX, "size": 7})
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": descriptor(media::OCI_CONFIG),
            "layers": [descriptor(media::OCI_LAYER_GZIP)],
        })
    }

    fn index(platforms: &[&str]) -> Value {
        let entries: Vec<Value> = platforms
            .iter()
            .map(|platform| {
                let mut entry = descriptor(media::OCI_MANIFEST);
                if let Ok(platform) = platform.parse::<Platform>() {
                    entry["platform"] = serde_json::to_value(platform).unwrap();
                }
                entry["annotations"] = json!({"nr": platform});
                entry
            })
            .collect();
        json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
    }

    fn with(mut value: Value, key: &str, field: Value) -> Value {
        value[key] = field;
        value
    }

    fn without(mut value: Value, key: &str) -> Value {
        value.as_object_mut().unwrap().remove(key);
        value
    }

    fn parse(value: &Value, announced: Option<&str>) -> Result<Document, ManifestError> {
        Document::parse(&serde_json::to_vec(value).unwrap(), announced)
    }

    #[test]
    fn content_decides_the_kind_of_a_document() {
        let docker = with(
            with(manifest(), "mediaType", json!(media::DOCKER_MANIFEST)),
            "config",
            descriptor(media::DOCKER_CONFIG),
        );
        for (value, announced, kind) in [
            (manifest(), Some(media::OCI_MANIFEST), DocumentKind::Manifest),
            (manifest(), Some("binary/octet-stream"), DocumentKind::Manifest),
            (manifest(), Some("text/html"), DocumentKind::Manifest),
            (manifest(), Some(media::DOCKER_MANIFEST), DocumentKind::Manifest),
            (without(manifest(), "schemaVersion"), None, DocumentKind::Manifest),
            (without(index(&[]), "schemaVersion"), None, DocumentKind::Index),
            (with(manifest(), "layers", Value::Null), None, DocumentKind::Manifest),
            (without(manifest(), "layers"), None, DocumentKind::Manifest),
            (with(manifest(), "manifests", Value::Null), None, DocumentKind::Manifest),
            (with(index(&[]), "manifests", Value::Null), None, DocumentKind::Index),
            (manifest(), None, DocumentKind::Manifest),
            (manifest(), Some("application/json; charset=utf-8"), DocumentKind::Manifest),
            (without(manifest(), "mediaType"), None, DocumentKind::Manifest),
            (without(manifest(), "mediaType"), Some(media::OCI_MANIFEST), DocumentKind::Manifest),
            (docker, Some(media::DOCKER_MANIFEST), DocumentKind::Manifest),
            (index(&["linux/amd64"]), Some(media::OCI_INDEX), DocumentKind::Index),
            (without(index(&[]), "mediaType"), None, DocumentKind::Index),
            (with(index(&[]), "mediaType", json!(media::DOCKER_LIST)), None, DocumentKind::Index),
        ] {
            let document = parse(&value, announced).unwrap_or_else(|error| panic!("{value}: {error}"));
            assert_eq!(matches!(document, Document::Manifest(_)), kind == DocumentKind::Manifest, "{value}");
        }
    }

    #[test]
    fn each_unsupported_document_has_its_own_error() {
        use ManifestError as E;
        type RefusedDocument = (Value, Option<&'static str>, fn(&ManifestError) -> bool);
        let cases: Vec<RefusedDocument> = vec![
            (with(manifest(), "schemaVersion", json!(1)), None, |e| matches!(e, E::Schema1)),
            (json!({"schemaVersion": 1, "fsLayers": [], "history": []}), None, |e| matches!(e, E::Schema1)),
            (manifest(), Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), |e| {
                matches!(e, E::Schema1)
            }),
            (with(manifest(), "schemaVersion", json!(3)), None, |e| matches!(e, E::SchemaVersion(3))),
            (with(manifest(), "manifests", json!([])), None, |e| matches!(e, E::Both)),
            (with(manifest(), "mediaType", json!(media::OCI_INDEX)), None, |e| {
                matches!(e, E::Contradiction { kind: DocumentKind::Manifest, .. })
            }),
            (manifest(), Some(media::DOCKER_LIST), |e| {
                matches!(e, E::Contradiction { kind: DocumentKind::Manifest, .. })
            }),
            (manifest(), Some("application/vnd.x"), |e| matches!(e, E::Contradiction { .. })),
            (without(index(&[]), "mediaType"), Some(media::OCI_MANIFEST), |e| {
                matches!(e, E::Contradiction { kind: DocumentKind::Index, .. })
            }),
            (json!([1, 2]), None, |e| matches!(e, E::Neither(_) | E::Json(_))),
            (json!({"hello": 1}), None, |e| matches!(e, E::Neither(fields) if fields.contains("hello"))),
            (
                json!({"errors": [{"code": "X", "message": "go away"}]}),
                None,
                |e| matches!(e, E::Neither(fields) if fields.contains("go away")),
            ),
            (with(manifest(), "layers", json!("none")), None, |e| matches!(e, E::Json(_))),
            (without(manifest(), "config"), None, |e| matches!(e, E::Neither(_))),
            (
                with(manifest(), "config", descriptor("application/vnd.cncf.helm.config.v1+json")),
                None,
                |e| matches!(e, E::Artifact(kind) if kind.contains("helm")),
            ),
            (
                with(
                    with(manifest(), "artifactType", json!("application/sbom")),
                    "config",
                    descriptor("application/vnd.oci.empty.v1+json"),
                ),
                None,
                |e| matches!(e, E::Artifact(kind) if kind == "application/sbom"),
            ),
            (json!({"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []}), None, |e| {
                matches!(e, E::Artifact(_))
            }),
            (
                with(
                    manifest(),
                    "layers",
                    json!([descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")]),
                ),
                None,
                |e| matches!(e, E::EncryptedLayer { .. }),
            ),
            (with(manifest(), "layers", json!([descriptor("application/vnd.x")])), None, |e| {
                matches!(e, E::LayerType { .. })
            }),
            (
                with(manifest(), "layers", Value::Array(vec![descriptor(media::OCI_LAYER); LAYERS_MAX + 1])),
                None,
                |e| matches!(e, E::TooMany { .. }),
            ),
            (with(manifest(), "config", with(descriptor(media::OCI_CONFIG), "size", json!(0))), None, |e| {
                matches!(e, E::Size { object: "config", .. })
            }),
            (
                with(
                    manifest(),
                    "layers",
                    json!([with(descriptor(media::OCI_LAYER), "size", json!(u64::MAX))]),
                ),
                None,
                |e| matches!(e, E::Size { object: "layer", .. }),
            ),
            (
                with(
                    manifest(),
                    "layers",
                    json!([with(descriptor(media::OCI_LAYER), "digest", json!("sha512:00"))]),
                ),
                None,
                |e| matches!(e, E::Json(error) if error.to_string().contains("sha512")),
            ),
        ];
        for (value, announced, expected) in cases {
            let error = parse(&value, announced).expect_err(&value.to_string());
            assert!(expected(&error), "{value}: {error:?}");
        }
    }

    #[test]
    fn content_that_is_not_json_is_refused() {
        let parse = |bytes: &[u8]| Document::parse(bytes, None).unwrap_err();
        assert!(matches!(parse(b"\n <!DOCTYPE html><html>"), ManifestError::Html));
        assert!(matches!(parse(b""), ManifestError::Json(_)));
        assert!(matches!(parse(b"\xff\xfe"), ManifestError::Json(_)));
        assert!(matches!(parse(&vec![b' '; (4 << 20) + 1]), ManifestError::TooLong { .. }));
        let twice = manifest().to_string().replacen('{', r#"{"layers":[],"#, 1);
        assert!(matches!(parse(twice.as_bytes()), ManifestError::Json(_)));
    }

    #[test]
    fn index_returns_the_entry_of_the_platform_or_lists_the_platforms() {
        let choose = |platforms: &[&str], platform: &str| {
            let Document::Index(index) = parse(&index(platforms), None).unwrap() else { panic!("no index") };
            let platform = platform.parse().unwrap();
            index.choose(&platform).map(|entry| entry.annotation("nr").unwrap().to_owned())
        };
        assert_eq!(choose(&["linux/arm64", "linux/amd64"], "linux/amd64").unwrap(), "linux/amd64");
        assert_eq!(choose(&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7").unwrap(), "linux/arm/v6");
        assert_eq!(choose(&["unknown/unknown", "linux/amd64"], "linux/amd64").unwrap(), "linux/amd64");
        assert_eq!(choose(&[""], "linux/amd64").unwrap(), "");
        assert!(choose(&["", ""], "linux/amd64").is_err());
        assert!(choose(&["", "linux/s390x"], "linux/amd64").is_err());
        let error = choose(&["linux/arm64", "windows/amd64", "unknown/unknown"], "linux/amd64").unwrap_err();
        assert_eq!(error.to_string(), "no manifest for linux/amd64; available: linux/arm64, windows/amd64");
        assert!(choose(&[], "linux/amd64").unwrap_err().to_string().ends_with("available: none"));
    }

    #[test]
    fn entries_of_an_index_that_cannot_be_used_are_ignored() {
        let usable = json!({"mediaType": media::OCI_MANIFEST, "digest": HEX, "size": 7, "annotations": {"nr": "usable"},
            "platform": {"os": "linux", "architecture": "amd64"}});
        let sha512 = format!("sha512:{}", "0".repeat(128));
        for useless in [
            with(usable.clone(), "digest", json!(sha512)),
            with(usable.clone(), "size", json!(-1)),
            without(usable.clone(), "digest"),
            with(usable.clone(), "mediaType", json!("application/vnd.dev.nydus.manifest")),
            with(usable.clone(), "artifactType", json!("application/vnd.amazon.soci.index.v2+json")),
            with(
                usable.clone(),
                "platform",
                json!({"os": "linux", "architecture": "amd64", "os.features": ["nydus.remoteimage.v1"]}),
            ),
            with(usable.clone(), "annotations", json!({"vnd.docker.reference.type": "attestation-manifest"})),
            json!("text"),
            Value::Null,
        ] {
            let entries = json!([useless, usable.clone()]);
            let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
            let Ok(Document::Index(index)) = parse(&index, None) else { panic!("{useless}") };
            let chosen = index.choose(&"linux/amd64".parse().unwrap()).unwrap();
            assert_eq!(chosen.annotation("nr"), Some("usable"), "{useless}");
        }
    }

    #[test]
    fn entry_may_lack_its_media_type_and_platform() {
        let entry =
            json!({"digest": HEX, "size": 7, "platform": {"os": null}, "annotations": {"a": null, "b": 1}});
        let value = json!({"schemaVersion": 2, "manifests": [entry]});
        let Document::Index(index) = parse(&value, None).unwrap() else { panic!("no index") };
        assert!(index.choose(&"linux/arm64".parse().unwrap()).is_ok());
    }

    #[test]
    fn serialized_manifest_parses_to_the_same_manifest() {
        let Document::Manifest(manifest) = parse(&manifest(), None).unwrap() else { panic!("no manifest") };
        assert_eq!(
            Document::parse(&manifest.to_bytes(), None).unwrap(),
            Document::Manifest(manifest.clone())
        );
        assert_eq!(manifest.typed_layers().len(), 1);
    }
}
