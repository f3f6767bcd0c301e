//! Rules for the source that the compiler cannot check: a module uses only those above it, type names are unique, and others.

mod circles;
mod names;
mod source;

use std::collections::BTreeSet;
use std::fs;

use self::source::{Source, Violation, sources, src};

/// The modules in order of dependency: each may use only those before it. Add a new one here and to the table in `src/lib.rs`.
const ORDER: [&str; 21] = [
    "error",
    "os",
    "image",
    "layer",
    "index",
    "tree",
    "erofs",
    "store",
    "registry",
    "import",
    "pipeline",
    "unpack",
    "fs",
    "fuse",
    "daemon",
    "roots",
    "commit",
    "sandbox",
    "environments",
    "manual",
    "cli",
];
/// Names that do not say what a module holds.
const VAGUE_NAMES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "shared"];

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == module)
}

/// Finds uses of modules that come after the file's own in the order.
fn upward_uses(source: &Source) -> Vec<Violation> {
    let Some(module) = source.module() else { return Vec::new() };
    let Some(own) = rank(module) else {
        return vec![source.violation(0, format!("the order of the modules does not list {module}"))];
    };
    let uses: BTreeSet<(usize, String)> = source
        .references()
        .into_iter()
        .map(|reference| (reference.at, reference.path.into_iter().next().expect("paths are not empty")))
        .collect();
    let judge = |(at, used): (usize, String)| match rank(&used) {
        None => Some(source.violation(at, format!("the order of the modules does not list {used}"))),
        Some(other) if other > own => {
            Some(source.violation(at, format!("{module} uses {used}, which comes after it")))
        }
        Some(_) => None,
    };
    uses.into_iter().filter_map(judge).collect()
}

/// Finds modules with names that could hold anything.
fn vague_names(source: &Source) -> Option<Violation> {
    let path = source.module_path();
    let name = path.iter().find(|name| VAGUE_NAMES.contains(name))?;
    Some(source.violation(0, format!("the name `{name}` does not say what the module holds")))
}

/// Finds uses of `anyhow` outside of the command line. Its errors have no variants to match on.
fn anyhow_outside_cli(source: &Source) -> Vec<Violation> {
    if matches!(source.module(), Some("cli")) {
        return Vec::new();
    }
    let what = || "only cli may use anyhow: add a variant to the error type of this folder".to_owned();
    source.words("anyhow").into_iter().map(|at| source.violation(at, what())).collect()
}

/// Finds unsafe code without `#[expect(unsafe_code)]` before it, and places that allow the lint instead.
fn unexpected_unsafe(source: &Source) -> Vec<Violation> {
    let expected_at: Vec<usize> = source
        .words("unsafe_code")
        .into_iter()
        .filter(|at| source.code[..*at].trim_ascii_end().ends_with(b"[expect("))
        .collect();
    let allowed = source.words("unsafe_code").into_iter().filter(|at| !expected_at.contains(at));
    let bare = source.words("unsafe").into_iter().filter(|at| expected_at.iter().all(|before| before > at));
    allowed
        .map(|at| (at, "`unsafe_code` must be expected with a reason, not allowed"))
        .chain(bare.map(|at| (at, "unsafe without `#[expect(unsafe_code, reason = ..)]` before it")))
        .map(|(at, what)| source.violation(at, what.to_owned()))
        .collect()
}

/// Finds files whose first line is not a `//!` comment.
fn without_header(source: &Source) -> Option<Violation> {
    let header = source.text.starts_with("//! ");
    (!header).then(|| {
        source
            .violation(0, "the file does not start with a `//!` comment that says what it is for".to_owned())
    })
}

/// Applies a rule to all sources.
#[track_caller]
fn assert_rule<I: IntoIterator<Item = Violation>>(rule: impl Fn(&Source) -> I) {
    let violations: Vec<String> =
        sources().iter().flat_map(rule).map(|violation| violation.to_string()).collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn modules_use_only_those_before_them_in_the_order() {
    assert_rule(upward_uses);
}

#[test]
fn module_names_say_what_the_module_holds() {
    assert_rule(vague_names);
}

#[test]
fn only_the_command_line_uses_anyhow() {
    assert_rule(anyhow_outside_cli);
}

#[test]
fn unsafe_code_has_an_expect_with_a_reason() {
    assert_rule(unexpected_unsafe);
}

#[test]
fn every_file_starts_with_a_comment_that_says_what_it_is_for() {
    assert_rule(without_header);
}

#[test]
fn table_in_lib_rs_lists_the_modules_in_order() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`")?.split_once("`] |").map(|(module, _)| module))
        .collect();
    let exists = |module: &&str| {
        let path = src().join(module);
        path.is_dir() || path.with_extension("rs").is_file()
    };
    let expected: Vec<&str> = ORDER.into_iter().filter(exists).collect();
    assert_eq!(listed, expected, "the table in src/lib.rs");
}

