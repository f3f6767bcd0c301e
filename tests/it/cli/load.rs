//! `load`, as a command; what archives can be is told by the tests of `import`.

use std::fs;

use serde_json::json;

use super::{LAYERS, Layout, Scene, keys};

#[test]
fn load_prints_what_came_in_and_a_second_one_fetches_nothing() {
    let scene = Scene::new();
    let layout = Layout::new(LAYERS);
    let load = |name: &str| scene.program.json(&["load", layout.path(), "--name", name]);
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
fn image_without_a_name_needs_one() {
    let scene = Scene::new();
    let layout = Layout::new(LAYERS);
    let (error, hint) = scene.fails(&["load", layout.path()]);
    assert!(
        error.starts_with(&format!("load {}: ", layout.path())) && error.contains("has no name"),
        "{error}"
    );
    assert_eq!(hint.unwrap(), "name the image with --name NAME[:TAG]");
    assert_eq!(scene.program.json(&["images"]), json!([]));
}

#[test]
fn file_that_is_not_an_archive_is_named() {
    let scene = Scene::new();
    let file = scene.program.dir().join("notes.txt");
    fs::write(&file, "not an archive").unwrap();
    for path in [file.to_str().unwrap(), "/nonexistent/archive.tar"] {
        let (error, _) = scene.fails(&["load", path]);
        assert!(error.starts_with(&format!("load {path}: ")), "{error}");
    }
}
