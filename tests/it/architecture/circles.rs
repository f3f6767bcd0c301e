//! Files of a folder do not use each other in a circle: what is below can be read and changed without what is above.
//!
//! `mod.rs` does not count: it holds the nouns of its folder, which all files use, and names the files.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, sources};

/// Circles that are accepted: a folder of `src`, and the files and folders in it that may use each other.
const ALLOWED: &[(&str, &[&str])] = &[
    // Errors are printed with `output`, and its JSON has a field for an error.
    ("cli", &["error", "output"]),
    // Text contains tables, and the cells of a table are escaped like text.
    ("manual", &["roff", "table"]),
    // Taking a layer in reuses an index that can be opened; opening a layer rebuilds a missing index.
    ("pipeline", &["layer", "open"]),
    // The error of the folder holds values that its files define; all files return that error.
    ("sandbox", &["backend", "box_lock", "environment", "error", "first_process", "isolate", "spec"]),
    // Choosing the image reads the rules of a call, and rewriting the call needs the variable that names the image.
    ("sandbox/shim", &["choice", "rewrite"]),
];

/// A folder, and what the files in it use of each other.
type Uses = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Reads which file or folder uses which of its siblings, tests left out.
fn uses(sources: &[Source]) -> Uses {
    let modules: BTreeSet<Vec<&str>> = sources.iter().map(Source::module_path).collect();
    let mut uses = Uses::new();
    for source in sources {
        let own = source.module_path();
        let tests = source.inline_module().unwrap_or(usize::MAX);
        for reference in source.references().into_iter().filter(|reference| reference.at < tests) {
            let path: Vec<&str> = reference.path.iter().map(String::as_str).collect();
            let Some(target) =
                (1..=path.len()).rev().map(|length| &path[..length]).find(|path| modules.contains(*path))
            else {
                continue;
            };
            let shared = own.iter().zip(target).take_while(|(one, other)| one == other).count();
            if let (true, Some(user), Some(used)) = (shared > 0, own.get(shared), target.get(shared)) {
                let folder = uses.entry(own[..shared].join("/")).or_default();
                folder.entry((*user).to_owned()).or_default().insert((*used).to_owned());
            }
        }
    }
    uses
}

/// The circles of a folder: groups of files each of which uses all others of the group, directly or through others.
fn circles(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached_from = |start: &String| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            for used in uses.get(file).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    open.push(used);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        uses.keys().map(|file| (file, reached_from(file))).collect();
    let groups: BTreeSet<Vec<String>> = reached
        .iter()
        .filter(|(file, reached)| reached.contains(**file))
        .map(|(file, from)| {
            from.iter()
                .filter(|other| reached.get(other).is_some_and(|back| back.contains(*file)))
                .cloned()
                .collect()
        })
        .collect();
    groups.into_iter().collect()
}

fn all_circles(sources: &[Source]) -> Vec<(String, Vec<String>)> {
    let folders = uses(sources);
    folders
        .iter()
        .flat_map(|(folder, uses)| circles(uses).into_iter().map(move |circle| (folder.clone(), circle)))
        .collect()
}

#[test]
fn files_of_a_folder_do_not_use_each_other_in_a_circle() {
    let mut unused = ALLOWED.to_vec();
    let mut violations = Vec::new();
    for (folder, circle) in all_circles(&sources()) {
        let covers = |(allowed_in, files): &(&str, &[&str])| {
            *allowed_in == folder && circle.iter().all(|file| files.contains(&file.as_str()))
        };
        if ALLOWED.iter().any(covers) {
            unused.retain(|allowed| !covers(allowed));
        } else {
            violations.push(format!("src/{folder}: {}", circle.join(", ")));
        }
    }
    assert!(violations.is_empty(), "these use each other in a circle:\n{}", violations.join("\n"));
    assert_eq!(unused, [], "these circles are gone: remove them from ALLOWED");
}

#[test]
fn circles_are_found_between_files_and_between_folders() {
    let source = |file: &str, text: &str| Source::new(file, text);
    let sources = [
        source("layer/mod.rs", "use self::gzip; use crate::layer::zstd;"),
        source("layer/gzip.rs", "use super::{member::Member, Layer}; mod tests { use super::super::zstd; }"),
        source("layer/member.rs", "use crate::layer::spans::{self, Span};"),
        source("layer/spans.rs", "use super::gzip::Gzip;"),
        source("layer/zstd.rs", "use super::gzip; use crate::index::build;"),
        source("index/build.rs", "use super::sub::deep; use crate::layer::gzip;"),
        source("index/sub/mod.rs", ""),
        source("index/sub/deep.rs", "use super::super::build; use super::Noun;"),
    ];
    let circles = all_circles(&sources);
    let expected = [
        ("index".to_owned(), vec!["build".to_owned(), "sub".to_owned()]),
        ("layer".to_owned(), ["gzip", "member", "spans"].map(str::to_owned).to_vec()),
    ];
    assert_eq!(circles, expected);
}
