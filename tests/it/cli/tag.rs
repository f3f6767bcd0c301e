//! `tag`.

use serde_json::json;

use super::{Fixture, LAYERS, texts};

#[test]
fn tag_gives_an_image_another_name_and_copies_nothing() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let blobs = || std::fs::read_dir(fixture.program.store().join("blobs/sha256")).unwrap().count();
    let before = blobs();
    assert_eq!(fixture.program.ok(&["tag", "lab/a:1", "lab/b"]), format!("lab/b:latest@{digest}"));
    let tagged = fixture.program.json(&["tag", &digest, "reg.example/c:exam"]);
    let expected = json!({"name": "reg.example/c", "tag": "exam", "digest": digest, "moved_from": null});
    assert_eq!(tagged, expected);
    for reference in ["lab/b", "lab/b:latest", "reg.example/c:exam"] {
        assert_eq!(fixture.program.json(&["inspect", reference])["digest"], digest, "{reference}");
    }
    assert_eq!(blobs(), before);
    // The other names keep the image.
    fixture.program.ok(&["rm", "lab/a:1", "lab/b:latest"]);
    fixture.program.ok(&["gc"]);
    fixture.program.ok(&["verify", "reg.example/c:exam"]);
}

#[test]
fn tag_moves_from_another_image_with_a_warning_and_that_image_stays() {
    let (fixture, first) = Fixture::with("lab/a:1");
    let second = fixture.load("lab/b:1", "f other x");
    let output = fixture.program.run(&["tag", "lab/b:1", "lab/a:1"]);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert_eq!(out, format!("lab/a:1@{second}\n"));
    assert!(err.contains(&format!("tag lab/a:1 moves from {first} to {second}")), "{err}");
    assert_eq!(fixture.program.json(&["inspect", &format!("lab/a@{first}")])["tags"], json!([]));
    // Back again, by the digest.
    let back = fixture.program.json(&["tag", &first, "lab/a:1"]);
    assert_eq!(back["moved_from"], second.as_str());
}

#[test]
fn wrong_names_for_tag_are_errors_that_change_nothing() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    for (arguments, wanted) in [
        (["tag", "lab/none:1", "lab/b"], "image docker.io/lab/none:1 is not in the store".to_owned()),
        (["tag", "lab/a:1", "Lab/B"], "tag Lab/B: ".to_owned()),
        (["tag", "lab/a:1", &format!("lab/b@{digest}")], format!("`lab/b@{digest}` has a digest")),
    ] {
        let (error, _) = fixture.fails(&arguments);
        assert!(error.starts_with(&wanted), "{arguments:?}: {error}");
    }
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 1);
    let before = fixture.load("lab/c:1", LAYERS);
    assert_eq!(before, digest);
}
