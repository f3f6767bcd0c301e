//! `df`.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, LAYERS, keys};

fn kind<'a>(shown: &'a Value, name: &str) -> &'a Value {
    shown["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == name).unwrap()
}

fn total(fixture: &Fixture, directory: &str) -> u64 {
    let files = fs::read_dir(fixture.program.store().join(directory)).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn df_counts_each_file_once_by_kind_and_shared_files_for_each_image() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", LAYERS);
    // Shares the first layer.
    fixture.load("lab/b:1", LAYERS.split("---").next().unwrap());
    let shown = fixture.program.json(&["df"]);
    assert_eq!(keys(&shown), ["free", "images", "kinds", "store"]);
    let names: Vec<&Value> = shown["kinds"].as_array().unwrap().iter().map(|kind| &kind["kind"]).collect();
    assert_eq!(
        names,
        ["blobs", "indexes", "tree-images", "plain-layers", "unpacked-layers", "downloads", "roots"]
    );
    assert_eq!(keys(&shown["kinds"][0]), ["bytes", "count", "kind", "reclaimable"]);
    let blobs = kind(&shown, "blobs");
    let bytes = total(&fixture, "blobs/sha256");
    assert_eq!(
        (&blobs["count"], &blobs["bytes"], &blobs["reclaimable"]),
        (&json!(6), &json!(bytes), &json!(0))
    );
    let indexes = kind(&shown, "indexes");
    assert_eq!(
        (&indexes["count"], &indexes["bytes"]),
        (&json!(2), &json!(total(&fixture, "rcx-imagefs/indexes")))
    );

    let images = shown["images"].as_array().unwrap();
    assert_eq!(keys(&images[0]), ["bytes", "digest", "name", "shared", "tags", "unique"]);
    let number = |image: &Value, key: &str| image[key].as_u64().unwrap();
    assert_eq!(number(&images[0], "shared"), number(&images[1], "shared"));
    assert!(number(&images[0], "shared") > 0);
    let unique: u64 = images.iter().map(|image| number(image, "unique")).sum();
    let all: u64 = [&blobs, &indexes, &kind(&shown, "tree-images")]
        .map(|kind| kind["bytes"].as_u64().unwrap())
        .iter()
        .sum();
    assert_eq!(unique + number(&images[0], "shared"), all, "every file belongs to an image");
}

#[test]
fn unique_and_reclaimable_are_what_gc_frees() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", LAYERS);
    fixture.load("lab/b:1", LAYERS.split("---").next().unwrap());
    let unique = fixture.program.json(&["df"])["images"][0]["unique"].as_u64().unwrap();
    fixture.program.ok(&["rm", "lab/a:1"]);
    let partial = fixture.program.store().join("rcx-imagefs/partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("ab".repeat(32)), [0; 3000]).unwrap();
    let shown = fixture.program.json(&["df"]);
    let downloads = kind(&shown, "downloads");
    let expected = (&json!(1), &json!(3000), &json!(0));
    assert_eq!((&downloads["count"], &downloads["bytes"], &downloads["reclaimable"]), expected);
    let reclaimable: u64 =
        shown["kinds"].as_array().unwrap().iter().filter_map(|kind| kind["reclaimable"].as_u64()).sum();
    assert_eq!(reclaimable, unique);
    assert_eq!(fixture.program.json(&["gc"])["bytes"], unique);
    let text = fixture.program.ok(&["df"]);
    assert!(text.starts_with("KIND ") && text.contains("\nlab/b:1 "), "{text}");
}
