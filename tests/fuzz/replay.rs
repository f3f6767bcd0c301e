//! Replays every corpus file through its target.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::targets;

fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// Runs a target on every file in a directory and returns their number. The error names the file on which the target panics.
fn replay(directory: &Path, run: fn(&[u8])) -> Result<usize, String> {
    let entries =
        std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let files: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    if files.is_empty() {
        return Err(format!("{} is empty", directory.display()));
    }
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        catch_unwind(AssertUnwindSafe(|| run(&bytes)))
            .map_err(|_| format!("the target panics on {}; the panic message is above", file.display()))?;
    }
    Ok(files.len())
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const TARGETS: &[&str] = &[$(stringify!($name)),*];

        mod promises_hold_for_the_corpus_of {
            use super::{fuzz_directory, replay, targets};

            $(
                #[test]
                fn $name() {
                    let corpus = fuzz_directory().join("corpus").join(stringify!($name));
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

/// Returns the file names in a directory, without extensions.
fn file_stems(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(fuzz_directory().join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_target_has_a_program_and_a_corpus_and_is_replayed() {
    let replayed: BTreeSet<String> = TARGETS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(file_stems("corpus"), replayed);
    assert_eq!(file_stems("programs"), replayed);
    let mut modules = file_stems("targets");
    modules.remove("mod");
    assert_eq!(modules, replayed);
    let manifest = std::fs::read_to_string(fuzz_directory().join("Cargo.toml")).unwrap();
    for name in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"programs/{name}.rs\"")), "{name}");
    }
}

#[test]
fn all_corpora_together_stay_below_one_mebibyte() {
    let mut total = 0;
    for target in file_stems("corpus") {
        for entry in std::fs::read_dir(fuzz_directory().join("corpus").join(target)).unwrap() {
            total += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(total < 1 << 20, "the corpora take {total} bytes; run scripts/fuzz --cmin");
}

#[test]
fn replay_names_the_failing_file_and_rejects_an_empty_or_missing_corpus() {
    let corpus = tempfile::tempdir().unwrap();
    assert!(replay(corpus.path(), |_| {}).unwrap_err().ends_with("is empty"));
    std::fs::write(corpus.path().join("good"), "good").unwrap();
    std::fs::write(corpus.path().join("worse"), "bad").unwrap();
    let run: fn(&[u8]) = |bytes| assert!(bytes != b"bad");
    let error = replay(corpus.path(), run).unwrap_err();
    assert!(error.contains("/worse;"), "{error}");
    std::fs::remove_file(corpus.path().join("worse")).unwrap();
    assert_eq!(replay(corpus.path(), run), Ok(1));
    assert!(replay(&corpus.path().join("none"), run).is_err());
}
