//! What most privileged tests start from: images in a loopback registry, the program with a store of its own, its mount.

use std::fs;

use serde_json::Value;

use crate::docker_registry::DockerRegistry;
use crate::images::{Images, LayoutCopy};
use crate::program::{Program, TestMount};

/// A loopback registry with images of `scripts/test-images`, and the program with an empty store.
///
/// The registry holds the image `NAME` as `lab/NAME:1`.
pub struct Fixture {
    pub images: Images,
    pub registry: DockerRegistry,
    pub program: Program,
}

impl Fixture {
    /// Starts a registry and pushes these images to it.
    pub fn new(images: &[&str]) -> Self {
        Self::with_program(images, Program::new())
    }

    /// The same for a program whose store is elsewhere.
    pub fn with_program(images: &[&str], program: Program) -> Self {
        let fixture = Self { images: Images::make(images), registry: DockerRegistry::start(), program };
        for image in images {
            fixture.push(image, &format!("lab/{image}:1"));
        }
        fixture
    }

    /// Pushes an image under another name, `REPOSITORY:TAG`. Returns the digest of its manifest.
    pub fn push(&self, image: &str, to: &str) -> String {
        self.registry.push_from(&self.images.layout(), image, to)
    }

    /// The reference of an image, `127.0.0.1:PORT/lab/NAME:1`.
    pub fn reference(&self, image: &str) -> String {
        self.registry.reference(&format!("lab/{image}:1"))
    }

    /// Pulls an image. Returns its `NAME@DIGEST`.
    pub fn pull(&self, image: &str) -> String {
        self.program.pull(&self.reference(image))
    }
}

/// A mounted store with one intact image, `lab/good:1`. Tests break things beside it and check that it is unaffected.
pub struct MountedFixture {
    // Dropped first: the directories of the other fields cannot be removed while they hold a mount.
    pub mount: TestMount,
    pub images: Images,
    pub registry: DockerRegistry,
    pub program: Program,
    /// `NAME@DIGEST` of the intact image.
    pub good: String,
    /// What `rcx-imagefs images` prints.
    listed: Value,
}

impl MountedFixture {
    pub fn new() -> Self {
        let (images, registry) = (Images::make(&["small", "small-arm64"]), DockerRegistry::start());
        let program = Program::new();
        registry.push_from(&images.layout(), "small", "lab/good:1");
        let good = program.pull(&registry.reference("lab/good:1"));
        let mount = program.mount();
        let listed = program.json(&["images"]);
        Self { images, registry, program, mount, good, listed }
    }

    /// A copy of the small image that the test may damage.
    pub fn copy(&self) -> LayoutCopy {
        self.images.layout().copy_of("small")
    }

    pub fn reference(&self, rest: &str) -> String {
        self.registry.reference(rest)
    }

    /// Runs `pull`, which must fail with each of `words` in the error and change nothing else.
    #[track_caller]
    pub fn pull_fails(&self, arguments: &[&str], words: &[&str]) {
        let arguments = [&["pull"], arguments].concat();
        let error = self.program.fails(&arguments);
        for word in words {
            assert!(error.contains(word), "the error should name {word:?}:\n{error}");
        }
        self.assert_unaffected();
    }

    /// Checks that the intact image is listed, mounted and readable, and that there is nothing else.
    #[track_caller]
    pub fn assert_unaffected(&self) {
        assert_eq!(self.program.json(&["images"]), self.listed, "the list of images has changed");
        let lab = self.mount.path(&self.registry.reference("lab"));
        let names: Vec<_> = fs::read_dir(lab).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name.to_str().unwrap().starts_with("good")), "{names:?}");
        let motd = self.mount.path(&self.good).join("etc/motd");
        assert_eq!(fs::read_to_string(motd).unwrap(), "a small image\n");
        let tmp = self.program.store().join("rcx-imagefs/tmp");
        assert_eq!(fs::read_dir(tmp).map_or(0, Iterator::count), 0, "temporary files are left");
    }
}
