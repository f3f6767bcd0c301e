//! `manual` and `man`, and a check that the manual describes all commands, options, configuration keys, exit codes and error
//! codes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcx_imagefs::cli;
use rcx_imagefs::error::ErrorCode;
use rcx_imagefs::manual::ManualPage;

use super::Fixture;

/// All commands with their paths: `rcx-imagefs`, `rcx-imagefs pull`, `rcx-imagefs root create`.
fn commands() -> Vec<(String, clap::Command)> {
    fn collect(path: String, command: &clap::Command, all: &mut Vec<(String, clap::Command)>) {
        all.push((path.clone(), command.clone()));
        for command in command.get_subcommands() {
            collect(format!("{path} {}", command.get_name()), command, all);
        }
    }
    let mut command = cli::command().disable_help_subcommand(true);
    command.build();
    let mut all = Vec::new();
    collect("rcx-imagefs".to_owned(), &command, &mut all);
    assert!(all.len() > 15, "{}", all.len());
    all
}

fn page(name: &str) -> &'static str {
    ManualPage::find(name).unwrap().markdown
}

/// The code spans in the first cells of a page's table rows.
fn described(markdown: &str) -> BTreeSet<&str> {
    let rows = markdown.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once("` |").map(|(first, _)| first)).collect()
}

/// The part of a page from a heading to the next one.
fn section<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let start = markdown.find(&format!("## {heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`"));
    let body = &markdown[start + 3..];
    &body[..body.find("\n## ").unwrap_or(body.len())]
}

/// Writes the man pages.
fn man_pages(fixture: &Fixture) -> PathBuf {
    let dir = fixture.program.dir().join("man");
    fixture.program.ok(&["man", dir.to_str().unwrap()]);
    dir
}

#[test]
fn manual_lists_its_pages_and_prints_their_source() {
    let fixture = Fixture::new();
    let list = fixture.program.ok(&["manual"]);
    assert_eq!(list.lines().count(), ManualPage::ALL.len(), "{list}");
    for page in ManualPage::ALL {
        let listed = list.lines().any(|line| {
            line.split_once(' ')
                .is_some_and(|(name, rest)| name == page.name && rest.trim() == page.summary())
        });
        assert!(listed, "{}:\n{list}", page.name);
        for name in [page.name, &page.title(), &format!("rcx-imagefs-{}", page.name)] {
            assert_eq!(fixture.program.ok(&["manual", name]), page.markdown.trim_end(), "{name}");
        }
    }
    let (error, hint) = fixture.fails(&["manual", "nothing"]);
    assert_eq!(error, "the manual has no page `nothing`");
    assert!(hint.unwrap().contains("images, run, isolate, config"));
}

#[test]
fn every_page_of_the_manual_and_every_command_has_a_man_page() {
    let fixture = Fixture::new();
    let dir = man_pages(&fixture);
    let mut expected: BTreeSet<String> = ManualPage::ALL.iter().map(ManualPage::file_name).collect();
    expected.extend(commands().iter().map(|(path, _)| format!("{}.1", path.replace(' ', "-"))));
    let written = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(written.collect::<BTreeSet<_>>(), expected);
    for (path, _) in commands() {
        let page = fs::read_to_string(dir.join(format!("{}.1", path.replace(' ', "-")))).unwrap();
        for heading in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(page.contains(&format!(".SH {heading}\n")), "{path}: {heading}");
        }
        let status = &page[page.find(".SH EXIT STATUS").unwrap()..page.find(".SH ENVIRONMENT").unwrap()];
        let mut codes = vec!["\\fB0\\fR:", "\\fB2\\fR:", "\n128 plus"];
        if path.ends_with(" run") {
            codes.push("\\fB1\\fR:");
        }
        for code in codes {
            assert!(status.contains(code), "{path}: {code}: {status}");
        }
    }
}

#[test]
fn every_man_page_renders_without_a_warning() {
    let fixture = Fixture::new();
    let dir = man_pages(&fixture);
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let output = Command::new("man")
            .args(["-l", "--warnings", "-E", "UTF-8"])
            .arg(&path)
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "80")
            .env_remove("MANROFFOPT")
            .output()
            .expect("`man` is missing: install man-db and groff-base");
        let (out, err) = super::texts(&output);
        assert!(output.status.success() && err.is_empty(), "{}: {err}", path.display());
        let name = Path::new(path.file_name().unwrap()).file_stem().unwrap().to_str().unwrap();
        assert!(out.contains(name) && !out.contains("\\f"), "{}:\n{out}", path.display());
    }
}

#[test]
fn every_command_and_option_is_described_on_a_man_page() {
    let fixture = Fixture::new();
    let dir = man_pages(&fixture);
    let read = |path: &str| fs::read_to_string(dir.join(format!("{}.1", path.replace(' ', "-")))).unwrap();
    let escaped = |text: &str| text.replace('-', "\\-").replace('\'', "\\*(Aq");
    for (path, command) in commands() {
        let about = command.get_about().unwrap_or_else(|| panic!("{path} has no help")).to_string();
        let page = read(&path);
        assert!(page.contains(&escaped(&about)), "{path}: {about}: {page}");
        if let Some((parent, _)) = path.rsplit_once(' ') {
            let listed = format!("{}(1)\n", escaped(&path.replace(' ', "-")));
            assert!(read(parent).contains(&listed), "{path} is not on the page of {parent}");
        }
        for argument in command.get_arguments() {
            let help =
                argument.get_help().unwrap_or_else(|| panic!("{path}: {} has no help", argument.get_id()));
            assert!(!help.to_string().is_empty(), "{path}: {}", argument.get_id());
            if let Some(option) = argument.get_long() {
                assert!(page.contains(&format!("\\-\\-{}", escaped(option))), "{path}: {option}");
            }
        }
    }
}

/// The keys that a table of the configuration accepts, from the message about an unknown one; `None` if it is no table.
fn keys_of(table: &str) -> Option<BTreeSet<String>> {
    let head = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
    let error = cli::check_config(&format!("{head}no-such-key = 1")).unwrap_err().to_string();
    let (_, expected) = error.split_once("unknown field `no-such-key`, expected ")?;
    Some(expected.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

#[test]
fn configuration_page_describes_exactly_the_keys_that_exist() {
    let page = page("config");
    let keys = keys_of("").unwrap();
    let (tables, keys): (Vec<String>, Vec<String>) = keys.into_iter().partition(|key| keys_of(key).is_some());
    assert!(tables.len() >= 5 && keys.len() >= 6, "{tables:?} {keys:?}");
    let described_keys = described(section(page, "Top-level keys"));
    assert_eq!(described_keys, keys.iter().map(String::as_str).collect());
    for table in tables {
        let all = keys_of(&table).unwrap();
        // Keys that are tables themselves have a section.
        let (below, keys): (Vec<_>, Vec<_>) =
            all.iter().partition(|key| page.contains(&format!("## Table `[{table}.{key}]`\n")));
        let described_keys = described(section(page, &format!("Table `[{table}]`")));
        assert_eq!(
            described_keys,
            keys.into_iter().map(String::as_str).collect(),
            "[{table}], below: {below:?}"
        );
    }
}

#[test]
fn errors_page_describes_exactly_the_codes_that_exist() {
    let codes: BTreeSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(described(page("errors")), codes);
}

#[test]
fn operations_page_describes_the_exit_codes() {
    let status = section(page("operations"), "Exit status");
    for code in ["0", "1", "2", "128"] {
        assert!(status.split(|c: char| !c.is_ascii_digit()).any(|number| number == code), "{code}: {status}");
    }
}
