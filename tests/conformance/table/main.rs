//! Runs the cases of the suite through other tools, and records the differences in `RESULTS.md`.
//!
//! `scripts/conformance-table` calls it. No test requires other tools to agree.

#![allow(clippy::unwrap_used, reason = "a test tool fails by panicking")]

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
    let scratch = std::env::args_os().nth(1).expect("usage: conformance-table SCRATCH-DIRECTORY");
    let scratch = Path::new(&scratch);
    let tools = Tools::new(scratch);
    let cases = case::all();
    let mut rows = String::new();
    let mut all: Vec<[Verdict; 3]> = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        eprintln!("{} of {}: {}", number + 1, cases.len(), case.name);
        // A short name, because some tools derive names from the path and restrict them.
        let dir = scratch.join(format!("case{number}"));
        layout::write(&dir, [case]);
        let verdicts = tools.run(&dir, &case.name).map(|outcome| Verdict::of(&case.expected, &outcome));
        std::fs::remove_dir_all(&dir).unwrap();
        let ours = match case.expected {
            Expected::Tree(_) => "tree",
            Expected::Error(_) => "refused",
        };
        let [umoci, overlay, vfs] = &verdicts;
        let (name, description) = (&case.name, &case.description);
        writeln!(rows, "| `{name}` | {} | {description} | {ours} | {umoci} | {overlay} | {vfs} |", case.rule)
            .unwrap();
        all.push(verdicts);
    }
    let out = case::directory().join("RESULTS.md");
    std::fs::write(out, head(&all) + &rows).unwrap();
}

/// Returns the text above the table, with the counts.
fn head(all: &[[Verdict; 3]]) -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let agreed = all.iter().filter(|row| row.iter().all(Verdict::agrees)).count();
    let mut text = format!(
        "# Results of other tools

Written by `scripts/conformance-table`; the cases and the rules are in [README.md](README.md). \"We\" are the merge and all three
engines, as the tests verify. With {}; {}; Linux {kernel}.

- *same*: the same tree: names, kinds, contents, attributes, xattrs, link counts. Where no layer has an entry for the root, its
  attributes are not compared.
- *times*: the same tree, except that some directories have the time of unpacking: directories without an entry in any layer, or
  with a new child.
- *differs*: a different tree. `-` marks an expected line that is missing, `+` an unexpected line, and `?` a name that is listed but
  does not exist.
- *refuses*: the tool refuses the image, with this message.
- *accepts*: the tool accepts an image that we refuse, and shows this tree.

All three tools agree with us in {agreed} of {} cases (times aside).

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
            count(|verdict| matches!(verdict, Verdict::Refuses { as_expected: false, .. })),
            count(|verdict| matches!(verdict, Verdict::Refuses { as_expected: true, .. })),
            count(|verdict| matches!(verdict, Verdict::Accepts(_))),
        ];
        let counts = counts.map(|count| count.to_string()).join(" | ");
        writeln!(text, "| {name} | {counts} |").unwrap();
    }
    let [umoci, overlay, vfs] = NAMES;
    writeln!(
        text,
        "\n| case | rule | description | we | {umoci} | {overlay} | {vfs} |\n|---|---|---|---|---|---|---|"
    )
    .unwrap();
    text
}
