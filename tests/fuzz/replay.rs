//! Every file of every corpus through its target.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::targets;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// Runs a target over all files of a directory; an error names the file that breaks a promise.
fn replay(directory: &Path, run: fn(&[u8])) -> Result<usize, String> {
    let entries =
        std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let files: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    if files.is_empty() {
        return Err(format!("{} is empty", directory.display()));
    }
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        catch_unwind(AssertUnwindSafe(|| run(&bytes))).map_err(|_| {
            format!("{} breaks a promise of its target; what it is stands above", file.display())
        })?;
    }
    Ok(files.len())
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const TARGETS: &[&str] = &[$(stringify!($name)),*];

        mod promises_hold_for_the_corpus_of {
            use super::{here, replay, targets};

            $(
                #[test]
                fn $name() {
                    let corpus = here().join("corpus").join(stringify!($name));
                    if let Err(error) = replay(&corpus, targets::$name::run) {
                        panic!("{error}");
                    }
                }
            )*
        }
    };
}

targets!(
    archive, config, control, document, fs, gzip, index, isolate, merge, reference, span, store, tar, zstd
);

/// Names in a directory, without an ending.
fn names(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(here().join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_target_has_a_program_and_a_corpus_and_is_replayed() {
    let replayed: BTreeSet<String> = TARGETS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), replayed);
    assert_eq!(names("programs"), replayed);
    let mut modules = names("targets");
    modules.remove("mod");
    assert_eq!(modules, replayed);
    let manifest = std::fs::read_to_string(here().join("Cargo.toml")).unwrap();
    for name in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"programs/{name}.rs\"")), "{name}");
    }
}

#[test]
fn corpora_are_small() {
    let mut total = 0;
    for target in names("corpus") {
        for entry in std::fs::read_dir(here().join("corpus").join(target)).unwrap() {
            total += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(total < 1 << 20, "{total} bytes: scripts/fuzz --cmin makes them smaller");
}

#[test]
fn file_that_breaks_a_promise_is_named_and_an_empty_corpus_is_an_error() {
    let corpus = tempfile::tempdir().unwrap();
    assert!(replay(corpus.path(), |_| {}).unwrap_err().ends_with("is empty"));
    std::fs::write(corpus.path().join("good"), "good").unwrap();
    std::fs::write(corpus.path().join("worse"), "bad").unwrap();
    let run: fn(&[u8]) = |bytes| assert!(bytes != b"bad");
    let error = replay(corpus.path(), run).unwrap_err();
    assert!(error.contains("worse breaks"), "{error}");
    std::fs::remove_file(corpus.path().join("worse")).unwrap();
    assert_eq!(replay(corpus.path(), run), Ok(1));
    assert!(replay(&corpus.path().join("none"), run).is_err());
}
