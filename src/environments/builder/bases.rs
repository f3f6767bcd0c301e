//! Hands base images to buildah: for each, an OCI layout whose blobs are those of the store.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::BuildDirectory;
use crate::environments::error::EnvironmentsError;
use crate::environments::records::ApprovedBase;
use crate::os::AtPath as _;
use crate::store::{ImageRecord, Store};

/// The tag of the only image in a layout.
const TAG: &str = "base";

impl BuildDirectory {
    /// Makes the layout of a base image, and returns the options of `buildah build` that replace the image by it.
    ///
    /// buildah makes a name of its own from the path of a layout, and refuses one with upper-case letters or a leading dot. So the
    /// path is relative, and the store's own is not used.
    pub(super) fn add_base(
        &self,
        number: usize,
        base: &ApprovedBase,
        store: &Store,
        image: &ImageRecord,
    ) -> Result<[String; 2], EnvironmentsError> {
        let name = format!("base-{number}");
        let path = self.path().join(&name);
        fs::create_dir(&path).at("make directory", &path)?;
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": image.media_type, "digest": image.digest, "size": image.size,
            "annotations": {"org.opencontainers.image.ref.name": TAG},
        }]});
        for (file, content) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index)]
        {
            let path = path.join(file);
            fs::write(&path, content.to_string()).at("write", &path)?;
        }
        let (blobs, link) = (store.path().join("blobs"), path.join("blobs"));
        symlink(&blobs, &link).at("make link", &link)?;
        Ok(["--build-context".to_owned(), format!("{}=container-image://oci:{name}:{TAG}", base.name)])
    }
}
