//! The program as users run it, with its own store: its output, and its exit codes.
//!
//! Other programs read the output of `--json`, so these tests list all of its fields.

mod archive;
mod completions;
mod config;
mod cp;
mod daemon;
mod df;
mod diff;
mod env;
mod errors;
mod gc;
mod help;
mod host;
mod images;
mod inspect;
mod load;
mod login;
mod ls;
mod manual;
mod mirrors;
mod output;
mod proxy;
mod pull;
mod push;
mod rm;
mod tag;
mod verify;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Output;

use rcx_imagefs::image::Digest;
use rcx_imagefs::store::Store;
use serde_json::{Value, json};

use self::archive::Layout;
use support::program::Program;

/// Two layers with a file that only the second one has, a whiteout, and a link.
const LAYERS: &str = "\
    d etc
    f etc/hosts 127.0.0.1
    f etc/gone x
    ---
    w etc/gone
    f etc/new some-more
    l etc/link hosts
    ";

/// The program with images in its store.
struct Fixture {
    program: Program,
}

impl Fixture {
    fn new() -> Self {
        Self { program: Program::new() }
    }

    /// A store with one image.
    fn with(reference: &str) -> (Self, String) {
        let fixture = Self::new();
        let digest = fixture.load(reference, LAYERS);
        (fixture, digest)
    }

    /// Loads an image of layers written as text. Returns its digest.
    fn load(&self, reference: &str, layers: &str) -> String {
        let layout = Layout::new(layers);
        let printed = self.program.ok(&["load", layout.path(), "--name", reference]);
        let (name, digest) = printed.split_once('@').expect("NAME@DIGEST");
        assert!(reference.starts_with(name), "{printed}");
        digest.to_owned()
    }

    /// Opens the store with the library.
    fn store(&self) -> Store {
        Store::open(self.program.store()).unwrap()
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.program.blob(digest)
    }

    /// The manifest of an image, read from the store's blobs.
    fn manifest(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob(digest)).unwrap()).unwrap()
    }

    /// The digest of a layer.
    fn layer(&self, image: &str, number: usize) -> String {
        self.manifest(image)["layers"][number]["digest"].as_str().unwrap().to_owned()
    }

    /// Flips a bit in the middle of a blob.
    fn damage(&self, digest: &str) {
        let mut bytes = fs::read(self.blob(digest)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.blob(digest), bytes).unwrap();
    }

    /// Runs a command that must fail: exit code 2, and on stderr one line with the error and perhaps one with a hint. Returns
    /// both without their prefixes. Stdout must be empty, or with `--json` an object with the same error.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> (String, Option<String>) {
        failed(&self.program.run(arguments))
    }
}

/// Checks the output of a failed command; see [`Fixture::fails`].
#[track_caller]
fn failed(output: &Output) -> (String, Option<String>) {
    let (out, err) = texts(output);
    assert_eq!(output.status.code(), Some(2), "{out}{err}");
    let lines: Vec<&str> = err.lines().collect();
    let after = |line: &str, word: &str| {
        line.strip_prefix(word).unwrap_or_else(|| panic!("not `{word}..`: {err}")).to_owned()
    };
    let (error, hint) = match lines.as_slice() {
        [error] => (after(error, "error: "), None),
        [error, hint] => (after(error, "error: "), Some(after(hint, "hint: "))),
        _ => panic!("neither one line nor two: {err}"),
    };
    if !out.is_empty() {
        let printed: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("not only JSON: {out}"));
        assert_eq!((&printed["error"]["message"], &printed["error"]["hint"]), (&json!(error), &json!(hint)));
    }
    (error, hint)
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// The keys of an object, sorted.
#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Compresses with gzip.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
