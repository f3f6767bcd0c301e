//! The real images that `scripts/test-images` makes, and ways to damage a copy of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::repository;

/// Annotation that carries the tag in an OCI layout's `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The directory of images that tests share; nothing in it is ever changed by a test.
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Makes what is not there yet of the named images. Other test processes wait meanwhile, for the script takes a lock.
    pub fn make(names: &[&str]) -> Self {
        let script = repository().join("scripts/test-images");
        let output = Command::new(script).args(names).output().expect("scripts/test-images runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/test-images {names:?}: {said}");
        Self { dir: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }
    }

    /// The OCI layout with a tag for each image.
    pub fn layout(&self) -> Layout {
        Layout { dir: self.dir.join("oci") }
    }

    /// The root directory that `umoci unpack` made of an image; needs `unpacked-NAME` among the names made.
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

    /// What skopeo calls an image of this layout.
    pub fn image(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Copies one image into a layout of the caller's own, to be damaged there.
    pub fn copy_of(&self, tag: &str) -> OwnLayout {
        let own = tempfile::Builder::new().prefix("rcx-layout").tempdir().expect("temporary directory");
        let layout = Layout { dir: own.path().to_owned() };
        run("skopeo", &["copy", "--quiet", "--insecure-policy", &self.image(tag), &layout.image(tag)]);
        OwnLayout { layout, tag: tag.to_owned(), own }
    }

    /// The digest (`sha256:...`) of the manifest or index that a tag stands for.
    pub fn digest(&self, tag: &str) -> String {
        let index = json(&self.dir.join("index.json"));
        let manifests = index["manifests"].as_array().expect("index.json lists manifests");
        let found = manifests.iter().find(|one| one["annotations"][REF_NAME] == tag);
        text(&found.unwrap_or_else(|| panic!("no {tag} in {}", self.dir.display()))["digest"])
    }

    /// Where a blob is stored.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// The manifest of a tag.
    pub fn manifest(&self, tag: &str) -> Value {
        json(&self.blob(&self.digest(tag)))
    }

    /// The digests of an image's layers, lowest first.
    pub fn layers(&self, tag: &str) -> Vec<String> {
        let manifest = self.manifest(tag);
        manifest["layers"]
            .as_array()
            .expect("a manifest has layers")
            .iter()
            .map(|one| text(&one["digest"]))
            .collect()
    }

    /// The size of an image's layers together, as they are stored.
    pub fn layer_bytes(&self, tag: &str) -> u64 {
        let sizes = self.layers(tag).into_iter().map(|layer| fs::metadata(self.blob(&layer)));
        sizes.map(|blob| blob.expect("the blob exists").len()).sum()
    }
}

/// A copy of one image that a test may change; removed on drop.
#[derive(Debug)]
pub struct OwnLayout {
    layout: Layout,
    tag: String,
    own: TempDir,
}

impl OwnLayout {
    /// The layout itself.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What skopeo calls the image.
    pub fn image(&self) -> String {
        self.layout.image(&self.tag)
    }

    /// Changes the manifest and names it anew, so that its digest is right again.
    pub fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.layout.manifest(&self.tag);
        change(&mut manifest);
        let (digest, size) = self.add_blob(manifest.to_string().as_bytes());
        let path = self.own.path().join("index.json");
        let mut index = json(&path);
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = size.into();
        fs::write(path, index.to_string()).expect("write index.json");
    }

    /// Changes the image configuration; digests of configuration and manifest are right again afterwards.
    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let manifest = self.layout.manifest(&self.tag);
        let mut config = json(&self.layout.blob(&text(&manifest["config"]["digest"])));
        change(&mut config);
        let (digest, size) = self.add_blob(config.to_string().as_bytes());
        self.change_manifest(|manifest| {
            manifest["config"]["digest"] = digest.into();
            manifest["config"]["size"] = size.into();
        });
    }

    /// Replaces a layer's bytes; with `digest_too`, the manifest names the new bytes.
    pub fn change_layer(&self, number: usize, bytes: &[u8]) {
        let (digest, size) = self.add_blob(bytes);
        self.change_manifest(|manifest| {
            manifest["layers"][number]["digest"] = digest.into();
            manifest["layers"][number]["size"] = size.into();
        });
    }

    /// Puts a layer's bytes beside the others, for a manifest that names them.
    pub fn add_layer_blob(&self, bytes: &[u8]) {
        self.add_blob(bytes);
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
        write!(hex, "{byte:02x}").expect("a string takes every write");
        hex
    })
}

/// Runs a program that must succeed and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}
