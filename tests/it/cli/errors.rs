//! Errors are one line, with a hint where something can be done; with `--json` they are also an object with a code.

use std::fs;

use super::{Fixture, failed, texts};
use support::program::Program;

#[test]
fn missing_store_is_an_error_and_no_command_creates_it() {
    let fixture = Fixture::new();
    let store = fixture.program.store().display().to_string();
    let commands: [&[&str]; 8] = [
        &["images"],
        &["images", "--json"],
        &["inspect", "a"],
        &["path", "a"],
        &["rm", "a"],
        &["gc"],
        &["verify", "--json"],
        &["status"],
    ];
    for command in commands {
        let (error, hint) = fixture.fails(command);
        assert_eq!(error, format!("there is no store at {store}"), "{command:?}");
        assert_eq!(hint.unwrap(), "`pull` and `load` create a store; `--store DIR` selects another one");
    }
    assert!(!fixture.program.store().exists());
}

#[test]
fn foreign_directory_is_not_used_as_a_store() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("diary.txt"), "private").unwrap();
    let program = Program::with_store(dir.path());
    for command in [&["images"][..], &["pull", "127.0.0.1:1/a"], &["load", "/nonexistent"]] {
        let (error, hint) = failed(&program.run(command));
        assert!(error.starts_with(dir.path().to_str().unwrap()), "{command:?}: {error}");
        assert!(hint.unwrap().contains("--store"), "{command:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn error_about_an_invalid_reference_names_the_reference_and_the_fault() {
    let (fixture, _) = Fixture::with("lab/a:1");
    for (reference, wanted) in [
        ("", "has no name"),
        ("https://reg.example/a", "https://"),
        ("a@sha256:00", "digest `sha256:00` does not have 64 lower-case hex digits"),
        ("Lab/../a", "Lab/../a"),
        ("a:b c", "b c"),
    ] {
        for command in ["inspect", "path", "rm", "verify", "pull"] {
            let (error, _) = fixture.fails(&[command, reference]);
            assert!(error.contains(wanted), "{command} {reference}: {error}");
        }
    }
    let (error, _) = fixture.fails(&["pull", "--platform", "linux", "127.0.0.1:1/a"]);
    assert_eq!(
        error,
        "platform `linux` is not of the form OS/ARCH[/VARIANT], as in linux/amd64 or linux/arm/v7"
    );
}

#[test]
fn missing_image_is_an_error_with_the_tags_that_exist() {
    let (fixture, digest) = Fixture::with("reg.example/lab/a:1");
    fixture.load("reg.example/lab/a:two", super::LAYERS);
    for command in ["inspect", "path", "rm", "verify"] {
        let (error, hint) = fixture.fails(&[command, "reg.example/lab/a:3"]);
        assert_eq!(error, "image reg.example/lab/a:3 is not in the store");
        assert_eq!(hint.unwrap(), "the store has this image with other tags: 1, two");
        let (error, hint) = fixture.fails(&[command, "reg.example/lab/b"]);
        assert_eq!(error, "image reg.example/lab/b:latest is not in the store");
        assert!(hint.unwrap().starts_with("`rcx-imagefs pull reg.example/lab/b` fetches it"));
    }
    let (_, hint) = fixture.fails(&["inspect", "reg.example/lab/a"]);
    let expected =
        "no tag was given, so `latest` was assumed; the store has this image with other tags: 1, two";
    assert_eq!(hint.unwrap(), expected);
    let other = digest.replace(|c: char| c.is_ascii_digit(), "0");
    let (error, _) = fixture.fails(&["inspect", &format!("reg.example/lab/a@{other}")]);
    assert!(error.contains(&other), "{error}");
}

#[test]
fn misspelled_name_is_an_error_with_near_names() {
    let (fixture, _) = Fixture::with("lab/python:3.12");
    fixture.load("lab/gcc:13", super::LAYERS);
    let (_, hint) = fixture.fails(&["inspect", "lab/pyhton:3.12"]);
    let expected = "`rcx-imagefs pull lab/pyhton:3.12` fetches it; did you mean `lab/python:3.12`?";
    assert_eq!(hint.unwrap(), expected);
    let (_, hint) = fixture.fails(&["inspect", "lab/pyton"]);
    assert!(hint.unwrap().ends_with("did you mean `lab/python`?"));
    let (_, hint) = fixture.fails(&["inspect", "other/image"]);
    assert!(hint.unwrap().ends_with("`rcx-imagefs images` lists the images in the store"));
}

#[test]
fn unreachable_registry_is_an_error_with_a_hint() {
    let fixture = Fixture::new();
    // Port 1 (tcpmux) is closed on every host.
    let (error, hint) = fixture.fails(&["pull", "127.0.0.1:1/lab/a:1"]);
    assert_eq!(error, "pull 127.0.0.1:1/lab/a:1: 127.0.0.1:1: connection refused");
    assert_eq!(hint.unwrap(), "check that the registry `127.0.0.1:1` exists and is running");
}

#[test]
fn store_is_created_only_when_there_is_something_to_store() {
    let fixture = Fixture::new();
    let nowhere = fixture.program.dir().join("nowhere").display().to_string();
    for command in [["pull", "127.0.0.1:1/lab/a:1"], ["load", &nowhere], ["mount", &nowhere]] {
        fixture.fails(&command);
        assert!(!fixture.program.store().exists(), "{command:?}");
    }
}

#[test]
fn missing_mountpoint_is_an_error() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let dir = fixture.program.dir().join("nowhere");
    let (error, _) = fixture.fails(&["mount", dir.to_str().unwrap()]);
    assert_eq!(error, format!("mountpoint {} does not exist", dir.display()));
}

