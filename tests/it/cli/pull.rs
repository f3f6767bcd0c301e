//! `pull` of several images.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use super::{Fixture, LAYERS, Layout, keys, texts};
use crate::registry::layout::LayoutRegistry;

/// A registry with the images `lab/a:1` and `lab/b:1`.
fn registry() -> (LayoutRegistry, [Layout; 2]) {
    let registry = LayoutRegistry::start();
    let layouts = [Layout::new(LAYERS), Layout::new("f other x")];
    registry.serve("lab/a", "1", layouts[0].path().as_ref());
    registry.serve("lab/b", "1", layouts[1].path().as_ref());
    (registry, layouts)
}

#[test]
fn pull_goes_on_after_a_failure_and_reports_each_one() {
    let (registry, _layouts) = registry();
    let fixture = Fixture::new();
    let references = ["lab/a:1", "lab/none:1", "lab/b:1", "lab/gone:2"].map(|rest| registry.reference(rest));
    let mut arguments = vec!["pull"];
    arguments.extend(references.iter().map(String::as_str));
    arguments.push("not a reference");
    let (out, err) = {
        let output = fixture.program.run(&arguments);
        assert_eq!(output.status.code(), Some(2));
        texts(&output)
    };
    let names: Vec<&str> = out.lines().map(|line| line.split_once('@').unwrap().0).collect();
    assert_eq!(names, [registry.reference("lab/a"), registry.reference("lab/b")]);
    let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 4, "{err}");
    assert!(errors[0].starts_with(&format!("error: pull {}: ", references[1])), "{err}");
    assert!(errors[1].starts_with(&format!("error: pull {}: ", references[3])), "{err}");
    assert!(errors[2].starts_with("error: pull not a reference: "), "{err}");
    assert_eq!(errors[3], "error: 3 of 5 images could not be pulled");

    let output = fixture.program.run(&[&arguments[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(2));
    let items: Value = serde_json::from_str(&texts(&output).0).unwrap();
    let codes: Vec<Option<&str>> =
        items.as_array().unwrap().iter().map(|item| item["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("not-found"), None, Some("not-found"), Some("reference")]);
    assert_eq!(items[0]["name"], registry.reference("lab/a"));
    assert_eq!(keys(&items[1]), ["code", "error", "hint", "reference"]);
    assert_eq!(items[1]["reference"], json!(references[1]));
}

#[test]
fn bad_line_of_a_list_is_named_with_file_and_line_and_the_others_are_pulled() {
    let (registry, _layouts) = registry();
    let fixture = Fixture::new();
    let list = fixture.program.dir().join("images.txt");
    let [a, b] = ["lab/a:1", "lab/b:1"].map(|rest| registry.reference(rest));
    fs::write(&list, format!("# images of the course\n\n{a}  # the first one\nhttps://bad line\n  {b}\n"))
        .unwrap();
    let output = fixture.program.run(&["pull", "--from", list.to_str().unwrap()]);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert_eq!(out.lines().count(), 2, "{out}");
    let wanted = format!("error: pull https://bad line ({} line 4): reference `", list.display());
    assert!(err.lines().any(|line| line.starts_with(&wanted)), "{err}");
    assert!(err.trim_end().ends_with("error: 1 of 3 images could not be pulled"), "{err}");
    assert_eq!(fixture.program.json(&["images"]).as_array().unwrap().len(), 2);
}

#[test]
fn list_is_read_from_standard_input_and_added_to_the_arguments() {
    let (registry, _layouts) = registry();
    let fixture = Fixture::new();
    let arguments = ["pull", "-q", "--from", "-", &registry.reference("lab/b:1")];
    let mut command = fixture.program.command(&arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let line = format!("{}\n", registry.reference("lab/a:1"));
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let (out, err) = texts(&child.wait_with_output().unwrap());
    assert_eq!((out.lines().count(), err.as_str()), (2, ""), "{out}");
}

#[test]
fn missing_list_is_an_error_and_pulls_nothing() {
    let (registry, _layouts) = registry();
    let fixture = Fixture::new();
    let (error, _) = fixture.fails(&["pull", "--from", "/nonexistent/list", &registry.reference("lab/a:1")]);
    assert!(error.starts_with("cannot open /nonexistent/list: "), "{error}");
    assert!(!fixture.program.store().exists());
    let list = fixture.program.dir().join("empty");
    fs::write(&list, "# nothing yet\n").unwrap();
    let output = fixture.program.run(&["pull", "--from", list.to_str().unwrap()]);
    let (_, err) = texts(&output);
    assert!(output.status.success() && err.contains("lists no image"), "{err}");
}

#[test]
fn missing_tag_is_an_error_with_the_tags_of_the_registry() {
    let (registry, layouts) = registry();
    for tag in ["2.7", "3.11", "3.12"] {
        registry.serve("lab/python", tag, layouts[0].path().as_ref());
    }
    let fixture = Fixture::new();
    let (error, hint) = fixture.fails(&["pull", &registry.reference("lab/python")]);
    assert!(error.ends_with(&format!("{}: not found", registry.reference("lab/python"))), "{error}");
    let expected = "no tag was given, so `latest` was assumed; the registry has this image with other tags: 2.7, 3.11, 3.12";
    assert_eq!(hint.unwrap(), expected);
    let (_, hint) = fixture.fails(&["pull", &registry.reference("lab/python:3.21")]);
    assert_eq!(hint.unwrap(), "the registry has this image with other tags: 3.11, 3.12, 2.7");
    let output = fixture.program.run(&["pull", "--json", &registry.reference("lab/python:3.21")]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["error"]["code"], "not-found");

    // A repository without tags: the usual hint.
    let (_, hint) = fixture.fails(&["pull", &registry.reference("lab/none")]);
    assert!(
        hint.unwrap().starts_with("no tag was given, so `latest` was assumed; check the name and the tag")
    );
}
