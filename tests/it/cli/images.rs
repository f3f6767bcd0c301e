//! `images`.

use std::fs;
use std::process::Command;

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
    assert_eq!(keys(one), ["code", "created", "digest", "error", "layers", "name", "size", "tags"]);
    let manifest = fixture.manifest(&first);
    let blobs = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    let size: u64 = blobs.map(|blob| blob["size"].as_u64().unwrap()).sum();
    let expected = json!({
        "name": "lab/a", "tags": ["1", "2"], "digest": first, "layers": 2, "size": size, "error": null,
        "code": null, "created": "2024-05-06T07:08:09Z",
    });
    assert_eq!(*one, expected);
    assert_eq!((&listed[1]["name"], &listed[1]["digest"]), (&json!("reg.example:5000/b"), &json!(other)));

    let text = fixture.program.ok(&["images"]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], ["NAME", "TAGS", "DIGEST", "LAYERS", "SIZE", "CREATED"]);
    assert_eq!(rows[1][..4], ["lab/a", "1,2", first.as_str(), "2"]);
    assert!(text.lines().nth(1).unwrap().ends_with(" ago"), "{text}");
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
fn name_selects_images_and_quiet_prints_what_other_commands_take() {
    let (fixture, first) = Fixture::with("lab/a:1");
    let second = fixture.load("lab/a:2", "f other x");
    fixture.load("lab/b:1", LAYERS);
    let quiet = |name: &str| fixture.program.ok(&["images", "-q", name]);
    assert_eq!(quiet("lab/a"), format!("lab/a@{first}\nlab/a@{second}"));
    assert_eq!(quiet("lab/a:2"), format!("lab/a@{second}"));
    assert_eq!(quiet(&format!("lab/a@{first}")), format!("lab/a@{first}"));
    for none in ["lab/none", "lab/a:3", "a"] {
        assert_eq!(quiet(none), "", "{none}");
        assert_eq!(fixture.program.json(&["images", none]), json!([]), "{none}");
    }
    let mut arguments = vec!["rm"];
    let listed = quiet("lab/a");
    arguments.extend(listed.lines());
    fixture.program.ok(&arguments);
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 1);
    let (error, _) = fixture.fails(&["images", "Not Valid"]);
    assert!(error.contains("Not Valid"), "{error}");
}

#[test]
fn digests_are_short_only_on_a_terminal() {
    let (fixture, digest) = Fixture::with("lab/a:1");
    let on_terminal = |arguments: &[&str]| {
        let command = fixture.program.command(arguments);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let output = Command::new("script").args(["-qec", &line.join(" "), "/dev/null"]).output();
        let output = output.expect("`script` (bsdutils) is needed for this test");
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let hex = digest.strip_prefix("sha256:").unwrap();
    let short = on_terminal(&["images"]);
    assert!(short.contains(&hex[..12]) && !short.contains(&hex[..13]), "{short}");
    assert!(on_terminal(&["images", "--no-trunc"]).contains(&digest));
    assert!(fixture.program.ok(&["images"]).contains(&digest));
    fixture.program.ok(&["inspect", &hex[..12]]);
}

#[test]
fn new_store_has_no_images() {
    let (fixture, _) = Fixture::with("lab/a:1");
    fixture.program.ok(&["rm", "lab/a:1"]);
    assert_eq!(fixture.program.json(&["images"]), json!([]));
}

#[test]
fn name_without_images_gets_a_hint_at_near_ones() {
    let (fixture, _) = Fixture::with("lab/gcc:13");
    for (name, wanted) in [("gcc", "hint: did you mean `lab/gcc`?\n"), ("perl", "")] {
        let output = fixture.program.run(&["images", name]);
        assert!(output.status.success());
        assert_eq!(super::texts(&output).1, wanted, "{name}");
    }
}
