//! The attempts through `load`, `pull`, `unpack`, the mount, and roots of every engine.

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
use support::{disk, images, layout, text};

/// Nothing is as young as this.
const NEVER: i64 = i64::MAX;
const ENGINES: [&str; 3] = ["fuse", "overlay2", "unpack"];

/// A mounted store between two canaries.
pub(super) struct Lab {
    // Dropped first: what follows cannot be removed below a mount.
    pub(super) mount: TestMount,
    near: Canary,
    far: Canary,
    pub(super) program: Program,
}

impl Lab {
    pub(super) fn new() -> Self {
        let program = Program::new();
        let near = Canary::in_directory(program.dir());
        Self { mount: program.mount(), near, far: Canary::new(), program }
    }

    pub(super) fn aim(&self) -> Aim<'_> {
        Aim { far: self.far.path(), near: self.near.name() }
    }

    #[track_caller]
    pub(super) fn is_untouched(&self, what: &str, by: &str) {
        self.near.assert_untouched(&format!("{what} by {by}"));
        self.far.assert_untouched(&format!("{what} by {by}"));
    }

    /// Judges what came of taking an attempt's image in; its name if it did.
    #[track_caller]
    fn came_in(&self, attempt: &Attempt, by: &'static str, output: &Output) -> Option<String> {
        self.is_untouched(attempt.name, by);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains(SECRET), "{} by {by}: {said}", attempt.name);
        match attempt.outcome {
            Outcome::Refused(part) => {
                assert!(!output.status.success(), "{} by {by} should be refused", attempt.name);
                let error = failure(output, &[attempt.name, by]);
                assert!(
                    error.contains(part),
                    "{} by {by} should be refused for {part}: {error}",
                    attempt.name
                );
                None
            }
            Outcome::Kept(_) => {
                assert!(output.status.success(), "{} by {by}: {said}", attempt.name);
                Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
            }
        }
    }

    /// What a tree shows. All that the attempt made is inside of it, and nothing of the host is.
    #[track_caller]
    fn shown(&self, attempt: &Attempt, by: &str, root: &Path) -> String {
        let Outcome::Kept(paths) = attempt.outcome else { panic!("{} has no tree", attempt.name) };
        for path in paths {
            let path = self.aim().inside(path);
            let path = if path.is_empty() { "." } else { &path };
            assert!(is_inside(root, path), "{} by {by}: {path:?} is not inside of the tree", attempt.name);
        }
        let shown =
            disk::dump(root, NEVER).unwrap_or_else(|error| panic!("{} by {by}: {error}", attempt.name));
        assert!(!shown.contains(SECRET), "{} by {by} shows the host:\n{shown}", attempt.name);
        self.is_untouched(attempt.name, by);
        shown
    }

    /// A root, looked at and removed.
    #[track_caller]
    fn root_shows(&self, attempt: &Attempt, image: &str, engine: &str, upper: &str) -> String {
        let by = format!("a root of {engine} with {upper}");
        let create = ["root", "create", image, "--engine", engine, "--upper", upper, "--id", "it"];
        let root = PathBuf::from(self.program.ok(&create));
        let shown = self.shown(attempt, &by, &root);
        self.program.ok(&["root", "remove", "it"]);
        self.is_untouched(attempt.name, "removing a root");
        shown
    }

    /// Every way to show an image shows the same, and nothing of the host.
    #[track_caller]
    fn every_engine_shows(&self, attempt: &Attempt, image: &str, uppers: &[&str]) {
        let mounted = self.shown(attempt, "the mount", &self.mount.path(image));
        let copy = self.program.dir().join("copy");
        self.program.ok(&["unpack", image, copy.to_str().unwrap()]);
        assert_eq!(self.shown(attempt, "unpack", &copy), mounted, "{}: unpack and mount", attempt.name);
        fs::remove_dir_all(&copy).unwrap();
        for upper in uppers {
            let [fuse, others @ ..] =
                ENGINES.map(|engine| (engine, self.root_shows(attempt, image, engine, upper)));
            for (engine, shown) in others {
                assert_eq!(shown, fuse.1, "{}: roots of {engine} and of fuse, upper {upper}", attempt.name);
            }
        }
    }

    /// Takes the attempts in, shows them, and throws them away.
    #[track_caller]
    fn holds(self, attempts: &[Attempt], uppers: &[&str]) {
        for attempt in attempts {
            let output = text::try_load(&self.program, &attempt.image(self.aim()));
            if let Some(image) = self.came_in(attempt, "load", &output) {
                self.every_engine_shows(attempt, &image, uppers);
                self.program.ok(&["rm", &image]);
            }
        }
        self.program.ok(&["gc"]);
        self.is_untouched("what was there", "gc");
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
    Lab::new().holds(DOT_DOT, &["dir"]);
}

#[test]
fn parent_links_resolve_inside_the_root() {
    Lab::new().holds(THROUGH_LINKS, &["dir"]);
}

#[test]
fn parents_replaced_by_links_resolve_inside_the_root() {
    Lab::new().holds(SWAPPED, &["dir"]);
}

#[test]
fn attributes_are_never_set_through_a_link() {
    Lab::new().holds(ATTRIBUTES, &["dir"]);
}

#[test]
fn root_directory_cannot_be_replaced() {
    Lab::new().holds(ROOT, &["dir"]);
}

#[test]
fn hard_links_never_reach_outside_the_root() {
    Lab::new().holds(HARD_LINKS, &["dir"]);
}

#[test]
fn devices_fifos_and_overlay_metadata_have_no_effect() {
    Lab::new().holds(SPECIAL, &["dir"]);
}

#[test]
fn sandbox_mount_points_are_always_directories_of_the_root() {
    Lab::new().holds(PLACES, &["dir", "none"]);
}

#[test]
fn unusual_names_are_treated_as_plain_names() {
    Lab::new().holds(NAMES, &["dir"]);
}

#[test]
fn escape_attempts_from_a_registry_fail_as_those_from_a_layout() {
    let lab = Lab::new();
    let attempts: Vec<&Attempt> = escape::all().collect();
    let images: Vec<_> = attempts.iter().map(|attempt| attempt.image(lab.aim())).collect();
    let dir = lab.program.dir().join("layouts");
    let digests = layout::write(&dir, &images);
    // One index of all of them, so that one copy brings all.
    let mut index: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    for (number, one) in index["manifests"].as_array_mut().unwrap().iter_mut().enumerate() {
        one.as_object_mut().unwrap().remove("annotations");
        one["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": format!("v{number}")});
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
        let image = lab.came_in(attempt, "pull", &lab.program.run(&["pull", &reference]));
        if let Some(image) = image {
            lab.shown(attempt, "the mount", &lab.mount.path(&image));
        }
    }
    lab.finish();
}