#[test]
fn mountpoint_that_would_hide_the_store_is_refused() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let store = fixture.program.store().canonicalize().unwrap();
    for dir in [store.as_path(), store.parent().unwrap()] {
        let (error, _) = fixture.fails(&["mount", "--allow-nonempty", dir.to_str().unwrap()]);
        let wanted = format!("mountpoint {} would hide {}", dir.display(), store.display());
        assert!(error.starts_with(&wanted), "{error}");
    }
}

#[test]
fn failed_command_prints_an_object_with_its_code() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let missing = fixture.program.dir().join("nowhere").display().to_string();
    for (arguments, code) in [
        (&["inspect", "lab/b:1", "--json"][..], "no-image"),
        (&["inspect", "a b", "--json"], "reference"),
        (&["status", "--json"], "no-daemon"),
        (&["load", &missing, "--json"], "io"),
        (&["root", "remove", "--json", "-x"], "usage"),
        (&["images", "--json", "extra", "more"], "usage"),
        (&["run", "--json", "lab/b:1", "--", "true"], "no-image"),
    ] {
        let output = fixture.program.run(arguments);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {out}{err}");
        let printed: serde_json::Value =
            serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}"));
        let object = if arguments[0] == "run" { &printed } else { &printed["error"] };
        assert_eq!(object["code"], code, "{arguments:?}: {out}");
        let message = object["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{arguments:?}: {out}");
    }
}

#[test]
fn usage_of_an_error_is_the_same_with_and_without_variables() {
    let usage = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.env_remove("RCX_IMAGEFS_STORE").env_remove("RCX_IMAGEFS_RUN");
        let output = command.envs(variables.iter().copied()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        error.lines().find(|line| line.starts_with("Usage: ")).map(str::to_owned)
    };
    let variables = [("RCX_IMAGEFS_STORE", "/nonexistent"), ("RCX_IMAGEFS_RUN", "/nonexistent")];
    for arguments in [&["mount"][..], &["pull"], &["root", "create"], &["unpack", "a"], &["run"]] {
        let expected = usage(&[], arguments);
        assert!(expected.is_some(), "{arguments:?}");
        assert_eq!(usage(&variables, arguments), expected, "{arguments:?}");
    }
    assert_eq!(usage(&[("RCX_IMAGEFS_STORE", "")], &["images"]), None);
}

#[test]
fn arguments_of_other_engines_get_a_hint_at_what_does_the_same() {
    let fixture = Fixture::new();
    for (command, fault, advice) in [
        (
            &["ps"][..],
            "unrecognized subcommand 'ps'",
            "`rcx-imagefs root list` lists the roots that exist, and `status` shows the daemon",
        ),
        (
            &["run", "--rm", "a"],
            "unexpected argument '--rm' found",
            "omit it: what a run writes is always removed afterwards",
        ),
        (&["run", "-e", "A=b", "a"], "unexpected argument '-e' found", "use `--env NAME=VALUE`"),
    ] {
        let (error, hint) = fixture.fails(command);
        assert_eq!((error.as_str(), hint.as_deref()), (fault, Some(advice)), "{command:?}");
    }
    let output = fixture.program.run(&["run", "--json", "-w", "/tmp", "a"]);
    let report: serde_json::Value = serde_json::from_str(&texts(&output).0).unwrap();
    assert_eq!(report["error"]["hint"], "use `--chdir DIR`");
}

#[test]
fn path_in_place_of_a_reference_gets_a_hint() {
    let (fixture, _) = Fixture::with("lab/a:1");
    for (command, wanted) in [
        (&["inspect", "./image.tar"][..], "`rcx-imagefs load PATH` loads images"),
        (&["run", "-v", "/tmp:/mnt", "lab/a:1", "true"], "`run --dir IN=OUT` binds a directory of the host"),
    ] {
        let (_, hint) = fixture.fails(command);
        assert!(hint.as_deref().is_some_and(|hint| hint.starts_with(wanted)), "{command:?}: {hint:?}");
    }
}
