//! Runs each case from its layout to the merged tree, within the process.

use std::error::Error;
use std::fmt::Write as _;

use rcx_imagefs::error::chain_text;
use rcx_imagefs::image::{ManifestDigest, Platform, Reference};
use rcx_imagefs::import::Archive;
use rcx_imagefs::index::IndexedKind;
use rcx_imagefs::pipeline::{LoadJob, ProgressSink, load, open_image};
use rcx_imagefs::store::Store;
use rcx_imagefs::tree;

use support::case::{self, Case, Expected};
use support::{disk, layout};

/// Returns the merged tree of a case, or the error with its causes.
fn shown(store: &Store, case: &Case) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    layout::write(dir.path(), [case]);
    let result = (|| -> Result<String, Box<dyn Error>> {
        let name = Some(Reference::from_archive("conformance")?);
        let archive = Archive::open(dir.path(), &Platform::host())?;
        let mut loaded = load(
            &LoadJob {
                store: store.clone(),
                name,
                replace: false,
                any_platform: false,
                plain: false,
                progress: ProgressSink::none(),
            },
            &archive,
        )?;
        if let Some(failed) = loaded.failed.pop() {
            return Err(failed.error.into());
        }
        let [ref image] = loaded.stored[..] else { panic!("one image is in the layout: {loaded:?}") };
        dump(store, image.digest)
    })();
    result.map_err(|error| chain_text(&*error))
}

fn dump(store: &Store, image: ManifestDigest) -> Result<String, Box<dyn Error>> {
    let image = open_image(store, image, |_| None)?;
    let indexes: Vec<_> = image.layers.iter().map(|layer| layer.index()).collect();
    Ok(tree::dump(&image.tree, &indexes, |layer, entry| {
        let layer = &image.layers[layer.index()];
        let IndexedKind::Regular { size } = layer.index().entry(entry).kind() else { return Vec::new() };
        disk::content(size, |at, length| layer.read(entry, at, length)).expect("could not read the content")
    }))
}

#[test]
fn merge_yields_the_expected_tree_of_each_case() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(&dir.path().join("store")).unwrap();
    let mut wrong = String::new();
    for case in case::selected() {
        let found = shown(&store, &case);
        let right = match (&case.expected, &found) {
            (Expected::Tree(expected), Ok(found)) => expected == found,
            (Expected::Error(parts), Err(error)) => parts.iter().all(|part| error.contains(part)),
            _ => false,
        };
        if !right {
            let Case { name, description, expected, .. } = &case;
            let _ = match (expected, found) {
                (Expected::Tree(expected), Ok(found)) => {
                    writeln!(wrong, "{name}: {description}\n  expected\n{expected}\n  found\n{found}")
                }
                (_, found) => {
                    writeln!(wrong, "{name}: {description}\n  expected {expected:?}\n  found {found:?}")
                }
            };
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn every_rule_has_cases() {
    let cases = case::all();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    for rule in 1..=13 {
        let count = cases.iter().filter(|case| case.rule == rule).count();
        assert!(count >= 3, "rule {rule} has {count} cases");
    }
    for case in &cases {
        assert!((1..=13).contains(&case.rule), "{}: unknown rule", case.name);
        assert!(
            case.description.ends_with('.') && case.description.len() < 240,
            "{}: {}",
            case.name,
            case.description
        );
    }
}
