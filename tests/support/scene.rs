//! A store with one sound image, and what tests break beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::docker_registry::DockerRegistry;
use crate::images::{Images, OwnLayout, run};
use crate::program::{Program, TestMount};

/// A store with one sound image, mounted: whatever fails beside it must leave it alone.
pub struct Scene {
    // Dropped first: the other fields' directories cannot be removed below a mount.
    pub mount: TestMount,
    pub images: Images,
    pub registry: DockerRegistry,
    pub program: Program,
    pub good: String,
    listed: String,
}

impl Scene {
    pub fn new() -> Self {
        let images = Images::make(&["small", "small-arm64"]);
        let registry = DockerRegistry::start();
        let program = Program::new();
        registry.push_from(&images.layout(), "small", "lab/good:1");
        let good = program.pull(&registry.reference("lab/good:1"));
        let mount = program.mount();
        let listed = program.ok(&["images"]);
        Self { images, registry, program, mount, good, listed }
    }

    /// A copy of the small image to spoil.
    pub fn copy(&self) -> OwnLayout {
        self.images.layout().copy_of("small")
    }

    pub fn reference(&self, rest: &str) -> String {
        self.registry.reference(rest)
    }

    /// Pulls what cannot be pulled: the error must hold all of `words`, and nothing else may change.
    #[track_caller]
    pub fn pull_fails(&self, arguments: &[&str], words: &[&str]) {
        let arguments = [&["pull"], arguments].concat();
        let error = self.program.fails(&arguments);
        for word in words {
            assert!(error.contains(word), "the error should name {word:?}:\n{error}");
        }
        self.is_untouched();
    }

    #[track_caller]
    pub fn is_untouched(&self) {
        assert_eq!(self.program.ok(&["images"]), self.listed, "the list of images has changed");
        let lab = self.mount.path(&self.registry.reference("lab"));
        let names: Vec<_> = fs::read_dir(lab).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name.to_str().unwrap().starts_with("good")), "{names:?}");
        let motd = self.mount.path(&self.good).join("etc/motd");
        assert_eq!(fs::read_to_string(motd).unwrap(), "a small image\n");
        let tmp = self.program.store().join("rcx-imagefs/tmp");
        assert_eq!(fs::read_dir(tmp).map_or(0, Iterator::count), 0, "temporary files are left");
    }
}

/// A small disk of its own.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub fn new(size: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-disk").tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs", &path]);
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}
