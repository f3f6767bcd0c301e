//! The rules of the house that the compiler does not know: a module uses only those above it, and what goes with that.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules, each above those that may use it. A new one is entered here and in the table of `src/lib.rs`.
const ORDER: [&str; 18] = [
    "error", "os", "image", "layer", "index", "tree", "store", "registry", "import", "pipeline", "unpack",
    "fs", "fuse", "roots", "sandbox", "daemon", "manual", "cli",
];
/// Names that say nothing of what is inside.
const NAMED_AFTER_NOTHING: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "shared"];

/// One broken rule, with its place.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

/// One source file.
struct Source {
    /// Relative to `src`.
    file: String,
    text: String,
    /// The text with comments and the content of literals blanked, byte by byte.
    code: Vec<u8>,
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// The names on the way from the crate's root, file name without its ending.
    fn path(&self) -> Vec<&str> {
        let path = self.file.strip_suffix(".rs").expect("only Rust files are read");
        path.split('/').filter(|part| *part != "mod").collect()
    }

    /// The folder of `src` it belongs to; none for `lib.rs` and the programs, `main.rs` and `isolate.rs`.
    fn module(&self) -> Option<&str> {
        let first = self.path()[0];
        (!matches!(first, "lib" | "main" | "isolate")).then_some(first)
    }

    fn broken(&self, at: usize, what: String) -> Broken {
        let line = self.code[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        Broken { file: self.file.clone(), line, what }
    }

    /// Positions of a whole word in the code.
    fn words(&self, word: &str) -> Vec<usize> {
        let is_name =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        let found =
            self.code.windows(word.len()).enumerate().filter(|(_, window)| *window == word.as_bytes());
        let whole = |at: &usize| {
            !is_name(at.checked_sub(1).and_then(|before| self.code.get(before)))
                && !is_name(self.code.get(at + word.len()))
        };
        found.map(|(at, _)| at).filter(whole).collect()
    }

    /// The modules that are named from the crate's root, by `crate::`, or by as many `super::` as lead there.
    fn uses(&self) -> Vec<(usize, String)> {
        let mut uses = Vec::new();
        for at in self.words("crate") {
            self.named_after(at + "crate".len(), &mut uses);
        }
        let inline = self.words("mod").into_iter().find(|at| {
            let rest = &self.code[*at..];
            let end = rest.iter().position(|byte| matches!(byte, b'{' | b';')).unwrap_or(0);
            rest.get(end) == Some(&b'{')
        });
        let mut behind = 0;
        for at in self.words("super").into_iter() {
            if at < behind {
                continue;
            }
            let mut supers = 1;
            behind = at + "super".len();
            while self.code[behind..].starts_with(b"::super") {
                supers += 1;
                behind += "::super".len();
            }
            // Modules within a file stand at its end: there one more step is needed.
            let depth = self.path().len() + usize::from(inline.is_some_and(|inline| inline < at));
            if supers >= depth {
                self.named_after(behind, &mut uses);
            }
        }
        uses
    }

    /// What stands behind `crate` at `at`: `::name`, or `::{name.., name..}`.
    fn named_after(&self, at: usize, uses: &mut Vec<(usize, String)>) {
        let Some(rest) = self.code[at..].strip_prefix(b"::") else { return };
        let mut at = at + 2;
        let name = |at: usize| {
            let bytes =
                self.code[at..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_');
            String::from_utf8(bytes.copied().collect()).expect("ASCII")
        };
        if rest.first() != Some(&b'{') {
            uses.push((at, name(at)));
            return;
        }
        let (mut depth, mut expected) = (0, false);
        loop {
            match self.code[at] {
                b'{' => (depth, expected) = (depth + 1, depth == 0),
                b'}' if depth == 1 => return,
                b'}' => depth -= 1,
                b',' => expected = depth == 1,
                byte if expected && !byte.is_ascii_whitespace() => {
                    uses.push((at, name(at)));
                    expected = false;
                }
                _ => {}
            }
            at += 1;
        }
    }
}

/// Blanks comments and the content of string and character literals; all else keeps its place.
fn code_of(text: &str) -> Vec<u8> {
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let rest = &text.as_bytes()[at..];
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        let in_name = at > 0 && (code[at - 1].is_ascii_alphanumeric() || code[at - 1] == b'_');
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

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == module)
}

/// A module uses only those above it.
fn wrong_way(source: &Source) -> Vec<Broken> {
    let Some(module) = source.module() else { return Vec::new() };
    let Some(own) = rank(module) else {
        return vec![source.broken(0, format!("module {module} has no place in the order"))];
    };
    let judge = |(at, used): (usize, String)| match rank(&used) {
        None => Some(source.broken(at, format!("`{used}` is not a module of the order"))),
        Some(other) if other > own => {
            Some(source.broken(at, format!("{module} uses {used}, which stands below it")))
        }
        Some(_) => None,
    };
    source.uses().into_iter().filter_map(judge).collect()
}

fn named_after_nothing(source: &Source) -> Option<Broken> {
    let path = source.path();
    let name = path.iter().find(|name| NAMED_AFTER_NOTHING.contains(name))?;
    Some(source.broken(0, format!("a module named `{name}` says nothing of what is in it")))
}

/// `anyhow` has no variants to match on: only the command line, which reports and ends, may use it.
fn anyhow_outside_cli(source: &Source) -> Vec<Broken> {
    if matches!(source.module(), Some("cli")) {
        return Vec::new();
    }
    let what = || "anyhow is for cli only: add a variant to the folder's error".to_owned();
    source.words("anyhow").into_iter().map(|at| source.broken(at, what())).collect()
}

/// Unsafe code is announced where it stands, with a reason; the lint that asks for it is never switched off.
fn unannounced_unsafe(source: &Source) -> Vec<Broken> {
    let announced: Vec<usize> = source
        .words("unsafe_code")
        .into_iter()
        .filter(|at| source.code[..*at].ends_with(b"[expect("))
        .collect();
    let allowed = source.words("unsafe_code").into_iter().filter(|at| !announced.contains(at));
    let bare = source.words("unsafe").into_iter().filter(|at| announced.iter().all(|before| before > at));
    allowed
        .map(|at| (at, "`unsafe_code` is expected with a reason, never allowed"))
        .chain(bare.map(|at| (at, "unsafe without `#[expect(unsafe_code, reason = ..)]` before it")))
        .map(|(at, what)| source.broken(at, what.to_owned()))
        .collect()
}

fn headless(source: &Source) -> Option<Broken> {
    let head = source.text.starts_with("//! ");
    (!head)
        .then(|| source.broken(0, "the file does not start with a `//!` that says what it is for".to_owned()))
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All Rust files below `src`, sorted.
fn sources() -> Vec<Source> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, files),
                false if path.extension().is_some_and(|ending| ending == "rs") => files.push(path),
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

#[track_caller]
fn holds<I: IntoIterator<Item = Broken>>(rule: impl Fn(&Source) -> I) {
    let broken: Vec<String> = sources().iter().flat_map(rule).map(|broken| broken.to_string()).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn module_uses_only_those_above_it() {
    holds(wrong_way);
}

#[test]
fn modules_say_what_is_in_them() {
    holds(named_after_nothing);
}

#[test]
fn only_the_command_line_uses_anyhow() {
    holds(anyhow_outside_cli);
}

#[test]
fn unsafe_code_is_announced() {
    holds(unannounced_unsafe);
}

#[test]
fn every_file_says_what_it_is_for() {
    holds(headless);
}

#[test]
fn map_of_the_code_lists_the_modules_in_their_order() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`")?.split_once("`] |").map(|(module, _)| module))
        .collect();
    let there = |module: &&str| {
        let path = src().join(module);
        path.is_dir() || path.with_extension("rs").is_file()
    };
    let expected: Vec<&str> = ORDER.into_iter().filter(there).collect();
    assert_eq!(listed, expected, "the table in src/lib.rs");
}

