//! Mirrors in the configuration.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Fixture, LAYERS, Layout, texts};
use crate::registry::layout::LayoutRegistry;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

#[test]
fn layer_that_a_mirror_has_changed_is_fetched_from_the_registry() {
    let (registry, mirror, fixture) = (LayoutRegistry::start(), LayoutRegistry::start(), Fixture::new());
    let layout = Layout::new(LAYERS);
    let reference = registry.serve("lab/a", "1", layout.path().as_ref());
    let changed = fixture.program.dir().join("changed");
    let copied = Command::new("cp").arg("-a").arg(layout.path()).arg(&changed).status().unwrap();
    assert!(copied.success());
    let manifest = json(&blob(&changed, &json(&changed.join("index.json"))["manifests"][0]));
    for layer in manifest["layers"].as_array().unwrap() {
        let path = blob(&changed, layer);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let prefixed = mirror.serve("hub/lab/a", "1", &changed);
    let host = prefixed.split('/').next().unwrap();
    let config = format!("[mirrors]\n\"{}\" = [\"{host}/hub\"]\n", reference.split('/').next().unwrap());
    fs::write(fixture.program.dir().join("config.toml"), config).unwrap();

    let output = fixture.program.run(&["pull", &reference]);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert!(
        out.starts_with(reference.strip_suffix(":1").unwrap()),
        "the name is that of the registry: {out}"
    );
    assert!(err.contains("fetching it from the registry itself"), "{err}");
    fixture.program.ok(&["verify", "--deep"]);
}
