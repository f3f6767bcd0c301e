//! The source files, read just well enough for the rules: without comments and literals, by words and paths.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use support::repository;

/// A place in the source that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    file: String,
    pub(super) line: usize,
    pub(super) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.text)
    }
}

/// A path in the code that names something of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Where its first name behind `crate` or `super` is.
    pub(super) at: usize,
    /// The names from the crate's root on, modules first.
    pub(super) path: Vec<String>,
}

/// One source file.
pub(super) struct Source {
    /// Relative to `src`.
    pub(super) file: String,
    pub(super) text: String,
    /// The text with comments and the content of literals blanked, byte by byte.
    pub(super) code: Vec<u8>,
}

impl Source {
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// The names of the modules from the crate's root to this file; none for the root itself and the programs.
    pub(super) fn module_path(&self) -> Vec<&str> {
        let path = self.file.strip_suffix(".rs").expect("only Rust files are read");
        if matches!(path, "lib" | "main" | "isolate") {
            return Vec::new();
        }
        path.split('/').filter(|part| *part != "mod").collect()
    }

    /// The folder of `src` that the file belongs to.
    pub(super) fn module(&self) -> Option<&str> {
        self.module_path().first().copied()
    }

    /// A violation at a position in the file.
    pub(super) fn violation(&self, at: usize, text: String) -> Violation {
        let line = self.code[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        Violation { file: self.file.clone(), line, text }
    }

    /// Positions of a whole word in the code.
    pub(super) fn words(&self, word: &str) -> Vec<usize> {
        let found =
            self.code.windows(word.len()).enumerate().filter(|(_, window)| *window == word.as_bytes());
        let whole = |at: &usize| {
            !at.checked_sub(1).is_some_and(|before| is_name(self.code[before]))
                && !self.code.get(at + word.len()).copied().is_some_and(is_name)
        };
        found.map(|(at, _)| at).filter(whole).collect()
    }

    /// The name that starts at a position; empty where none does.
    pub(super) fn name_at(&self, at: usize) -> &str {
        let length = self.code[at..].iter().take_while(|byte| is_name(**byte)).count();
        str::from_utf8(&self.code[at..at + length]).expect("names are ASCII")
    }

    /// Where the first module within the file starts. Such modules hold tests and stand at the end.
    pub(super) fn inline_module(&self) -> Option<usize> {
        self.words("mod").into_iter().find(|at| {
            let end = self.code[*at..].iter().find(|byte| matches!(byte, b'{' | b';'));
            end == Some(&b'{')
        })
    }

    /// Everything that is named from the crate's root, by `crate::` or by `super::`.
    pub(super) fn references(&self) -> Vec<Reference> {
        let mut references = Vec::new();
        for at in self.words("crate") {
            self.expand(at + "crate".len(), None, &[], &mut references);
        }
        let inline = self.inline_module();
        let mut behind = 0;
        for at in self.words("super") {
            if at < behind {
                continue;
            }
            let mut supers = 1;
            behind = at + "super".len();
            while self.code[behind..].starts_with(b"::super") {
                supers += 1;
                behind += "::super".len();
            }
            let mut base = self.module_path();
            if inline.is_some_and(|inline| inline < at) {
                base.push("tests");
            }
            base.truncate(base.len().saturating_sub(supers));
            let base: Vec<String> = base.into_iter().map(str::to_owned).collect();
            self.expand(behind, None, &base, &mut references);
        }
        references
    }

    /// Reads what follows a path, `::name..` or `::{name.., name..}`, and adds each full path. Returns where it ends.
    fn expand(
        &self,
        at: usize,
        first: Option<usize>,
        path: &[String],
        references: &mut Vec<Reference>,
    ) -> usize {
        let mut end = |end: usize| {
            if let (Some(at), false) = (first, path.is_empty()) {
                references.push(Reference { at, path: path.to_vec() });
            }
            end
        };
        if !self.code[at..].starts_with(b"::") {
            return end(at);
        }
        let at = at + 2;
        if self.code.get(at) == Some(&b'{') {
            return self.expand_group(at + 1, first, path, references);
        }
        match self.name_at(at) {
            "" => end(at),
            "self" => end(at + "self".len()),
            name => {
                let path = [path, &[name.to_owned()]].concat();
                self.expand(at + name.len(), first.or(Some(at)), &path, references)
            }
        }
    }

    fn expand_group(
        &self,
        mut at: usize,
        first: Option<usize>,
        path: &[String],
        references: &mut Vec<Reference>,
    ) -> usize {
        while self.code[at] != b'}' {
            let name = self.name_at(at);
            if name.is_empty() {
                at += 1;
                continue;
            }
            let behind = at + name.len();
            at = match name {
                "self" => self.expand(behind, first, path, references),
                "as" => {
                    let space =
                        self.code[behind..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                    behind + space + self.name_at(behind + space).len()
                }
                _ => {
                    let path = [path, &[name.to_owned()]].concat();
                    self.expand(behind, first.or(Some(at)), &path, references)
                }
            };
        }
        at + 1
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Blanks comments and the content of string and character literals; everything else keeps its position.
fn code_of(text: &str) -> Vec<u8> {
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let rest = &text.as_bytes()[at..];
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        let in_name = at > 0 && is_name(code[at - 1]);
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            position(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'r' && !(in_name && code[at - 1] != b'b') && rest.get(1 + hashes) == Some(&b'"')
        {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let open = hashes + 2;
            open + position(&rest[open..], &close).map_or(rest.len() - open, |end| end + close.len())
        } else if rest[0] == b'"' {
            1 + literal(&rest[1..], b'"')
        } else if rest.starts_with(b"'\\") || (rest[0] == b'\'' && is_char(rest)) {
            1 + literal(&rest[1..], b'\'')
        } else {
            at += 1;
            continue;
        };
        code[at..at + end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at += end;
    }
    code
}

/// Whether a quote opens a character and not a lifetime.
fn is_char(rest: &[u8]) -> bool {
    let text = str::from_utf8(rest).expect("cut before a quote");
    text.chars().nth(2) == Some('\'')
}

/// Length of a literal's content with the closing quote.
fn literal(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The folder of the sources.
pub(super) fn src() -> PathBuf {
    repository().join("src")
}

/// All Rust files below `src`, sorted.
pub(super) fn sources() -> Vec<Source> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, files),
                false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
                false => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(&src(), &mut files);
    files.sort();
    assert!(files.len() > 50, "only {} files found in {}", files.len(), src().display());
    let read = |path: PathBuf| {
        let file = path.strip_prefix(src()).unwrap().to_str().unwrap().to_owned();
        Source::new(&file, &fs::read_to_string(&path).unwrap())
    };
    files.into_iter().map(read).collect()
}

#[test]
fn paths_are_expanded_from_the_root() {
    let paths = |file: &str, text: &str| {
        let references = Source::new(file, text).references();
        references.into_iter().map(|reference| reference.path.join("::")).collect::<Vec<_>>()
    };
    for (file, text, expected) in [
        (
            "layer/gzip.rs",
            "use crate::image::{Digest, name::{self, Name as N}, a::*};",
            vec!["image::Digest", "image::name", "image::name::Name", "image::a"],
        ),
        (
            "layer/gzip.rs",
            "use super::deflate::Deflate; super::super::index::open::<T>()",
            vec!["layer::deflate::Deflate", "index::open"],
        ),
        (
            "layer/tar/mod.rs",
            "use super::gzip; mod tests { use super::sparse; }",
            vec!["layer::gzip", "layer::tar::sparse"],
        ),
        ("layer/mod.rs", "use super::*; // crate::fs", vec![]),
        ("lib.rs", "crate::fs::X", vec!["fs::X"]),
    ] {
        assert_eq!(paths(file, text), expected, "{file}: {text}");
    }
}
