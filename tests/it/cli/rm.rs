//! `rm`.

use serde_json::json;

use super::{Fixture, LAYERS};

#[test]
fn rm_of_the_last_tag_removes_the_image() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    fixture.load("lab/a:2", LAYERS);
    let done = fixture.program.json(&["rm", "lab/a:1"]);
    assert_eq!(done, json!([{ "name": "lab/a", "digest": digest, "untagged": ["1"], "removed": false }]));
    assert_eq!(fixture.program.json(&["images"])[0]["tags"], json!(["2"]));
    assert_eq!(fixture.program.ok(&["rm", "lab/a:2"]), format!("untagged lab/a:2\nremoved lab/a@{digest}"));
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}

#[test]
fn rm_of_a_digest_removes_all_tags_and_leaves_the_blobs() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    fixture.load("lab/a:2", LAYERS);
    let other = fixture.load("lab/b:1", "f other x");
    let done = fixture.program.json(&["rm", &format!("lab/a@{digest}")]);
    assert_eq!(done, json!([{ "name": "lab/a", "digest": digest, "untagged": ["1", "2"], "removed": true }]));
    let left = fixture.program.json(&["images"]);
    assert_eq!((left.as_array().unwrap().len(), &left[0]["digest"]), (1, &json!(other)));
    assert!(fixture.blob(&digest).exists(), "only gc removes blobs");
}

#[test]
fn rm_keep_leaves_the_image_under_its_digest() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let done = fixture.program.json(&["rm", "--keep", "lab/a:1"]);
    assert_eq!((&done[0]["untagged"], &done[0]["removed"]), (&json!(["1"]), &json!(false)));
    let left = fixture.program.json(&["images"]);
    assert_eq!((&left[0]["digest"], &left[0]["tags"]), (&json!(digest), &json!([])));
    let row = fixture.program.ok(&["images"]);
    assert_eq!(row.lines().nth(1).unwrap().split_whitespace().nth(1), Some("-"), "{row}");
    fixture.program.ok(&["inspect", &format!("lab/a@{digest}")]);
}

#[test]
fn missing_reference_among_several_removes_nothing() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let (error, _) = fixture.fails(&["rm", "lab/a:1", "lab/none:1"]);
    assert!(error.contains("lab/none:1"), "{error}");
    assert_eq!(fixture.program.json(&["images"])[0]["tags"], json!(["1"]), "nothing was removed");
}
