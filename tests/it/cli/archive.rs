//! Handwritten OCI layouts.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{gzip, sha256};
use support::layers::{parse, tar};

/// A layout with one image, tagged `latest`.
pub(super) struct Layout {
    dir: TempDir,
}

impl Layout {
    /// Makes an image of layers written as text, compressed with gzip.
    pub(super) fn new(layers: &str) -> Self {
        Self::with_config(layers, |_| ())
    }

    /// The same, with a changed configuration.
    pub(super) fn with_config(layers: &str, change: impl FnOnce(&mut Value)) -> Self {
        Self::with_media(layers, "application/vnd.oci.image.layer.v1.tar+gzip", change)
    }

    /// The same, with another media type for the layers.
    pub(super) fn with_media(layers: &str, media_type: &str, change: impl FnOnce(&mut Value)) -> Self {
        let layout = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(layout.dir.path().join("blobs/sha256")).unwrap();
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        for lines in parse(layers) {
            let tar = tar(&lines);
            diff_ids.push(sha256(&tar));
            descriptors.push(layout.put(media_type, &gzip(&tar)));
        }
        let mut config = json!({
            "created": "2024-05-06T07:08:09Z",
            "os": "linux",
            "architecture": architecture(),
            "config": { "Env": ["PATH=/bin", "LANG=C"], "Cmd": ["sh", "-c", "true"], "User": "7:8" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        change(&mut config);
        let config = layout.put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": descriptors,
        });
        let mut manifest =
            layout.put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        layout.write("index.json", &json!({ "schemaVersion": 2, "manifests": [manifest] }));
        layout.write("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }));
        layout
    }

    pub(super) fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Gives the image a name instead of its tag.
    pub(super) fn name(&self, name: &str) {
        let path = self.dir.path().join("index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = name.into();
        fs::write(path, index.to_string()).unwrap();
    }

    /// Adds the image of another layout under a name.
    pub(super) fn add(&self, other: &Self, name: &str) {
        other.name(name);
        let index = |layout: &Self| -> Value {
            serde_json::from_slice(&fs::read(layout.dir.path().join("index.json")).unwrap()).unwrap()
        };
        let mut all = index(self);
        all["manifests"].as_array_mut().unwrap().push(index(other)["manifests"][0].clone());
        self.write("index.json", &all);
        for blob in fs::read_dir(other.dir.path().join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            fs::copy(blob.path(), self.dir.path().join("blobs/sha256").join(blob.file_name())).unwrap();
        }
    }

    /// Writes a blob and returns its descriptor.
    fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.dir.path().join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn write(&self, name: &str, document: &Value) {
        fs::write(self.dir.path().join(name), document.to_string()).unwrap();
    }
}

/// The architecture of this host, as OCI names it; `load` selects it.
fn architecture() -> String {
    rcx_imagefs::image::Platform::host().to_string().split('/').nth(1).unwrap().to_owned()
}
