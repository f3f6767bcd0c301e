//! Why JSON is neither a manifest nor an index.

use super::ManifestError;

/// Explains why JSON is not a manifest, or returns `None` if it has no better explanation than the parser.
pub(super) fn refuse(bytes: &[u8], announced: Option<&str>) -> Option<ManifestError> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let Some(object) = value.as_object() else {
        return Some(ManifestError::Neither("no JSON object at the top level".to_owned()));
    };
    if object.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Some(ManifestError::Schema1);
    }
    let artifact = |media_type: &str| {
        media_type.contains("artifact").then(|| {
            let kind = object.get("artifactType").and_then(|kind| kind.as_str()).unwrap_or(media_type);
            ManifestError::Artifact(kind.to_owned())
        })
    };
    let own = object.get("mediaType").and_then(serde_json::Value::as_str);
    if let Some(error) = own.and_then(artifact).or_else(|| announced.and_then(artifact)) {
        return Some(error);
    }
    if let Some(error) = object.get("errors").and_then(|errors| errors.get(0)) {
        let message = error.get("message").or_else(|| error.get("code")).and_then(|text| text.as_str());
        return Some(ManifestError::Neither(format!("the error `{}`", message.unwrap_or("unknown"))));
    }
    if ["config", "layers", "manifests"].iter().any(|field| object.contains_key(*field)) {
        return None;
    }
    let mut names: Vec<_> = object.keys().take(5).map(String::as_str).collect();
    names.sort_unstable();
    Some(ManifestError::Neither(match names.as_slice() {
        [] => "no fields".to_owned(),
        names => format!("the fields {}", names.join(", ")),
    }))
}
