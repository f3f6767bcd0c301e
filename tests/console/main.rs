//! Runs every `console` block of the README and the manual as written, and compares what it prints.
//!
//! Lines that start with `# ` or `$ ` are commands; a command goes on in the next line after a `\` or within a quote. The
//! other lines are the expected output, in which `…` stands for any text, and a line of `…` alone for any number of lines.
//! The blocks of a page run in one shell, in order, on a host of their own: see [`host::Host`]. Blocks marked
//! `console-host` change the host or need the Internet: they are not run, and `exempt_blocks_are_known` lists them.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod host;
mod page;
mod pattern;

use std::collections::BTreeSet;
use std::fs;

use support::repository;

use self::host::{Host, Start};
use self::page::{Block, Page};

/// Commands of blocks that are not run.
const EXEMPT: &[(&str, &str)] = &[
    ("src/manual/rcx-imagefs-operations.7.md", "cargo install --path . --root /usr/local"),
    (
        "src/manual/rcx-imagefs-operations.7.md",
        "install -m 644 scripts/rcx-imagefs.service /etc/systemd/system/",
    ),
    ("src/manual/rcx-imagefs-operations.7.md", "systemctl daemon-reload"),
    ("src/manual/rcx-imagefs-operations.7.md", "systemctl enable --now rcx-imagefs"),
    (
        "src/manual/rcx-imagefs-registries.7.md",
        "scripts/registry setup /srv/registry --name registry.example.org --systemd",
    ),
    (
        "src/manual/rcx-imagefs-registries.7.md",
        "scripts/registry user /srv/registry push builder <builder.password",
    ),
    (
        "src/manual/rcx-imagefs-registries.7.md",
        "scripts/registry user /srv/registry pull worker <worker.password",
    ),
    ("src/manual/rcx-imagefs-registries.7.md", "systemctl enable --now rcx-registry"),
    (
        "src/manual/rcx-imagefs-store.7.md",
        "skopeo inspect oci:/var/lib/rcx-imagefs:docker.io/library/python:3.12",
    ),
    (
        "src/manual/rcx-imagefs-environments.7.md",
        "rcx-imagefs env publish --registry registry.example/env --sign /etc/rcx-imagefs/publish_key",
    ),
    (
        "src/manual/rcx-imagefs-environments.7.md",
        "rcx-imagefs env rollback python3 --as bob -m 'numpy is broken' --publish --sign /etc/rcx-imagefs/publish_key",
    ),
];

/// Runs all blocks of a page and stops at the first command that prints something else than the page says.
fn run_page(path: &str, start: Start) {
    let page = Page::read(path);
    let commands: Vec<_> =
        page.blocks.iter().filter(|block| !block.exempt).flat_map(Block::commands).collect();
    if commands.is_empty() {
        return;
    }
    let number = PAGES.iter().position(|page| *page == path).expect("the list has every tested page");
    let mut host = Host::new(start, number);
    for command in commands {
        if let Err(actual) = host.run(command) {
            panic!(
                "{path}:{line}: this command prints something else than the page says:\n\n    {text}\n\n\
                 expected:\n{expected}\n\nactual:\n{actual}\n",
                line = command.line,
                text = command.text,
                expected = command.expected.join("\n"),
            );
        }
    }
}

macro_rules! pages {
    ($($name:ident: $path:literal from $start:ident,)*) => {
        const PAGES: &[&str] = &[$($path),*];

        mod blocks_run_as_written_in {
            use super::{Start, run_page};

            $(
                #[test]
                fn $name() {
                    run_page($path, Start::$start);
                }
            )*
        }
    };
}

pages! {
    readme: "README.md" from Empty,
    changes: "src/manual/rcx-imagefs-changes.7.md" from Mounted,
    config: "src/manual/rcx-imagefs-config.5.md" from Mounted,
    errors: "src/manual/rcx-imagefs-errors.7.md" from Mounted,
    images: "src/manual/rcx-imagefs-images.7.md" from Mounted,
    isolate: "src/manual/rcx-imagefs-isolate.8.md" from Mounted,
    operations: "src/manual/rcx-imagefs-operations.7.md" from Mounted,
    registries: "src/manual/rcx-imagefs-registries.7.md" from Mounted,
    run: "src/manual/rcx-imagefs-run.7.md" from Mounted,
    store: "src/manual/rcx-imagefs-store.7.md" from Mounted,
    environments: "src/manual/rcx-imagefs-environments.7.md" from Mounted,
}

#[test]
fn every_page_of_the_manual_has_a_test() {
    let files = fs::read_dir(repository().join("src/manual")).unwrap();
    let pages = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<String> =
        pages.filter(|name| name.ends_with(".md")).map(|name| format!("src/manual/{name}")).collect();
    let tested = PAGES.iter().filter(|path| **path != "README.md").map(|path| (*path).to_owned());
    assert_eq!(tested.collect::<BTreeSet<_>>(), pages);
}

#[test]
fn exempt_blocks_are_known() {
    let pages: Vec<Page> = PAGES.iter().map(|path| Page::read(path)).collect();
    let mut exempt = Vec::new();
    for page in &pages {
        for command in page.blocks.iter().filter(|block| block.exempt).flat_map(Block::commands) {
            println!("not run: {}:{}: {}", page.path, command.line, command.text);
            exempt.push((page.path.as_str(), command.text.as_str()));
        }
    }
    assert_eq!(exempt, EXEMPT);
}
