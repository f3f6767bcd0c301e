//! Runs the attempts through `load`, `pull`, `unpack`, `cp`, the mount, and roots of every engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;

use support::canary::{Canary, SECRET};
use support::docker_registry::DockerRegistry;
use support::escape::attempts::{
    ATTRIBUTES, Attempt, DOT_DOT, HARD_LINKS, NAMES, Outcome, PLACES, ROOT, SPECIAL, SWAPPED, THROUGH_LINKS,
};
use support::escape::{self, Aim, is_inside};
use support::program::{Program, TestMount, failure};
use support::{disk, engines, images, layout, text};

/// Later than the modification time of any file.
const NEVER: i64 = i64::MAX;

/// A mounted store with two canaries: one beside the store, one far from it.
pub(super) struct EscapeFixture {
    // Dropped first: the directories of the other fields cannot be removed while they hold a mount.
    pub(super) mount: TestMount,
    near: Canary,
    far: Canary,
    pub(super) program: Program,
}

impl EscapeFixture {
    pub(super) fn new() -> Self {
        let program = Program::new();
        let near = Canary::in_directory(program.dir());
        Self { mount: program.mount(), near, far: Canary::new(), program }
    }

    pub(super) fn aim(&self) -> Aim<'_> {
        Aim { far: self.far.path(), near: self.near.name() }
    }

    #[track_caller]
    pub(super) fn assert_untouched(&self, what: &str, by: &str) {
        self.near.assert_untouched(&format!("{what} by {by}"));
        self.far.assert_untouched(&format!("{what} by {by}"));
    }

    /// Checks the output of `load` or `pull` for an attempt. Returns the image's name if it was accepted.
    #[track_caller]
    fn check_import(&self, attempt: &Attempt, by: &'static str, output: &Output) -> Option<String> {
        self.assert_untouched(attempt.name, by);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains(SECRET), "{} by {by}: {stderr}", attempt.name);
        match attempt.outcome {
            Outcome::Refused(part) => {
                assert!(!output.status.success(), "{} by {by} should be refused", attempt.name);
                let error = failure(output, &[attempt.name, by]);
                assert!(
                    error.contains(part),
                    "{} by {by} should be refused with {part:?}: {error}",
                    attempt.name
                );
                None
            }
            Outcome::Kept(_) => {
                assert!(output.status.success(), "{} by {by}: {stderr}", attempt.name);
                Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
            }
        }
    }

    /// Checks that a tree holds everything that the attempt made, and nothing of the host. Returns its dump.
    #[track_caller]
    fn check_tree(&self, attempt: &Attempt, by: &str, root: &Path) -> String {
        let Outcome::Kept(paths) = attempt.outcome else { panic!("{} has no tree", attempt.name) };
        for path in paths {
            let path = self.aim().inside(path);
            let path = if path.is_empty() { "." } else { &path };
            assert!(is_inside(root, path), "{} by {by}: {path:?} is not inside the tree", attempt.name);
        }
        let dump =
            disk::dump(root, NEVER).unwrap_or_else(|error| panic!("{} by {by}: {error}", attempt.name));
        assert!(!dump.contains(SECRET), "{} by {by} reveals a file of the host:\n{dump}", attempt.name);
        self.assert_untouched(attempt.name, by);
        dump
    }

    /// Makes a root, checks it and removes it. Returns its dump.
    #[track_caller]
    fn check_root(&self, attempt: &Attempt, image: &str, engine: &str, upper: &str) -> String {
        let by = format!("a root of {engine} with {upper}");
        let create = ["root", "create", image, "--engine", engine, "--upper", upper, "--id", "it"];
        let root = PathBuf::from(self.program.ok(&create));
        let dump = self.check_tree(attempt, &by, &root);
        self.program.ok(&["root", "remove", "it"]);
        self.assert_untouched(attempt.name, "removing a root");
        dump
    }

    /// Checks that every engine shows the same tree, and nothing of the host.
    #[track_caller]
    fn check_engines(&self, attempt: &Attempt, image: &str, uppers: &[&str]) {
        let mounted = self.check_tree(attempt, "the mount", &self.mount.path(image));
        let copy = self.program.dir().join("copy");
        self.program.ok(&["unpack", "--preserve-setuid", image, copy.to_str().unwrap()]);
        assert_eq!(self.check_tree(attempt, "unpack", &copy), mounted, "{}: unpack and mount", attempt.name);
        fs::remove_dir_all(&copy).unwrap();
        let whole = format!("{image}:/");
        self.program.ok(&["cp", "--archive", "--preserve-setuid", &whole, copy.to_str().unwrap()]);
        assert_eq!(self.check_tree(attempt, "cp", &copy), mounted, "{}: cp and mount", attempt.name);
        fs::remove_dir_all(&copy).unwrap();
        for upper in uppers {
            let [fuse, others @ ..] =
                engines::ALL.map(|engine| (engine, self.check_root(attempt, image, engine, upper)));
            for (engine, dump) in others {
                assert_eq!(dump, fuse.1, "{}: roots of {engine} and of fuse, upper {upper}", attempt.name);
            }
        }
    }

    /// Loads the attempts, checks them in every engine, and removes them.
    #[track_caller]
    fn check(self, attempts: &[Attempt], uppers: &[&str]) {
        for attempt in attempts {
            let output = text::try_load(&self.program, &attempt.image(self.aim()));
            if let Some(image) = self.check_import(attempt, "load", &output) {
                self.check_engines(attempt, &image, uppers);
                self.program.ok(&["rm", &image]);
            }
        }
        self.program.ok(&["gc"]);
        self.assert_untouched("the store", "gc");
        self.finish();
    }

    pub(super) fn finish(self) {
        self.mount.stop();
        self.near.assert_untouched("the end");
        self.far.assert_untouched("the end");
    }
}

