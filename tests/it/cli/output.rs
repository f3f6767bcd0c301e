//! Standard output that is closed or full.

use std::fs::File;
use std::process::Stdio;

use super::{Fixture, failed, texts};

/// Every command that prints, as text and as JSON.
const PRINTING: &[&[&str]] = &[
    &["images"],
    &["images", "--json"],
    &["inspect", "lab/a:1"],
    &["inspect", "lab/a:1", "--json"],
    &["gc"],
    &["gc", "--json"],
    &["verify"],
    &["verify", "--json"],
    &["ls", "lab/a:1:/etc"],
    &["diff", "lab/a:1", "lab/a:1", "--json"],
    &["df"],
    &["version"],
    &["completions", "bash"],
    &["cp", "lab/a:1:/etc/hosts", "-"],
    &["--help"],
    &["images", "--help"],
    &["--version"],
];

#[test]
fn closed_pipe_is_not_an_error() {
    let (fixture, _) = Fixture::with("lab/a:1");
    for &arguments in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = fixture.program.command(arguments).stdout(writer).output().unwrap();
        let (_, err) = texts(&output);
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn failed_write_to_stdout_is_an_error() {
    let (fixture, _) = Fixture::with("lab/a:1");
    for arguments in PRINTING.iter().take(13) {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = fixture.program.command(arguments).stdout(Stdio::from(full)).output().unwrap();
        let (error, _) = failed(&output);
        assert!(
            error.starts_with("cannot write to standard output: No space left on device"),
            "{arguments:?}: {error}"
        );
    }
}