/// The line and text of each violation that a rule finds in a file.
fn found<I: IntoIterator<Item = Violation>>(
    rule: impl Fn(&Source) -> I,
    file: &str,
    text: &str,
) -> Vec<(usize, String)> {
    rule(&Source::new(file, text)).into_iter().map(|violation| (violation.line, violation.text)).collect()
}

#[test]
fn every_way_to_name_a_module_is_recognised() {
    let below = |line, used: &str| (line, format!("layer uses {used}, which comes after it"));
    let cases = [
        ("layer/gzip.rs", "use crate::image::Digest;\n\nuse crate::store::Store;\n", vec![below(3, "store")]),
        ("layer/mod.rs", "fn f() { crate::cli::run(); }", vec![below(1, "cli")]),
        ("layer/mod.rs", "use crate::{\n    image::{Digest, store},\n    fs::{a, b},\n    tree,\n};", {
            vec![below(3, "fs"), below(4, "tree")]
        }),
        ("layer/mod.rs", "use super::index::Index;", vec![below(1, "index")]),
        ("layer/gzip.rs", "use super::index;\nuse super::super::index::Index;", vec![below(2, "index")]),
        ("layer/gzip.rs", "mod tests {\n use super::super::tree;\n use super::super::super::tree::X; }", {
            vec![below(3, "tree")]
        }),
        ("layer.rs", "macro_rules! m { () => { $crate::fuse::x() } }", vec![below(1, "fuse")]),
        ("layer/mod.rs", "mod tests {\n    use super::*;\n}\n", vec![]),
        ("layer/mod.rs", "mod gzip;\n//! [`crate::fs`] /* */\nlet a = \"crate::fs \\\" crate::fs\";", vec![]),
        (
            "layer/mod.rs",
            "/* crate::fs\n */ r#\"crate::fs\" crate::fs\"#; ('\"', b'\\'', 'a'); crate::fs::X",
            { vec![below(2, "fs")] },
        ),
        ("layer/mod.rs", "fn f<'a>(x: &'a str) -> crate::fs::X<'a> {}", vec![below(1, "fs")]),
        (
            "layer/mod.rs",
            "use crate::Other;",
            vec![(1, "the order of the modules does not list Other".to_owned())],
        ),
        ("extra/a.rs", "", vec![(1, "the order of the modules does not list extra".to_owned())]),
        ("cli/mod.rs", "use crate::image::Name; use crate::daemon::ask; use crate::cli::output;", vec![]),
        ("main.rs", "use crate::anything;", vec![]),
    ];
    for (file, text, expected) in cases {
        assert_eq!(found(upward_uses, file, text), expected, "{file}: {text}");
    }
}

#[test]
fn every_rule_finds_its_violations() {
    let lines = |found: Vec<(usize, String)>| found.into_iter().map(|(line, _)| line).collect::<Vec<_>>();
    for (file, count) in [("layer/util.rs", 1), ("common/x.rs", 1), ("misc.rs", 1), ("layer/gzip.rs", 0)] {
        assert_eq!(found(vague_names, file, "").len(), count, "{file}");
    }
    let text = "// anyhow\nuse anyhow::Context as _;\nlet my_anyhow = \"anyhow\";\n";
    assert_eq!(lines(found(anyhow_outside_cli, "store/mod.rs", text)), [2]);
    assert_eq!(lines(found(anyhow_outside_cli, "main.rs", text)), [2]);
    assert!(found(anyhow_outside_cli, "cli/rm.rs", text).is_empty());
    for (text, expected) in [
        ("// unsafe\n#[expect(unsafe_code, reason = \"r\")]\nunsafe { f() }", vec![]),
        ("#![expect(unsafe_code, reason = \"r\")]\nunsafe impl Send for X {}", vec![]),
        ("#![expect(\n    unsafe_code,\n    reason = \"r\"\n)]\nunsafe impl Send for X {}", vec![]),
        ("unsafe { f() }\n#[expect(unsafe_code)]\nunsafe {}", vec![1]),
        ("#[allow(unsafe_code)]\nunsafe {}", vec![1, 2]),
    ] {
        assert_eq!(lines(found(unexpected_unsafe, "layer/mod.rs", text)), expected, "{text}");
    }
    for (text, count) in [("//! What.\n", 0), ("\n//! What.\n", 1), ("use std::fs;\n", 1), ("// What.\n", 1)]
    {
        assert_eq!(found(without_header, "layer/mod.rs", text).len(), count, "{text}");
    }
}