/// What a rule finds in a file, without the file.
fn found<I: IntoIterator<Item = Broken>>(
    rule: impl Fn(&Source) -> I,
    file: &str,
    text: &str,
) -> Vec<(usize, String)> {
    rule(&Source::new(file, text)).into_iter().map(|broken| (broken.line, broken.what)).collect()
}

#[test]
fn scanner_sees_each_way_to_name_a_module() {
    let below = |line, used: &str| (line, format!("layer uses {used}, which stands below it"));
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
        ("layer/mod.rs", "use crate::Other;", vec![(1, "`Other` is not a module of the order".to_owned())]),
        ("extra/a.rs", "", vec![(1, "module extra has no place in the order".to_owned())]),
        ("cli/mod.rs", "use crate::image::Name; use crate::daemon::ask; use crate::cli::output;", vec![]),
        ("main.rs", "use crate::anything;", vec![]),
    ];
    for (file, text, expected) in cases {
        assert_eq!(found(wrong_way, file, text), expected, "{file}: {text}");
    }
}

#[test]
fn scanner_sees_each_broken_rule() {
    let lines = |found: Vec<(usize, String)>| found.into_iter().map(|(line, _)| line).collect::<Vec<_>>();
    for (file, count) in [("layer/util.rs", 1), ("common/x.rs", 1), ("misc.rs", 1), ("layer/gzip.rs", 0)] {
        assert_eq!(found(named_after_nothing, file, "").len(), count, "{file}");
    }
    let text = "// anyhow\nuse anyhow::Context as _;\nlet my_anyhow = \"anyhow\";\n";
    assert_eq!(lines(found(anyhow_outside_cli, "store/mod.rs", text)), [2]);
    assert_eq!(lines(found(anyhow_outside_cli, "main.rs", text)), [2]);
    assert!(found(anyhow_outside_cli, "cli/rm.rs", text).is_empty());
    for (text, expected) in [
        ("// unsafe\n#[expect(unsafe_code, reason = \"r\")]\nunsafe { f() }", vec![]),
        ("#![expect(unsafe_code, reason = \"r\")]\nunsafe impl Send for X {}", vec![]),
        ("unsafe { f() }\n#[expect(unsafe_code)]\nunsafe {}", vec![1]),
        ("#[allow(unsafe_code)]\nunsafe {}", vec![1, 2]),
    ] {
        assert_eq!(lines(found(unannounced_unsafe, "layer/mod.rs", text)), expected, "{text}");
    }
    for (text, count) in [("//! What.\n", 0), ("\n//! What.\n", 1), ("use std::fs;\n", 1), ("// What.\n", 1)]
    {
        assert_eq!(found(headless, "layer/mod.rs", text).len(), count, "{text}");
    }
}
