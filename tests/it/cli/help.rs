//! Help, version, completions, man pages, and invalid arguments.

use std::fs;

use super::{Fixture, texts};

const COMMANDS: &[&str] = &[
    "pull",
    "login",
    "logout",
    "load",
    "push",
    "copy",
    "mount",
    "images",
    "inspect",
    "path",
    "tag",
    "ls",
    "cp",
    "diff",
    "df",
    "version",
    "config",
    "doctor",
    "env",
    "rm",
    "gc",
    "verify",
    "status",
    "manual",
    "completions",
    "man",
];

#[test]
fn help_lists_every_command_and_every_command_has_help() {
    let fixture = Fixture::new();
    let all = fixture.program.ok(&["--help"]);
    for &command in COMMANDS {
        let listed = all.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(command) && words.next().is_some()
        });
        assert!(listed, "{command} is not in:\n{all}");
        for flag in ["--help", "-h"] {
            let help = fixture.program.ok(&[command, flag]);
            assert!(help.contains(&format!("Usage: rcx-imagefs {command}")), "{help}");
            assert!(help.contains("--store <DIR>") && help.contains("--config <FILE>"), "{help}");
        }
        if !matches!(command, "mount" | "manual" | "completions" | "man" | "config" | "env") {
            let help = fixture.program.ok(&[command, "--help"]);
            assert!(help.contains("--json"), "{command} prints data and lacks --json: {help}");
        }
    }
    assert!(!fixture.program.store().exists(), "help created a store");
}

#[test]
fn version_is_the_package_version() {
    let version = Fixture::new().program.ok(&["--version"]);
    assert_eq!(version, concat!("rcx-imagefs ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn invalid_arguments_exit_with_2_and_point_to_the_help() {
    let fixture = Fixture::new();
    let wrong: [&[&str]; 6] = [
        &["pul"],
        &["images", "--jso"],
        &["pull"],
        &["inspect", "a", "b"],
        &["mount", "/x", "--threads", "0"],
        &["completions", "tcl"],
    ];
    for arguments in wrong {
        let output = fixture.program.run(arguments);
        let (out, err) = texts(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains("try '--help'"), "{arguments:?}: {err}");
    }
    let output = fixture.program.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("Usage: rcx-imagefs"), "without a command, help is printed");
}

#[test]
fn completion_script_of_each_shell_asks_the_program() {
    let fixture = Fixture::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = fixture.program.ok(&["completions", shell]);
        assert!(
            script.contains("_RCX_IMAGEFS_COMPLETE") && script.contains("rcx-imagefs"),
            "{shell}: {script}"
        );
    }
}

#[test]
fn each_command_has_a_man_page() {
    let fixture = Fixture::new();
    let dir = fixture.program.dir().join("share/man/man1");
    assert_eq!(fixture.program.ok(&["man", dir.to_str().unwrap()]), "");
    for &command in COMMANDS {
        let page = fs::read_to_string(dir.join(format!("rcx-imagefs-{command}.1"))).unwrap();
        assert!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert!(fs::read_to_string(dir.join("rcx-imagefs.1")).unwrap().contains("rcx\\-imagefs"));

    let file = fixture.program.dir().join("file");
    fs::write(&file, "").unwrap();
    let (error, _) = fixture.fails(&["man", file.join("below").to_str().unwrap()]);
    assert!(error.starts_with(&format!("cannot create directory {}/below: ", file.display())), "{error}");
}
