//! The real images that `scripts/test-images` makes, and copies of them that a test may damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::repository;

/// The annotation with the tag of an image in an OCI layout's `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The directory of images that all tests share. Tests must not change anything in it.
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Makes those of the named images that do not exist yet. Takes minutes the first time; other test processes wait for the
    /// script's lock.
    pub fn make(names: &[&str]) -> Self {
        let script = repository().join("scripts/test-images");
        let output = Command::new(script).args(names).output().expect("scripts/test-images runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/test-images {names:?}: {stderr}");
        Self { dir: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }
    }

    /// The OCI layout with a tag for each image.
    pub fn layout(&self) -> Layout {
        Layout { dir: self.dir.join("oci") }
    }

    /// The root directory that `umoci unpack` made of an image. [`Self::make`] must have been called with `unpacked-NAME`.
    pub fn unpacked(&self, name: &str) -> PathBuf {
        self.dir.join("unpacked").join(name).join("rootfs")
    }
}

/// An OCI layout on disk.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The directory of the layout.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of an image of this layout in skopeo's syntax.
    pub fn image(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Copies one image into a new layout that the caller may change.
    pub fn copy_of(&self, tag: &str) -> LayoutCopy {
        let dir = tempfile::Builder::new().prefix("rcx-layout").tempdir().expect("temporary directory");
        let layout = Layout { dir: dir.path().to_owned() };
        run("skopeo", &["copy", "--quiet", "--insecure-policy", &self.image(tag), &layout.image(tag)]);
        LayoutCopy { layout, tag: tag.to_owned(), dir }
    }

    /// The digest (`sha256:...`) of the manifest or index with this tag.
    pub fn digest(&self, tag: &str) -> String {
        let index = read_json(&self.dir.join("index.json"));
        let manifests = index["manifests"].as_array().expect("index.json lists manifests");
        let found = manifests.iter().find(|one| one["annotations"][REF_NAME] == tag);
        text(&found.unwrap_or_else(|| panic!("no {tag} in {}", self.dir.display()))["digest"])
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// The manifest with this tag.
    pub fn manifest(&self, tag: &str) -> Value {
        read_json(&self.blob(&self.digest(tag)))
    }

    /// The digests of an image's layers, from the lowest up.
    pub fn layers(&self, tag: &str) -> Vec<String> {
        let manifest = self.manifest(tag);
        manifest["layers"]
            .as_array()
            .expect("a manifest has layers")
            .iter()
            .map(|one| text(&one["digest"]))
            .collect()
    }

    /// The total size of an image's layer blobs.
    pub fn layer_bytes(&self, tag: &str) -> u64 {
        let sizes = self.layers(tag).into_iter().map(|layer| fs::metadata(self.blob(&layer)));
        sizes.map(|blob| blob.expect("the blob exists").len()).sum()
    }
}

/// A copy of one image that a test may change. Removed on drop.
#[derive(Debug)]
pub struct LayoutCopy {
    layout: Layout,
    tag: String,
    dir: TempDir,
}

impl LayoutCopy {
    /// The layout of the copy.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The name of the image in skopeo's syntax.
    pub fn image(&self) -> String {
        self.layout.image(&self.tag)
    }

    /// Changes the manifest, and `index.json` to its new digest.
    pub fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.layout.manifest(&self.tag);
        change(&mut manifest);
        let (digest, size) = self.add_blob(manifest.to_string().as_bytes());
        let path = self.dir.path().join("index.json");
        let mut index = read_json(&path);
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = size.into();
        fs::write(path, index.to_string()).expect("write index.json");
    }

    /// Changes the image configuration, and manifest and `index.json` to the new digests.
    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let manifest = self.layout.manifest(&self.tag);
        let mut config = read_json(&self.layout.blob(&text(&manifest["config"]["digest"])));
        change(&mut config);
        let (digest, size) = self.add_blob(config.to_string().as_bytes());
        self.change_manifest(|manifest| {
            manifest["config"]["digest"] = digest.into();
            manifest["config"]["size"] = size.into();
        });
    }

    /// Replaces the blob of a layer, and its digest in the manifest. The diff ID in the configuration stays.
    pub fn change_layer(&self, number: usize, bytes: &[u8]) {
        let (digest, size) = self.add_blob(bytes);
        self.change_manifest(|manifest| {
            manifest["layers"][number]["digest"] = digest.into();
            manifest["layers"][number]["size"] = size.into();
        });
    }

    /// Adds a layer on top, a tar. Returns its digest.
    pub fn add_layer(&self, tar: &[u8]) -> String {
        let (digest, size) = self.add_blob(tar);
        let media = "application/vnd.oci.image.layer.v1.tar";
        let layer = json!({"mediaType": media, "digest": digest, "size": size});
        self.change_manifest(|manifest| push(&mut manifest["layers"], layer));
        self.change_config(|config| push(&mut config["rootfs"]["diff_ids"], digest.as_str().into()));
        digest
    }

    fn add_blob(&self, bytes: &[u8]) -> (String, usize) {
        let digest = format!("sha256:{}", sha256(bytes));
        fs::write(self.layout.blob(&digest), bytes).expect("write blob");
        (digest, bytes.len())
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

/// Runs a program, which must succeed. Returns its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn push(array: &mut Value, item: Value) {
    array.as_array_mut().unwrap_or_else(|| panic!("not an array")).push(item);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}
