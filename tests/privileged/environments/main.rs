//! `env build` with real buildah.
//!
//! The base image is the small image of the test images; its only program is busybox.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod builds;
mod failures;
mod killed;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::fixture::Fixture;

/// An environment variable that marks all processes of a test's builders.
const MARK: &str = "RCX_TEST_ENVIRONMENTS";

/// The program with a queue, a registry with the base image `lab/small:1`, and small limits.
struct BuildFixture {
    fixture: Fixture,
}

impl BuildFixture {
    fn new() -> Self {
        let build = Self { fixture: Fixture::new(&["small"]) };
        let registry = build.registry().reference("environments");
        build.configure(&format!("registry = '{registry}'\n"));
        build
    }

    /// Writes the configuration, with these lines in the table of environments. Smoke commands run under bubblewrap, which every test host has.
    fn configure(&self, lines: &str) {
        let queue = self.queue().display().to_string();
        let text = format!(
            "[run]\nsandbox = 'bwrap'\n[environments]\nqueue = '{queue}'\nbuild-disk = '64M'\nbuild-log = '1M'\n{lines}"
        );
        fs::write(self.fixture.program.dir().join("config.toml"), text).unwrap();
    }

    fn registry(&self) -> &DockerRegistry {
        &self.fixture.registry
    }

    fn queue(&self) -> PathBuf {
        self.fixture.program.dir().join("queue")
    }

    fn base(&self) -> String {
        self.fixture.reference("small")
    }

    /// The directory of a revision of `env`.
    fn revision(&self, number: u32) -> PathBuf {
        self.queue().join("env").join(number.to_string())
    }

    fn result(&self, number: u32) -> Value {
        let path = self.revision(number).join("result.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The output of a build.
    fn log(&self, number: u32) -> String {
        fs::read_to_string(self.revision(number).join("build.log")).unwrap()
    }

    fn state(&self, number: u32) -> String {
        let listed = self.env_json(&["list"]);
        let number = Value::from(number);
        let found = listed.as_array().unwrap().iter().find(|one| one["revision"] == number).unwrap();
        found["state"].as_str().unwrap().to_owned()
    }

    fn env_json(&self, arguments: &[&str]) -> Value {
        self.fixture.program.json(&[&["env"], arguments].concat())
    }

    /// Submits and approves a Dockerfile, after a `FROM` line with the base image. Returns the number of the revision.
    fn approve(&self, steps: &str, options: &[&str]) -> u32 {
        let directory = self.fixture.program.dir().join("context");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("Dockerfile"), format!("FROM {}\n{steps}", self.base())).unwrap();
        fs::write(directory.join("file"), "of the context\n").unwrap();
        let directory = directory.to_str().unwrap();
        let submitted =
            self.fixture
                .program
                .ok(&[&["env", "submit", "env", directory, "--as", "alice"], options].concat());
        self.fixture.program.ok(&["env", "approve", &submitted, "--as", "bob"]);
        submitted.strip_prefix("env@").unwrap().parse().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.fixture.program.command(&[&["env", "build"], arguments].concat());
        command.env(MARK, self.fixture.program.dir());
        command
    }

    /// Builds the next revision. Returns what is printed.
    #[track_caller]
    fn build(&self) -> String {
        let output = self.command(&[]).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{out}{err}", output.status);
        self.assert_clean();
        out.trim_end().to_owned()
    }

    /// Builds the next revision, which must fail. Returns what is printed on stderr.
    #[track_caller]
    fn build_fails(&self) -> String {
        let error = support::program::failure(&self.command(&[]).output().unwrap(), &["env", "build"]);
        self.assert_clean();
        error
    }

    /// Checks that no process, mount, loop device or file of a build is left.
    #[track_caller]
    fn assert_clean(&self) {
        wait_until("all processes of the build have ended", || self.processes().is_empty());
        let queue = self.queue().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&queue), "{mounts}");
        wait_until("the loop device is free", || !loop_files().iter().any(|file| file.contains(&queue)));
        let left = fs::read_dir(self.queue().join(".queue/build")).unwrap();
        let left: Vec<_> =
            left.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// The processes that builders of this test have started, also in namespaces.
    fn processes(&self) -> Vec<PathBuf> {
        let directory = self.fixture.program.dir().as_os_str().as_encoded_bytes();
        let is_ours = |process: &Path| {
            let environ = fs::read(process.join("environ")).unwrap_or_default();
            environ.windows(directory.len()).any(|window| window == directory)
        };
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let processes =
            processes.filter(|path| path.file_name().unwrap().to_str().unwrap().parse::<u32>().is_ok());
        processes.filter(|process| is_ours(process)).collect()
    }
}

/// The files of all loop devices.
fn loop_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    devices.filter_map(|device| fs::read_to_string(device.join("loop/backing_file")).ok()).collect()
}
