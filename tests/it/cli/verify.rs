//! `verify`.

use std::fs;

use rcx_imagefs::image::{Descriptor, Digest, Name, media};
use rcx_imagefs::store::Store;
use serde_json::{Value, json};
use support::old_index::OldLayer;

use super::{Fixture, LAYERS, Layout, keys, texts};
use crate::registry::layout::LayoutRegistry;

/// Runs `verify --json`, which must find problems, and returns them.
#[track_caller]
fn problems(fixture: &Fixture, arguments: &[&str]) -> Vec<String> {
    let output = fixture.program.run(&[&["verify", "--json"], arguments].concat());
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let problems: Vec<String> = serde_json::from_value(report["problems"].clone()).unwrap();
    let store = fixture.program.store().display();
    assert_eq!(report["error"]["code"], "damaged");
    assert!(err.contains(&format!("error: store {store}: {} problems\nhint: ", problems.len())), "{err}");
    problems
}

#[test]
fn verify_reads_each_blob_once() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    fixture.load("lab/b:1", LAYERS.split("---").next().unwrap());
    let report = fixture.program.json(&["verify"]);
    let all = [
        "blobs",
        "bytes",
        "damaged",
        "damaged_blobs",
        "error",
        "images",
        "plain_layers",
        "plain_rebuilt",
        "problems",
        "repaired",
        "spans",
    ];
    assert_eq!(keys(&report), all);
    // Two manifests, two configurations, and two layers, one of them shared.
    assert_eq!((&report["images"], &report["blobs"]), (&json!(2), &json!(6)));
    assert_eq!((&report["spans"], &report["problems"]), (&json!(0), &json!([])));
    let size: u64 = fs::read_dir(fixture.program.store().join("blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(report["bytes"], size);
    assert_eq!(fixture.program.json(&["verify", "--deep"])["spans"], 2);
    let one = fixture.program.json(&["verify", &format!("lab/a@{digest}")]);
    assert_eq!((&one["images"], &one["blobs"]), (&json!(1), &json!(4)));
}

#[test]
fn verify_rebuilds_outdated_indexes_and_deep_compares_the_hashes_of_spans() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let store = Store::open(fixture.program.store()).unwrap();
    let old = OldLayer::gzip();
    old.add_to(&store, "lab/old:1");
    assert_eq!(old.version_in(&store), 2);
    assert!(fixture.program.ok(&["verify"]).ends_with(": 0 problems"));
    assert_eq!(old.version_in(&store), 3);
    // An index with a wrong hash, and with a valid checksum of its own.
    let mut index = fs::read(store.index_path(&old.digest())).unwrap();
    index[256 + 87] ^= 1;
    let checksum = Digest::of(&index[48..]);
    index[16..48].copy_from_slice(checksum.as_bytes());
    store.put_index(&old.digest(), &index).unwrap();
    assert!(fixture.program.ok(&["verify"]).ends_with(": 0 problems"), "only --deep reads spans");
    let found = problems(&fixture, &["--deep"]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("span 0") && found[0].contains("do not match their hash"), "{found:?}");
}

#[test]
fn damage_is_reported_once_and_only_for_the_images_with_it() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let other = fixture.load("lab/b:1", LAYERS.split("---").next().unwrap());
    fixture.load("lab/c:1", "f other x");
    let layer = fixture.layer(&digest, 0);
    fixture.damage(&layer);
    let found = problems(&fixture, &[]);
    assert_eq!(found.len(), 1, "two images share the layer: {found:?}");
    assert!(found[0].starts_with(&format!("blob {layer} is damaged")), "{found:?}");
    assert_eq!(problems(&fixture, &["lab/b:1"]), found);
    assert!(fixture.program.ok(&["verify", "lab/c:1"]).ends_with(": 0 problems"));
    let text = texts(&fixture.program.run(&["verify"])).0;
    assert!(text.starts_with(&found[0]) && text.trim_end().ends_with(": 1 problems"), "{text}");
    // All of them have to go before the blob does.
    let err = texts(&fixture.program.run(&["verify"])).1;
    assert!(err.contains(&format!("`rcx-imagefs rm lab/a@{digest} lab/b@{other}`, then `gc`")), "{err}");
}

#[test]
fn missing_and_damaged_documents_are_reported_once() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let config = fixture.manifest(&digest)["config"]["digest"].as_str().unwrap().to_owned();
    fixture.damage(&config);
    let found = problems(&fixture, &[]);
    assert!(found.len() == 1 && found[0].starts_with(&format!("blob {config} is damaged")), "{found:?}");
    fs::remove_file(fixture.blob(&digest)).unwrap();
    let found = problems(&fixture, &[]);
    assert_eq!(found, [format!("blob {digest} is not in the store")]);
}

#[test]
fn damaged_index_is_rebuilt() {
    let (fixture, _) = Fixture::with("lab/a:1");
    for file in fs::read_dir(fixture.program.store().join("rcx-imagefs/indexes")).unwrap() {
        fs::write(file.unwrap().path(), "damaged").unwrap();
    }
    let output = fixture.program.run(&["verify", "--deep"]);
    let (out, err) = texts(&output);
    assert!(output.status.success() && out.trim_end().ends_with(": 0 problems"), "{out}{err}");
    assert_eq!(err.matches("building its index from the blob").count(), 2, "{err}");
    assert_eq!(texts(&fixture.program.run(&["verify", "--deep"])).1, "");
}

