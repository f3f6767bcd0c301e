//! `rm`.

use serde_json::{Value, json};

use super::{Fixture, LAYERS, texts};

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
fn rm_goes_on_after_a_failure_and_reports_each_one() {
    let (fixture, _) = Fixture::with("lab/a:1");
    fixture.load("lab/b:1", LAYERS);
    let output = fixture.program.run(&["rm", "lab/none:1", "lab/a:1", "lab/none:2"]);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(out.starts_with("untagged lab/a:1\nremoved lab/a@"), "{out}");
    let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    let missing = |tag: u32| format!("error: image docker.io/lab/none:{tag} is not in the store");
    let expected = [missing(1), missing(2), "error: 2 of 3 images could not be removed".to_owned()];
    assert_eq!(errors, expected, "{err}");

    let output = fixture.program.run(&["rm", "lab/none:1", "lab/b:1", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let items: Value = serde_json::from_str(&texts(&output).0).unwrap();
    assert_eq!((&items[0]["reference"], &items[0]["code"]), (&json!("lab/none:1"), &json!("no-image")));
    assert_eq!((&items[1]["name"], &items[1]["removed"]), (&json!("lab/b"), &json!(true)));
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}
