//! The configuration file, environment variables and options, and their order of precedence.

use std::fs;
use std::process::Command;

use super::{Fixture, failed, texts};

/// The program without the options and variables that [`support::program::Program`] sets.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
    for variable in ["RUST_LOG", "RCX_IMAGEFS_STORE", "RCX_IMAGEFS_RUN"] {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

#[test]
fn unknown_key_is_an_error_with_file_and_line_in_every_command() {
    let fixture = Fixture::new();
    let file = fixture.program.dir().join("config.toml");
    fs::write(&file, "platform = 'linux/amd64'\n[mount]\nthreds = 3\n").unwrap();
    for command in [&["images"][..], &["pull", "127.0.0.1:1/a"], &["completions", "bash"]] {
        let (error, _) = fixture.fails(command);
        let start =
            format!("configuration {}: line 3: unknown field `threds`, expected one of", file.display());
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn invalid_value_is_an_error_before_anything_is_done() {
    let fixture = Fixture::new();
    let file = fixture.program.dir().join("config.toml");
    for (text, wanted) in [
        ("default-registry = 'two words'", "default registry `two words` is not a host"),
        ("platform = 'linux'", "platform `linux` is not of the form OS/ARCH[/VARIANT]"),
        ("store = 1", "line 1: invalid type: integer `1`"),
        ("store = ", "line 1: "),
    ] {
        fs::write(&file, text).unwrap();
        let (error, _) = fixture.fails(&["pull", "127.0.0.1:1/a"]);
        let rest = error.strip_prefix(&format!("configuration {}: ", file.display()));
        assert!(rest.is_some_and(|rest| rest.starts_with(wanted)), "{error}");
    }
    assert!(!fixture.program.store().exists());
}

#[test]
fn file_of_the_config_option_must_exist() {
    let (error, _) = failed(&bare(&["--config", "/nonexistent/c.toml", "images"]).output().unwrap());
    assert!(error.starts_with("configuration /nonexistent/c.toml: No such file"), "{error}");
}

#[test]
fn option_overrides_environment_and_environment_overrides_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    fs::write(&config, "store = '/nonexistent/of-file'\n").unwrap();
    let run = |arguments: &[&str], environment: Option<&str>| {
        let mut command = bare(&["--config", config.to_str().unwrap(), "images"]);
        command.args(arguments);
        if let Some(store) = environment {
            command.env("RCX_IMAGEFS_STORE", store);
        }
        failed(&command.output().unwrap()).0
    };
    let environment = Some("/nonexistent/of-environment");
    assert_eq!(run(&[], None), "there is no store at /nonexistent/of-file");
    assert_eq!(run(&[], environment), "there is no store at /nonexistent/of-environment");
    let option = ["--store", "/nonexistent/of-option"];
    assert_eq!(run(&option, environment), "there is no store at /nonexistent/of-option");
}

#[test]
fn default_registry_is_left_out_of_names_and_optional_in_references() {
    let fixture = Fixture::new();
    fs::write(fixture.program.dir().join("config.toml"), "default-registry = 'reg.example:5000'\n").unwrap();
    let digest = fixture.load("other.example/lab/b:1", super::LAYERS);
    let layout = super::Layout::new("f x");
    let loaded = fixture.program.ok(&["load", layout.path(), "--name", "reg.example:5000/lab/a:1"]);
    assert!(loaded.starts_with("lab/a@sha256:"), "{loaded}");
    let listed = fixture.program.json(&["images"]);
    assert_eq!((&listed[0]["name"], &listed[1]["name"]), (&"other.example/lab/b".into(), &"lab/a".into()));
    for reference in ["lab/a:1", "reg.example:5000/lab/a:1", &loaded] {
        assert_eq!(fixture.program.json(&["inspect", reference])["name"], "lab/a", "{reference}");
    }
    assert_eq!(fixture.program.json(&["inspect", "other.example/lab/b:1"])["digest"], digest.as_str());
}

#[test]
fn verbose_logs_more_and_does_not_change_the_output() {
    let (fixture, image) = Fixture::with("lab/a:1");
    fs::remove_dir_all(fixture.program.store().join("rcx-imagefs/indexes")).unwrap();
    let outputs = |arguments: &[&str]| {
        let output = fixture.program.run(arguments);
        assert!(output.status.success());
        texts(&output)
    };
    let (out, err) = outputs(&["verify"]);
    assert!(out.contains("0 problems"), "{out}");
    assert_eq!(err.lines().count(), 2, "a warning for each layer: {err}");
    assert!(err.contains(&fixture.layer(&image, 0)), "{err}");
    let (quiet, nothing) = outputs(&["verify"]);
    assert_eq!((quiet.as_str(), nothing.as_str()), (out.as_str(), ""));
    for verbose in ["-v", "-vv"] {
        assert_eq!(outputs(&["verify", verbose]).0, out);
    }
}
