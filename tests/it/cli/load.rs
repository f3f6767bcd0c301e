//! The command `load`. The tests of `import` cover the formats of archives.

use std::fs;

use serde_json::json;

use super::{Fixture, LAYERS, Layout, keys};

#[test]
fn load_prints_the_images_and_a_second_load_copies_nothing() {
    let fixture = Fixture::new();
    let layout = Layout::new(LAYERS);
    let load = |name: &str| fixture.program.json(&["load", layout.path(), "--name", name]);
    let first = load("lab/a:1");
    assert_eq!(first.as_array().unwrap().len(), 1);
    let all = ["bytes_fetched", "digest", "layers", "layers_fetched", "name", "tags"];
    assert_eq!(keys(&first[0]), all);
    assert_eq!((&first[0]["name"], &first[0]["tags"]), (&json!("lab/a"), &json!(["1"])));
    assert_eq!((&first[0]["layers"], &first[0]["layers_fetched"]), (&json!(2), &json!(2)));
    assert!(first[0]["bytes_fetched"].as_u64() > Some(0));
    let second = load("lab/a:2");
    assert_eq!(second[0]["digest"], first[0]["digest"]);
    assert_eq!((&second[0]["layers_fetched"], &second[0]["bytes_fetched"]), (&json!(0), &json!(0)));
}

#[test]
fn image_without_a_name_is_an_error_with_a_hint() {
    let fixture = Fixture::new();
    let layout = Layout::new(LAYERS);
    let (error, hint) = fixture.fails(&["load", layout.path()]);
    assert!(
        error.starts_with(&format!("load {}: ", layout.path())) && error.contains("has no name"),
        "{error}"
    );
    assert_eq!(hint.unwrap(), "name the image with --name NAME[:TAG]");
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}

#[test]
fn file_that_is_not_an_archive_is_named() {
    let fixture = Fixture::new();
    let file = fixture.program.dir().join("notes.txt");
    fs::write(&file, "not an archive").unwrap();
    for path in [file.to_str().unwrap(), "/nonexistent/archive.tar"] {
        let (error, _) = fixture.fails(&["load", path]);
        assert!(error.starts_with(&format!("load {path}: ")), "{error}");
    }
}
