//! Completion in a real bash. The other shells get their scripts from clap and ask the program in the same way.

use std::path::Path;
use std::process::Command;

use super::Fixture;
use support::program::binary;

/// Calls the completion function as bash does: with the line, and with its words split at `COMP_WORDBREAKS`.
const COMPLETE: &str = r#"
source <(rcx-imagefs completions bash)
COMP_LINE=$1 COMP_POINT=${#1}
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_rcx_imagefs rcx-imagefs "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Returns what bash offers after `line`.
fn offered(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in line.chars() {
        let last = words.last_mut().unwrap();
        match letter {
            ' ' => words.push(String::new()),
            ':' | '=' | '@' if last.is_empty() => last.push(letter),
            ':' | '=' | '@' => words.push(letter.to_string()),
            // A letter after a break begins a new word.
            _ if matches!(&**last, ":" | "=" | "@") => words.push(letter.to_string()),
            _ => last.push(letter),
        }
    }
    let program = binary("rcx-imagefs");
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", COMPLETE, "bash", line])
        .args(words)
        .env("PATH", path)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{line}: {error}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_completes_commands_subcommands_and_options() {
    let commands = offered("rcx-imagefs ");
    assert!(["pull", "run", "root", "--store"].iter().all(|word| commands.iter().any(|offer| offer == word)));
    assert_eq!(offered("rcx-imagefs unp"), ["unpack"]);
    assert_eq!(offered("rcx-imagefs gc --dry"), ["--dry-run"]);
    assert_eq!(offered("rcx-imagefs root re"), ["remove"]);
    assert_eq!(offered("rcx-imagefs root remove --f"), ["--force"]);
    assert_eq!(offered("rcx-imagefs isolate-shim x --no-su"), Vec::<String>::new());
}

#[test]
fn bash_completes_images_of_the_store_across_colons() {
    let (fixture, digest) = Fixture::with("lab/python:3.12");
    fixture.load("lab/python:3.13", "f other x");
    fixture.program.ok(&["rm", "--keep", "lab/python:3.12"]);
    fixture.load("lab/tools:1", "f tools x");
    let line = |rest: &str| format!("rcx-imagefs --store {} {rest}", fixture.program.store().display());
    assert_eq!(offered(&line("run lab/t")), ["lab/tools:1"]);
    assert_eq!(offered(&line("run lab/tools:")), ["1"]);
    assert_eq!(offered(&line("rm lab/tools:1 lab/python:3")), ["3.13"]);
    assert_eq!(offered(&line("inspect lab/python@")), ["sha256:".to_owned() + &digest["sha256:".len()..]]);
    let none = Path::new("/nonexistent");
    assert_eq!(offered(&format!("rcx-imagefs rm --store={} lab", none.display())), Vec::<String>::new());
}

#[test]
fn accidental_variables_do_not_turn_commands_into_completion() {
    let fixture = Fixture::new();
    let mut command = fixture.program.command(&["--version"]);
    let output = command.env("COMPLETE", "bash").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("rcx-imagefs "), "{output:?}");
}
