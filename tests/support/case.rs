//! The cases of the conformance suite as files: a description, layers, and the expected tree or error.

use std::fs;
use std::path::{Path, PathBuf};

use crate::blob::Blob;
use crate::repository;

/// One case, `cases/RULE-NAME.case`.
#[derive(Debug)]
pub struct Case {
    /// The file name without its extension. Also the tag of the image.
    pub name: String,
    /// The number of the rule that it tests, in the README of the suite.
    pub rule: u8,
    /// What it tests, in one sentence.
    pub description: String,
    /// The layers, from the lowest up.
    pub layers: Vec<Blob>,
    /// The expected result.
    pub expected: Expected,
}

/// The expected result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// This tree, as `tree::dump` writes it.
    Tree(String),
    /// An error whose text contains each of these.
    Error(Vec<String>),
}

/// The directory of the conformance suite.
pub fn directory() -> PathBuf {
    repository().join("tests/conformance")
}

/// All cases, sorted by name.
pub fn all() -> Vec<Case> {
    let cases = directory().join("cases");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&cases).expect("the directory of cases").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}

/// Reads the cases to run: those whose name contains the text of `CONFORMANCE_CASE`, or all if it is not set.
///
/// Panics if the text selects no case, so that a mistyped name does not pass.
pub fn selected() -> Vec<Case> {
    let mut cases = all();
    if let Ok(text) = std::env::var("CONFORMANCE_CASE") {
        cases.retain(|case| case.name.contains(&text));
        assert!(!cases.is_empty(), "no case has a name that contains CONFORMANCE_CASE={text}");
    }
    cases
}

impl Case {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name in ASCII").to_owned();
        assert_eq!(path.extension().and_then(|it| it.to_str()), Some("case"), "{}", path.display());
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::parse(name, &text)
    }

    fn parse(name: String, text: &str) -> Self {
        let number = name.split('-').next().and_then(|number| number.parse().ok());
        let rule = number.unwrap_or_else(|| panic!("{name}: the name must start with the number of a rule"));
        let mut description = Vec::new();
        let mut layers = vec![String::new()];
        let mut expected: Option<String> = None;
        for line in text.lines() {
            match (line.trim(), &mut expected) {
                (comment, _) if comment.starts_with('#') => description.push(comment[1..].trim()),
                (_, Some(expected)) => {
                    expected.push_str(line.trim());
                    expected.push('\n');
                }
                ("===", None) => expected = Some(String::new()),
                ("---", None) => layers.push(String::new()),
                (line, None) => {
                    let layer = layers.last_mut().expect("never empty");
                    layer.push_str(line);
                    layer.push('\n');
                }
            }
        }
        let expected = expected.unwrap_or_else(|| panic!("{name}: no `===`"));
        let errors: Vec<String> =
            expected.lines().filter_map(|line| line.strip_prefix("error: ")).map(str::to_owned).collect();
        assert!(!description.is_empty(), "{name}: the first line must describe the case, after a `#`");
        Self {
            rule,
            description: description.join(" "),
            layers: layers.iter().map(|layer| Blob::of_text(layer)).collect(),
            expected: if errors.is_empty() { Expected::Tree(expected) } else { Expected::Error(errors) },
            name,
        }
    }
}
