//! Images whose layers are written as text in the language of the conformance suite, loaded into a store.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::blob::Blob;
use crate::case::{Case, Expected};
use crate::docker_registry::DockerRegistry;
use crate::images::{Images, Layout};
use crate::layers::{Line, tar};
use crate::layout;
use crate::program::Program;

/// The repository of loaded images. Their tags are the names that they were made with.
const NAME: &str = "lab/text";

/// Makes layers, from the lowest up, from texts separated by `---`.
pub fn layers(text: &str) -> Vec<Blob> {
    let mut layers = vec![String::new()];
    for line in text.lines().map(str::trim) {
        match line {
            "---" => layers.push(String::new()),
            line => layers.last_mut().expect("never empty").extend([line, "\n"]),
        }
    }
    layers.iter().map(|layer| Blob::of_text(layer)).collect()
}

/// Makes a layer of lines, for content that is too long for a text.
pub fn layer_of(lines: &[Line]) -> Blob {
    blob(tar(lines), None, "application/vnd.oci.image.layer.v1.tar")
}

/// Makes a layer of these bytes. `tar` is their decompressed content.
pub fn blob(bytes: Vec<u8>, tar: Option<&[u8]>, media_type: &str) -> Blob {
    use rcx_imagefs::image::Digest;
    let digest = Digest::of(&bytes);
    Blob { diff_id: tar.map_or(digest, Digest::of), digest, media_type: media_type.to_owned(), bytes }
}

/// The layer of the small image: a static busybox as `/bin/busybox`, `/bin/sh` and `/bin/cat`.
pub fn small() -> Blob {
    let layout: Layout = Images::make(&["small"]).layout();
    let read = |digest: &Value| fs::read(layout.blob(digest.as_str().unwrap())).unwrap();
    let manifest = layout.manifest("small");
    let config: Value = serde_json::from_slice(&read(&manifest["config"]["digest"])).unwrap();
    let layer = &manifest["layers"][0];
    let bytes = read(&layer["digest"]);
    let mut blob = blob(bytes, None, layer["mediaType"].as_str().unwrap());
    blob.diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap().parse().unwrap();
    blob
}

/// Makes an image of layers.
pub fn image(tag: &str, layers: Vec<Blob>) -> Case {
    let expected = Expected::Tree(String::new());
    Case { name: tag.to_owned(), rule: 0, description: String::new(), layers, expected }
}

/// Writes a layout with one image and runs `load` on it.
pub fn try_load(program: &Program, image: &Case) -> Output {
    let dir = program.dir().join("layouts").join(&image.name);
    layout::write(&dir, [image]);
    load_from(program, &dir)
}

fn load_from(program: &Program, dir: &Path) -> Output {
    program.run(&["load", "--name", NAME, dir.to_str().unwrap()])
}

/// Loads an image. Returns its `NAME@DIGEST`.
#[track_caller]
pub fn load(program: &Program, image: &Case) -> String {
    let output = try_load(program, image);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", image.name);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Pulls an image whose layers are these tar archives, lowest first. Returns `NAME@DIGEST`.
pub fn pull_archives(program: &Program, layers: &[Vec<u8>]) -> String {
    let images = Images::make(&["small"]);
    let layout = images.layout().copy_of("small");
    layout.change_manifest(|manifest| manifest["layers"] = json!([]));
    layout.change_config(|config| config["rootfs"]["diff_ids"] = json!([]));
    for layer in layers {
        layout.add_layer(layer);
    }
    let registry = DockerRegistry::start();
    registry.push(&layout.image(), "made:1", &[]);
    program.pull(&registry.reference("made:1"))
}