#[test]
fn wrong_diff_id_is_reported_for_a_shared_layer_too() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    // No command takes such an image in; another program may write it into the store.
    let store = fixture.store();
    let put = |media_type: &str, document: &Value| {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        store.put_small(&digest, &bytes).unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    };
    let mut manifest = fixture.manifest(&digest);
    let mut config = fixture.manifest(manifest["config"]["digest"].as_str().unwrap());
    let wrong = Digest::of(b"wrong").to_string();
    config["rootfs"]["diff_ids"][1] = json!(wrong);
    let config = put(media::OCI_CONFIG, &config);
    manifest["config"]["digest"] = json!(config.digest.to_string());
    manifest["config"]["size"] = json!(config.size);
    let manifest = put(media::OCI_MANIFEST, &manifest);
    store
        .tag(&Name::from_archive("lab/wrong").unwrap(), Some(&"1".parse().unwrap()), &manifest, None)
        .unwrap();
    let found = problems(&fixture, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    let layer = fixture.layer(&digest, 1);
    assert!(found[0].starts_with(&format!("layer {layer}: ")) && found[0].ends_with(&wrong), "{found:?}");
}

#[test]
fn repair_fetches_only_the_damaged_blobs_again() {
    let registry = LayoutRegistry::start();
    let (layout, other) = (Layout::new(LAYERS), Layout::new(LAYERS.split("---").next().unwrap()));
    let fixture = Fixture::new();
    for (name, layout) in [("lab/a", &layout), ("lab/b", &other)] {
        fixture.program.ok(&["pull", &registry.serve(name, "1", layout.path().as_ref())]);
    }
    let images = fixture.program.json(&["images"]);
    let image = images[0]["digest"].as_str().unwrap().to_owned();
    let config = fixture.manifest(&image)["config"]["digest"].as_str().unwrap().to_owned();
    let (shared, own) = (fixture.layer(&image, 0), fixture.layer(&image, 1));
    fixture.damage(&shared);
    fs::remove_file(fixture.blob(&config)).unwrap();
    // A problem that no download repairs comes after the blobs.
    let found = problems(&fixture, &[]);
    assert!(
        found[0].contains(&config) && found[1].contains(&shared) || found[0].contains(&shared),
        "{found:?}"
    );

    let before = registry.requests().len();
    let report = fixture.program.json(&["verify", "--repair"]);
    let mut repaired: Vec<&str> =
        report["repaired"].as_array().unwrap().iter().map(|blob| blob.as_str().unwrap()).collect();
    repaired.sort_unstable();
    let mut expected = [config.as_str(), shared.as_str()];
    expected.sort_unstable();
    assert_eq!(repaired, expected);
    assert_eq!(
        (&report["problems"], &report["damaged"], &report["damaged_blobs"]),
        (&json!([]), &json!([]), &json!([]))
    );
    let blobs: Vec<String> =
        registry.requests().split_off(before).into_iter().filter(|path| path.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 2, "each damaged blob once: {blobs:?}");
    assert!(blobs.iter().all(|path| !path.contains(&own)), "{blobs:?}");
    assert!(fixture.program.ok(&["verify", "--deep"]).ends_with(": 0 problems"));
    assert_eq!(fixture.program.json(&["images"]), images, "the tags are unchanged");
}

#[test]
fn blob_that_cannot_be_fetched_again_stays_a_problem() {
    let registry = LayoutRegistry::start();
    let layout = Layout::new(LAYERS);
    let (fixture, local) = Fixture::with("lab/local:1");
    fixture.program.ok(&["pull", &registry.serve("lab/a", "1", layout.path().as_ref())]);
    let layer = fixture.layer(&local, 1);
    fixture.damage(&layer);
    let bytes = fs::read(fixture.blob(&layer)).unwrap();
    drop(registry);
    let found = problems(&fixture, &["--repair"]);
    assert!(found[0].starts_with(&format!("blob {layer} is damaged")), "{found:?}");
    assert!(found.iter().any(|line| line.ends_with("was loaded from a file; load it again")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("could not be repaired: ")), "{found:?}");
    assert_eq!(fs::read(fixture.blob(&layer)).unwrap(), bytes, "the damaged blob is still there");
}

#[test]
fn blob_that_came_with_another_image_is_no_problem_any_more() {
    let registry = LayoutRegistry::start();
    let layout = Layout::new(LAYERS);
    // Listed before the image with a registry, so that repairing it is tried first.
    let (fixture, local) = Fixture::with("lab/local:1");
    let pulled = registry.serve("lab/a", "1", layout.path().as_ref());
    fixture.program.ok(&["pull", &pulled]);
    fixture.program.ok(&["tag", &pulled, "docker.invalid/lab/a:1"]);
    let layer = fixture.layer(&local, 1);
    fixture.damage(&layer);
    let report = fixture.program.json(&["verify", "--repair"]);
    assert_eq!((&report["repaired"], &report["problems"]), (&json!([layer]), &json!([])));
}
