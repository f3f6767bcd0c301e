//! Gives the image that was built the layers of its base as the base has them.
//!
//! buildah compresses all layers again, so those of a base would get other digests, and stores and registries would keep them twice.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::BuildDirectory;
use crate::environments::error::EnvironmentsError;
use crate::image::{Digest, Image, ImageLayer};
use crate::os::{AtPath as _, PathError};
use crate::store::Store;

/// The media types of layers in an OCI manifest that Docker also knows.
const MEDIA: [(&str, &str); 2] = [
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
];

impl BuildDirectory {
    /// Replaces the layers of the image that was built by those of `bases` with the same content.
    ///
    /// # Errors
    ///
    /// A document of the image is malformed, or a file cannot be read or written.
    pub fn use_base_layers(&self, store: &Store, bases: &[Image]) -> Result<(), EnvironmentsError> {
        let known: HashMap<String, &ImageLayer> = bases
            .iter()
            .flat_map(Image::layers)
            .map(|layer| (layer.diff_id().digest().to_string(), layer))
            .collect();
        let layout = self.image_path();
        let index_path = layout.join("index.json");
        let mut index = read(&index_path)?;
        let top = index.pointer("/manifests/0/digest").and_then(Value::as_str).unwrap_or_default().to_owned();
        let manifest_path = blob(&layout, &top);
        let mut manifest = read(&manifest_path)?;
        let config =
            manifest.pointer("/config/digest").and_then(Value::as_str).unwrap_or_default().to_owned();
        let config = read(&blob(&layout, &config))?;
        let diff_ids =
            config.pointer("/rootfs/diff_ids").and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(layers) = manifest.get_mut("layers").and_then(Value::as_array_mut) else {
            return Err(malformed(&manifest_path, "it has no layers").into());
        };
        for (layer, diff_id) in layers.iter_mut().zip(&diff_ids) {
            let Some(of_base) = diff_id.as_str().and_then(|diff_id| known.get(diff_id)) else { continue };
            let descriptor = of_base.descriptor();
            let stated = descriptor.media_type.as_str();
            let media = MEDIA.iter().find(|(docker, _)| *docker == stated).map_or(stated, |(_, oci)| oci);
            *layer = json!({"mediaType": media, "digest": descriptor.digest, "size": descriptor.size});
            let (from, to) = (
                blob(store.path(), &descriptor.digest.to_string()),
                blob(&layout, &descriptor.digest.to_string()),
            );
            if !to.exists() && fs::hard_link(&from, &to).is_err() {
                // The queue is on another filesystem.
                fs::copy(&from, &to).at("copy", &from)?;
            }
        }
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let path = blob(&layout, &digest.to_string());
        fs::write(&path, &bytes).at("write", &path)?;
        index["manifests"][0]["digest"] = json!(digest);
        index["manifests"][0]["size"] = json!(bytes.len());
        Ok(fs::write(&index_path, index.to_string()).at("write", &index_path)?)
    }
}

/// The file of a blob in a layout.
fn blob(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read(path: &Path) -> Result<Value, PathError> {
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(path, &error.to_string()))
}

fn malformed(path: &Path, reason: &str) -> PathError {
    PathError::new("read", path, io::Error::other(reason.to_owned()))
}
