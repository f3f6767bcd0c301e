//! Runs the cases of the suite through other tools, and writes down where they differ: `RESULTS.md`.
//!
//! `scripts/conformance-table` calls it. What the tools do is recorded, not demanded.

#![allow(clippy::unwrap_used, reason = "a tool of the tests: a panic is how it fails")]

mod tools;
mod verdict;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use support::case::{self, Expected};
use support::layout;
use tools::{NAMES, Tools};
use verdict::Verdict;

fn main() {
    let scratch = std::env::args_os().nth(1).expect("a directory to work in");
    let scratch = Path::new(&scratch);
    let tools = Tools::new(scratch);
    let cases = case::all();
    let mut rows = String::new();
    let mut all: Vec<[Verdict; 3]> = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        eprintln!("{} of {}: {}", number + 1, cases.len(), case.name);
        // Some tools make names of the path, with rules of their own.
        let dir = scratch.join(format!("case{number}"));
        layout::write(&dir, [case]);
        let verdicts = tools.run(&dir, &case.name).map(|outcome| Verdict::of(&case.expected, &outcome));
        std::fs::remove_dir_all(&dir).unwrap();
        let ours = match case.expected {
            Expected::Tree(_) => "tree",
            Expected::Error(_) => "refused",
        };
        let [umoci, overlay, vfs] = &verdicts;
        let (name, says) = (&case.name, &case.description);
        writeln!(rows, "| `{name}` | {} | {says} | {ours} | {umoci} | {overlay} | {vfs} |", case.rule)
            .unwrap();
        all.push(verdicts);
    }
    let out = case::directory().join("RESULTS.md");
    std::fs::write(out, head(&all) + &rows).unwrap();
}

/// What stands above the table, with the counts.
fn head(all: &[[Verdict; 3]]) -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let agreed = all.iter().filter(|row| row.iter().all(Verdict::agrees)).count();
    let mut text = format!(
        "# What other tools make of the cases

Written by `scripts/conformance-table`; the cases and the rules are in [README.md](README.md). \"We\" are the merge and all three
engines, which the tests hold to it. With {}; {}; Linux {kernel}.

- *same*: the same tree: names, kinds, contents, attributes, xattrs, link counts. Where no layer has an entry for the root, its
  attributes are not compared.
- *times*: the same, but for directories that have the time of unpacking: those that no layer names, or that got a child.
- *differs*: a tree, but another one: `-` what should be there, `+` what is; `?` stands before
  a name that is listed but not there.
- *refuses*: the tool does not take the image, and says why.
- *accepts*: the tool takes what we refuse, and makes this of it.

All three tools do as we do in {agreed} of {} cases (times aside).

| | same | times | differs | refuses our tree | refuses as we do | accepts |
|---|---|---|---|---|---|---|
",
        version("umoci"),
        version("buildah"),
        all.len()
    );
    for (tool, name) in NAMES.iter().enumerate() {
        let count = |wanted: fn(&Verdict) -> bool| all.iter().filter(|row| wanted(&row[tool])).count();
        let counts = [
            count(|verdict| matches!(verdict, Verdict::Same)),
            count(|verdict| matches!(verdict, Verdict::Times)),
            count(|verdict| matches!(verdict, Verdict::Differs(_))),
            count(|verdict| matches!(verdict, Verdict::Refuses { too: false, .. })),
            count(|verdict| matches!(verdict, Verdict::Refuses { too: true, .. })),
            count(|verdict| matches!(verdict, Verdict::Accepts(_))),
        ];
        let counts = counts.map(|count| count.to_string()).join(" | ");
        writeln!(text, "| {name} | {counts} |").unwrap();
    }
    let [umoci, overlay, vfs] = NAMES;
    writeln!(
        text,
        "\n| case | rule | it says | we | {umoci} | {overlay} | {vfs} |\n|---|---|---|---|---|---|---|"
    )
    .unwrap();
    text
}
