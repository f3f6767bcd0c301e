//! Named roots: writes stay within the root, and removal leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod homes;
mod in_use;
mod inodes;
mod legacy_mounts;
mod planted;
mod removal;
mod remove_tree;
mod trees;
mod uppers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use support::fixture::MountedFixture;
use support::images::run;
use support::program::Program;

/// The marker of the directory of homes, and of each home.
const MARKER: &str = ".rcx-imagefs";

/// A mounted store in which roots are made. Dropping it unmounts the roots that a failed test has left.
struct RootsFixture {
    mounted: MountedFixture,
    /// The configured directory of uppers, if they are not in the store.
    upper_dir: Option<PathBuf>,
}

impl RootsFixture {
    fn new() -> Self {
        Self { mounted: MountedFixture::new(), upper_dir: None }
    }

    /// With uppers in another directory.
    fn with_upper_dir(directory: &Path) -> Self {
        let fixture = Self { mounted: MountedFixture::new(), upper_dir: Some(directory.to_owned()) };
        let config = format!("[root]\nupper-dir = '{}'\n", directory.display());
        fs::write(fixture.mounted.program.dir().join("config.toml"), config).unwrap();
        fixture
    }

    fn program(&self) -> &Program {
        &self.mounted.program
    }

    /// Starts another daemon after the first has ended.
    fn mount_new_daemon(&mut self) {
        let dir = self.mounted.mount.dir().to_owned();
        let again = self.mounted.program.mount_at(&dir).unwrap();
        // Dropping the old one would unmount the new mount.
        std::mem::forget(std::mem::replace(&mut self.mounted.mount, again));
    }

    fn run_dir(&self) -> PathBuf {
        self.program().dir().join("run")
    }

    /// The directory that holds the files of roots.
    fn homes(&self) -> PathBuf {
        match &self.upper_dir {
            Some(directory) => directory.join("rcx-imagefs-roots"),
            None => self.program().store().join("rcx-imagefs/roots"),
        }
    }

    /// The intact image in the mount.
    fn image(&self) -> PathBuf {
        self.mounted.mount.path(&self.mounted.good)
    }

    /// Makes a root of the intact image.
    #[track_caller]
    fn create(&self, id: &str, upper: &str) -> PathBuf {
        self.create_of(&self.mounted.good, id, upper)
    }

    #[track_caller]
    fn create_of(&self, image: &str, id: &str, upper: &str) -> PathBuf {
        self.program().ok(&["root", "create", image, "--id", id, "--upper", upper]).into()
    }

    fn start_create(&self, id: &str, upper: &str) -> Child {
        let arguments = ["root", "create", &self.mounted.good, "--id", id, "--upper", upper];
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
        let found = listed.as_array().unwrap().iter().find(|root| root["id"] == id)?;
        Some(found["state"].as_str().unwrap().to_owned())
    }

    /// Checks that no root has left a mount, a mountpoint or a home.
    #[track_caller]
    fn assert_clean(&self) {
        let run = self.run_dir();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // The layers that the daemon serves stay as long as the daemon.
        let layers = format!(" {} ", run.join("layers").display());
        let is_ours = |line: &&str| line.contains(&*run.to_string_lossy()) && !line.contains(&layers);
        let ours: Vec<_> = mounts.lines().filter(is_ours).collect();
        assert!(ours.is_empty(), "still mounted: {ours:#?}");
        for dir in [self.homes(), run.join("roots"), run.join("root")].iter().filter(|dir| dir.exists()) {
            let names: Vec<_> = names(dir).into_iter().filter(|name| name != MARKER).collect();
            assert_eq!(names, Vec::<String>::new(), "{}", dir.display());
        }
        assert_eq!(self.program().json(&["root", "list"]), json!([]));
    }

    /// Ends a test: checks that everything is as before.
    #[track_caller]
    fn finish(self) {
        self.assert_clean();
        self.mounted.assert_unaffected();
    }
}

impl Drop for RootsFixture {
    fn drop(&mut self) {
        for name in fs::read_dir(self.run_dir().join("roots")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("--lazy").arg(name.path()).stderr(Stdio::null()).status();
        }
        // Files with these attributes cannot be removed with the temporary directory.
        let _ =
            Command::new("chattr").args(["-R", "-f", "-ia"]).arg(self.homes()).stderr(Stdio::null()).status();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a shell command in a root.
#[track_caller]
fn shell(root: &Path, line: &str) -> String {
    run("chroot", &[root.to_str().unwrap(), "/bin/sh", "-c", line])
}

/// The line of a root in the mountinfo of the test.
fn mount_of(root: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().find(|line| line.split(' ').nth(4).map(Path::new) == Some(root));
    found.unwrap_or_else(|| panic!("{} is not mounted:\n{mounts}", root.display())).to_owned()
}

/// Pseudo-random numbers, the same in each run.
fn pseudo_random(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}
