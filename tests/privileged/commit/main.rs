//! Committed roots: the new image shows what the root had, through every engine and in other tools.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod configuration;
mod difference;
mod engines;
mod interrupted;
mod random;
mod refused;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use support::images::{Images, run};
use support::layers::{parse, tar};
use support::program::{Program, TestMount};

/// What the base image has beside busybox. `/tmp` is not as in the skeleton, and `/box` is a link.
const BASE: &str = r"
d dir mode=750 uid=7 mtime=100.5
f dir/a one mtime=200
f dir/b two mtime=200 xattr.user.note=old
d dir/sub mtime=100
f dir/sub/deep three mtime=100
d gone mtime=100
f gone/x 1 mtime=100
d gone/y mtime=100
f gone/y/z 2 mtime=100
f link-a shared mtime=300
h link-b link-a
h dir/link-c link-a
l sym dir/a mtime=400
c null 1:3 mode=666 mtime=400
p fifo mtime=400
d moved mtime=100
f moved/f 4 mtime=100
d moved/below mtime=100
f moved/below/g 5 mtime=100
d tmp mode=777 mtime=500
f tmp/kept 6 mtime=500
l box dir mtime=500
d dev mtime=500
f replaced 7 mtime=500
d replaced-dir mtime=500
f replaced-dir/inner 8 mtime=500
f same-size abcdef mtime=500
f \xff\xfe mtime=500
";

/// A mounted store with the image `lab/base:1`. Dropping it unmounts the roots that a test has left.
struct CommitFixture {
    // Dropped first: the directory of the program cannot be removed while it holds a mount.
    mount: TestMount,
    program: Program,
}

impl CommitFixture {
    fn new() -> Self {
        Self::with_base(BASE)
    }

    /// With an image of busybox and a layer, written as text.
    fn with_base(layer: &str) -> Self {
        let program = Program::new();
        let copy = Images::make(&["small"]).layout().copy_of("small");
        copy.add_layer(&tar(&parse(layer)[0]));
        program.ok(&["load", "--name", "lab/base:1", copy.layout().dir().to_str().unwrap()]);
        Self { mount: program.mount(), program }
    }

    /// Makes a root.
    #[track_caller]
    fn create(&self, image: &str, id: &str, engine: &str, upper: &str) -> PathBuf {
        self.program.ok(&["root", "create", image, "--id", id, "--engine", engine, "--upper", upper]).into()
    }

    /// Commits a root. Returns the `NAME@DIGEST` that the command prints.
    #[track_caller]
    fn commit(&self, id: &str, name: &str, options: &[&str]) -> String {
        self.program.ok(&[&["root", "commit", id, name], options].concat())
    }

    #[track_caller]
    fn remove(&self, id: &str) {
        self.program.ok(&["root", "remove", id]);
    }

    /// The document of a digest in the store.
    fn document(&self, digest: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.program.blob(digest.as_str().unwrap())).unwrap()).unwrap()
    }

    /// The manifest and the configuration of an image.
    fn documents(&self, image: &str) -> (Value, Value) {
        let manifest = self.document(&image.rsplit_once('@').unwrap().1.into());
        let config = self.document(&manifest["config"]["digest"]);
        (manifest, config)
    }

    /// The same of the image `lab/base:1`.
    fn base(&self) -> (Value, Value) {
        let digest = self.program.json(&["inspect", "lab/base:1"])["digest"].clone();
        self.documents(&format!("@{}", digest.as_str().unwrap()))
    }

    /// The digest of the topmost layer of an image.
    fn top_layer(&self, image: &str) -> String {
        let (manifest, _) = self.documents(image);
        manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned()
    }

    /// The names of the members of the topmost layer of an image, as GNU tar lists them.
    fn members(&self, image: &str) -> Vec<String> {
        let blob = self.program.blob(&self.top_layer(image));
        run("tar", &["--list", "--gzip", "--file", blob.to_str().unwrap()])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Unpacks an image with umoci. Returns the root directory.
    fn umoci(&self, image: &str) -> PathBuf {
        let (name, copy) = (image.split_once('@').unwrap().0, self.program.dir().join("copy"));
        let bundle = self.program.dir().join("bundle");
        let from = format!("oci:{}:{name}:1", self.program.store().display());
        let to = format!("oci:{}:it", copy.display());
        run("skopeo", &["copy", "--quiet", "--insecure-policy", &from, &to]);
        run("umoci", &["unpack", "--image", &format!("{}:it", copy.display()), bundle.to_str().unwrap()]);
        bundle.join("rootfs")
    }
}

impl Drop for CommitFixture {
    fn drop(&mut self) {
        for name in fs::read_dir(self.program.dir().join("run/roots")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("--lazy").arg(name.path()).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a shell command with a root as its working directory, outside of the root.
#[track_caller]
fn shell(root: &Path, line: &str) -> String {
    run("sh", &["-ec", &format!("cd '{}'\n{line}", root.display())])
}