#[test]
fn dot_dot_and_absolute_names_stay_inside() {
    EscapeFixture::new().check(DOT_DOT, &["dir"]);
}

#[test]
fn parent_links_resolve_inside_the_root() {
    EscapeFixture::new().check(THROUGH_LINKS, &["dir"]);
}

#[test]
fn parents_replaced_by_links_resolve_inside_the_root() {
    EscapeFixture::new().check(SWAPPED, &["dir"]);
}

#[test]
fn attributes_are_never_set_through_a_link() {
    EscapeFixture::new().check(ATTRIBUTES, &["dir"]);
}

#[test]
fn root_directory_cannot_be_replaced() {
    EscapeFixture::new().check(ROOT, &["dir"]);
}

#[test]
fn hard_links_never_reach_outside_the_root() {
    EscapeFixture::new().check(HARD_LINKS, &["dir"]);
}

#[test]
fn devices_fifos_and_overlay_metadata_have_no_effect() {
    EscapeFixture::new().check(SPECIAL, &["dir"]);
}

#[test]
fn sandbox_mount_points_are_always_directories_of_the_root() {
    EscapeFixture::new().check(PLACES, &["dir", "none"]);
}

#[test]
fn unusual_names_are_treated_as_plain_names() {
    EscapeFixture::new().check(NAMES, &["dir"]);
}

#[test]
fn escape_attempts_from_a_registry_fail_as_those_from_a_layout() {
    let fixture = EscapeFixture::new();
    let attempts: Vec<&Attempt> = escape::all().collect();
    let images: Vec<_> = attempts.iter().map(|attempt| attempt.image(fixture.aim())).collect();
    let dir = fixture.program.dir().join("layouts");
    let digests = layout::write(&dir, &images);
    // One index of all images, so that one copy pushes all of them.
    let mut index: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    for (number, entry) in index["manifests"].as_array_mut().unwrap().iter_mut().enumerate() {
        entry.as_object_mut().unwrap().remove("annotations");
        entry["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": format!("v{number}")});
    }
    let bytes = index.to_string();
    let digest = images::sha256(bytes.as_bytes());
    fs::write(dir.join("blobs/sha256").join(&digest), &bytes).unwrap();
    let all = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": index["mediaType"], "digest": format!("sha256:{digest}"), "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "all"},
    }]});
    fs::write(dir.join("index.json"), all.to_string()).unwrap();
    let registry = DockerRegistry::start();
    registry.push(&format!("oci:{}:all", dir.display()), "lab/attempts:1", &["--all"]);
    for (attempt, digest) in attempts.into_iter().zip(digests) {
        let reference = registry.reference(&format!("lab/attempts@{digest}"));
        let image = fixture.check_import(attempt, "pull", &fixture.program.run(&["pull", &reference]));
        if let Some(image) = image {
            fixture.check_tree(attempt, "the mount", &fixture.mount.path(&image));
        }
    }
    fixture.finish();
}
