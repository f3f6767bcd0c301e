//! Named roots: what is written in them stays in them, and nothing of them stays.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod in_use;
mod removal;
mod uppers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use support::fixture::MountedFixture;
use support::images::run;
use support::program::Program;
use support::trees;

/// A fixture in which roots are made. Dropped first, it takes down what a failed test has left.
struct Lab {
    fixture: MountedFixture,
    /// Where uppers are, if not in the store.
    homes: Option<PathBuf>,
}

impl Lab {
    fn new() -> Self {
        Self { fixture: MountedFixture::new(), homes: None }
    }

    /// With uppers in a directory of the test's own.
    fn with_homes(homes: &Path) -> Self {
        let lab = Self { fixture: MountedFixture::new(), homes: Some(homes.to_owned()) };
        let config = format!("[root]\nupper-dir = '{}'\n", homes.display());
        fs::write(lab.fixture.program.dir().join("config.toml"), config).unwrap();
        lab
    }

    fn program(&self) -> &Program {
        &self.fixture.program
    }

    /// Another daemon after one that has ended.
    fn mount_again(&mut self) {
        let dir = self.fixture.mount.dir().to_owned();
        let again = self.fixture.program.mount_at(&dir).unwrap();
        // Dropped, the former would take this mount for its own.
        std::mem::forget(std::mem::replace(&mut self.fixture.mount, again));
    }

    fn run_dir(&self) -> PathBuf {
        self.program().dir().join("run")
    }

    fn homes(&self) -> PathBuf {
        self.homes.clone().unwrap_or_else(|| self.program().store().join("rcx-imagefs/roots"))
    }

    /// The image in the mount.
    fn image(&self) -> PathBuf {
        self.fixture.mount.path(&self.fixture.good)
    }

    /// Makes a root of the fixture's image.
    #[track_caller]
    fn create(&self, id: &str, upper: &str) -> PathBuf {
        self.create_of(&self.fixture.good, id, upper)
    }

    #[track_caller]
    fn create_of(&self, image: &str, id: &str, upper: &str) -> PathBuf {
        self.program().ok(&["root", "create", image, "--id", id, "--upper", upper]).into()
    }

    fn creating(&self, id: &str, upper: &str) -> Child {
        let arguments = ["root", "create", &self.fixture.good, "--id", id, "--upper", upper];
        let mut command = self.program().command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[track_caller]
    fn remove(&self, id: &str) {
        assert_eq!(
            self.program().json(&["root", "remove", id]),
            json!([{"id": id, "removed": true, "holders": [], "error": null, "code": null}])
        );
    }

    fn sweep(&self) -> Value {
        self.program().json(&["root", "sweep"])["removed"].clone()
    }

    fn state(&self, id: &str) -> Option<String> {
        let listed = self.program().json(&["root", "list"]);
        let found = listed.as_array().unwrap().iter().find(|one| one["id"] == id)?;
        Some(found["state"].as_str().unwrap().to_owned())
    }

    /// Nothing of any root is there: no mount, no mountpoint, no home, and a skeleton that nobody wrote in.
    #[track_caller]
    fn is_clean(&self) {
        let run = self.run_dir();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<_> = mounts.lines().filter(|line| line.contains(&*run.to_string_lossy())).collect();
        assert!(ours.is_empty(), "still mounted: {ours:#?}");
        for dir in [self.homes(), run.join("roots"), run.join("root")].iter().filter(|dir| dir.exists()) {
            assert_eq!(names(dir), Vec::<String>::new(), "{}", dir.display());
        }
        if run.join("skeleton").exists() {
            let skeleton = trees::paths(&run.join("skeleton/layer"));
            let expected = ["", "box", "dev", "proc", "sys", "tmp"].map(PathBuf::from);
            assert_eq!(skeleton.into_iter().collect::<Vec<_>>(), expected);
        }
        assert_eq!(self.program().json(&["root", "list"]), json!([]));
    }

    /// The end of a test: everything is as it was before.
    #[track_caller]
    fn finish(self) {
        self.is_clean();
        self.fixture.assert_unaffected();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in fs::read_dir(self.run_dir().join("roots")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("--lazy").arg(name.path()).stderr(Stdio::null()).status();
        }
        // What a temporary directory's own removal cannot.
        let _ =
            Command::new("chattr").args(["-R", "-f", "-ia"]).arg(self.homes()).stderr(Stdio::null()).status();
    }
}

/// A process that is ended with its owner.
struct Running(Child);

impl Running {
    /// A process whose current directory is `dir`, in a mount namespace of its own or in everybody's.
    fn in_directory(dir: &Path) -> Self {
        Self(Command::new("sleep").arg("1000").current_dir(dir).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a line of shell in a root.
#[track_caller]
fn shell(root: &Path, line: &str) -> String {
    run("chroot", &[root.to_str().unwrap(), "/bin/sh", "-c", line])
}

/// The mount of a root, as everybody sees it.
fn mount_of(root: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().find(|line| line.split(' ').nth(4).map(Path::new) == Some(root));
    found.unwrap_or_else(|| panic!("{} is not mounted:\n{mounts}", root.display())).to_owned()
}

/// Numbers that look random and are the same in each run.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}
