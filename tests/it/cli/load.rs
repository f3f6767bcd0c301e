//! The command `load`. The tests of `import` cover the formats of archives.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, LAYERS, Layout, failed, keys, texts};

#[test]
fn load_prints_the_images_and_a_second_load_copies_nothing() {
    let fixture = Fixture::new();
    let layout = Layout::new(LAYERS);
    let load = |name: &str| fixture.program.json(&["load", layout.path(), "--name", name]);
    let first = load("lab/a:1");
    assert_eq!(first.as_array().unwrap().len(), 1);
    let all = ["bytes_fetched", "digest", "layers", "layers_fetched", "name", "plain_layers", "tags"];
    assert_eq!(keys(&first[0]), all);
    assert_eq!((&first[0]["name"], &first[0]["tags"]), (&json!("lab/a"), &json!(["1"])));
    assert_eq!((&first[0]["layers"], &first[0]["layers_fetched"]), (&json!(2), &json!(2)));
    assert!(first[0]["bytes_fetched"].as_u64() > Some(0));
    let second = load("lab/a:2");
    assert_eq!(second[0]["digest"], first[0]["digest"]);
    assert_eq!((&second[0]["layers_fetched"], &second[0]["bytes_fetched"]), (&json!(0), &json!(0)));
}

#[test]
fn image_without_a_name_is_loaded_by_its_digest() {
    let fixture = Fixture::new();
    let layout = Layout::new(LAYERS);
    let output = fixture.program.run(&["load", layout.path()]);
    let (printed, warning) = texts(&output);
    assert!(output.status.success() && printed.starts_with("unnamed@sha256:"), "{output:?}");
    assert!(warning.contains("(tagged latest) has no name") && warning.contains("--name"), "{warning}");
    let images = fixture.program.json(&["images"]);
    assert_eq!((&images[0]["name"], &images[0]["tags"]), (&json!("unnamed"), &json!([])));
    fixture.program.ok(&["inspect", printed.trim()]);
}

#[test]
fn image_that_fails_is_named_at_the_end_and_the_others_are_loaded() {
    let (fixture, old) = Fixture::with("lab/a:1");
    let layout = Layout::new("f other x");
    layout.name("lab/a:1");
    layout.add(&Layout::new("f third x"), "lab/b:1");
    let output = fixture.program.run(&["load", layout.path()]);
    let (printed, errors) = texts(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(printed.starts_with("lab/b@sha256:") && printed.lines().count() == 1, "{printed}");
    assert!(
        errors.contains(&format!("load {}: lab/a:1: tag lab/a:1 moves from {old}", layout.path())),
        "{errors}"
    );
    assert!(errors.contains("1 of 2 images could not be loaded"), "{errors}");
    let output = fixture.program.run(&["load", layout.path(), "--json"]);
    let items: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &items[0]["name"]), (Some(2), &json!("lab/b")));
    assert_eq!((&items[1]["reference"], &items[1]["code"]), (&json!("lab/a:1"), &json!("exists")));
}

#[test]
fn layer_with_a_wrong_media_type_is_named_in_a_warning() {
    let fixture = Fixture::new();
    let load = |media_type: &str, name: &str| {
        let layout = Layout::with_media("f a x", media_type, |_| ());
        let output = fixture.program.run(&["load", layout.path(), "--name", name]);
        assert!(output.status.success(), "{output:?}");
        texts(&output).1
    };
    let warning = load("application/vnd.oci.image.layer.v1.tar+zstd", "lab/a:1");
    assert!(
        warning.contains("layer sha256:") && warning.contains("declares zstd, but the content is gzip"),
        "{warning}"
    );
    // The layer is in the store now.
    let warning = load("application/vnd.oci.image.layer.v1.tar", "lab/a:2");
    assert!(warning.contains("declares tar, but the content is gzip"), "{warning}");
    assert_eq!(load("application/octet-stream", "lab/a:3"), "");
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

#[test]
fn image_of_another_platform_is_refused_unless_any_platform_is_accepted() {
    let fixture = Fixture::new();
    let layout = Layout::with_config(LAYERS, |config| config["architecture"] = "s390x".into());
    let load = ["load", layout.path(), "--name", "lab/a:1"];
    let output = fixture.program.run(&[&load[..], &["--platform", "linux/arm64", "--json"]].concat());
    let (error, _) = failed(&output);
    assert!(error.contains("is for linux/s390x, not for linux/arm64"), "{error}");
    assert!(texts(&output).0.contains("\"no-platform\""), "{output:?}");
    let (error, hint) = fixture.fails(&load);
    assert!(error.contains("is for linux/s390x, not for linux/"), "{error}");
    assert!(hint.unwrap().contains("--any-platform"));
    assert_eq!(fixture.program.json(&["images"]), json!([]));

    let output = fixture.program.run(&[&load[..], &["--any-platform"]].concat());
    assert!(output.status.success() && texts(&output).1.contains("is for linux/s390x"), "{output:?}");
    fixture.program.ok(&["load", layout.path(), "--name", "lab/b:1", "--platform", "linux/s390x"]);
}

#[test]
fn image_that_states_no_platform_fits_any() {
    let fixture = Fixture::new();
    let layout = Layout::with_config(LAYERS, |config| {
        config.as_object_mut().unwrap().retain(|key, _| key != "os" && key != "architecture");
    });
    fixture.program.ok(&["load", layout.path(), "--name", "lab/a:1", "--platform", "linux/arm64"]);
}

#[test]
fn archive_moves_a_tag_only_with_name_or_replace() {
    let (fixture, old) = Fixture::with("lab/a:1");
    let layout = Layout::new("f other x");
    layout.name("lab/a:1");
    let (error, hint) = fixture.fails(&["load", layout.path()]);
    assert!(error.contains(&format!("tag lab/a:1 moves from {old} to sha256:")), "{error}");
    assert!(hint.unwrap().contains("--replace"));
    assert_eq!(fixture.program.json(&["images"])[0]["digest"], json!(old));
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 1, "nothing was stored");

    let output = fixture.program.run(&["load", layout.path(), "--replace"]);
    assert!(output.status.success(), "{output:?}");
    assert!(texts(&output).1.contains("tag lab/a:1 moves from"), "{output:?}");
    // The same image again, and a name that the user gives, need no option.
    fixture.program.ok(&["load", layout.path()]);
    fixture.load("lab/a:1", LAYERS);
}
