//! `images`.

use std::fs;

use serde_json::json;

use super::{Fixture, LAYERS, keys};

#[test]
fn every_image_is_listed_once_with_its_tags() {
    let (fixture, first) = Fixture::with("lab/a:1");
    assert_eq!(fixture.load("lab/a:2", LAYERS), first);
    let other = fixture.load("reg.example:5000/b:1", "f other x");
    let listed = fixture.program.json(&["images"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let one = &listed[0];
    assert_eq!(keys(one), ["code", "digest", "error", "layers", "name", "size", "tags"]);
    let manifest = fixture.manifest(&first);
    let blobs = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    let size: u64 = blobs.map(|blob| blob["size"].as_u64().unwrap()).sum();
    let expected = json!({
        "name": "lab/a", "tags": ["1", "2"], "digest": first, "layers": 2, "size": size, "error": null,
        "code": null,
    });
    assert_eq!(*one, expected);
    assert_eq!((&listed[1]["name"], &listed[1]["digest"]), (&json!("reg.example:5000/b"), &json!(other)));

    let text = fixture.program.ok(&["images"]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], ["NAME", "TAGS", "DIGEST", "LAYERS", "SIZE"]);
    assert_eq!(rows[1][..4], ["lab/a", "1,2", first.as_str(), "2"]);
}

#[test]
fn image_without_its_manifest_is_listed_with_an_error() {
    let (fixture, gone) = Fixture::with("lab/a:1");
    fixture.load("lab/b:1", "f other x");
    fs::remove_file(fixture.blob(&gone)).unwrap();
    let listed = fixture.program.json(&["images"]);
    assert_eq!(listed[0]["layers"], json!(null));
    assert_eq!(listed[0]["size"], json!(null));
    assert_eq!(listed[0]["error"], format!("blob {gone} is not in the store"));
    assert_eq!((&listed[1]["layers"], &listed[1]["error"]), (&json!(1), &json!(null)));
    assert!(fixture.program.ok(&["images"]).lines().nth(1).unwrap().contains("damaged"));
}

#[test]
fn new_store_has_no_images() {
    let (fixture, _) = Fixture::with("lab/a:1");
    fixture.program.ok(&["rm", "lab/a:1"]);
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}
