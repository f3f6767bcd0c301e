//! Writes images into an OCI layout.

use std::fs;
use std::path::Path;

use rcx_imagefs::image::{Digest, Platform};
use serde_json::{Value, json};

use crate::case::Case;

/// Writes a layout with an image for each case, tagged with the name of the case. Returns the digests of the manifests.
pub fn write<'a>(dir: &Path, cases: impl IntoIterator<Item = &'a Case>) -> Vec<Digest> {
    fs::create_dir_all(dir.join("blobs/sha256")).expect("make the layout");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write oci-layout");
    let mut digests = Vec::new();
    let mut manifests = Vec::new();
    for case in cases {
        let manifest = manifest(dir, case);
        let digest = put_json(dir, &manifest);
        manifests.push(json!({
            "mediaType": manifest["mediaType"], "digest": digest.to_string(), "size": manifest.to_string().len(),
            "annotations": {"org.opencontainers.image.ref.name": case.name},
        }));
        digests.push(digest);
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    fs::write(dir.join("index.json"), index.to_string()).expect("write index.json");
    digests
}

fn manifest(dir: &Path, case: &Case) -> Value {
    let host = Platform::host();
    let diff_ids: Vec<String> = case.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let history: Vec<Value> = diff_ids
        .iter()
        .map(|_| json!({"created": "1970-01-01T00:00:00Z", "created_by": case.name}))
        .collect();
    // The author makes images distinct even where two cases have the same layers.
    let config = json!({
        "created": "1970-01-01T00:00:00Z", "author": case.name, "os": host.os(), "architecture": host.architecture(),
        "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
    });
    let layers = case.layers.iter().map(|layer| {
        put(dir, &layer.digest, &layer.bytes);
        json!({"mediaType": layer.media_type, "digest": layer.digest.to_string(), "size": layer.bytes.len()})
    });
    let layers: Vec<Value> = layers.collect();
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": put_json(dir, &config).to_string(), "size": config.to_string().len(),
        },
        "layers": layers,
    })
}

fn put_json(dir: &Path, document: &Value) -> Digest {
    let bytes = document.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    put(dir, &digest, &bytes);
    digest
}

fn put(dir: &Path, digest: &Digest, bytes: &[u8]) {
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).expect("write a blob");
}
