//! Tests of `run` with real isolate and real bubblewrap.
//!
//! The isolate tests are ignored by default because isolate may not be installed. They use the isolate on PATH and all
//! isolates in `RCX_IMAGEFS_TEST_ISOLATES`, a colon-separated list.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bubblewrap;
mod hostile;
mod isolate;
mod killed;
mod limits;
mod names;
mod reads;
mod terminal;
mod unreadable;
mod warm;

use std::env;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::Images;
use support::program::{Program, TestMount, failure};

/// An environment variable that marks all processes of the runs of a test.
const MARK: &str = "RCX_TEST_RUN";
/// The number of boxes reserved for each test, because isolate 1 takes a box away from its user. The tests of the
/// stand-in use the boxes from 500 on.
const BOXES: u32 = 22;
/// The marker of the directory of homes. It stays when the homes are gone.
const MARKER: &str = ".rcx-imagefs";

/// An installed isolate.
#[derive(Debug, Clone)]
struct Isolate {
    program: PathBuf,
    /// The version, such as `2.6`.
    version: String,
    /// Whether it can use control groups on this machine.
    cg: bool,
    /// The directory of its boxes.
    boxes: PathBuf,
}

impl Isolate {
    fn new(program: &Path, box_id: u32) -> Self {
        let call = |arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let id = format!("--box-id={box_id}");
        let (initialized, path) = call(&[&id, "--init"]);
        assert!(initialized, "{} --init failed", program.display());
        call(&[&id, "--cleanup"]);
        let (cg, _) = call(&["--cg", &id, "--init"]);
        call(&["--cg", &id, "--cleanup"]);
        let version = call(&["--version"]).1;
        let version = version.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
        let boxes = Path::new(path.trim()).parent().unwrap().to_owned();
        Self { program: program.to_owned(), version, cg, boxes }
    }

    fn is_2(&self) -> bool {
        self.version.starts_with('2')
    }
}

/// The isolate on PATH and those listed in the environment.
fn all_isolates(box_id: u32) -> Vec<Isolate> {
    let path = env::var_os("PATH").unwrap();
    let first = env::split_paths(&path).map(|dir| dir.join("isolate")).find(|program| program.is_file());
    let others = env::var_os("RCX_IMAGEFS_TEST_ISOLATES").unwrap_or_default();
    let others = env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>();
    let all: Vec<_> = first.into_iter().chain(others).map(|program| Isolate::new(&program, box_id)).collect();
    assert!(!all.is_empty(), "there is no isolate on PATH");
    all
}

/// The exit code and the output of a run.
#[derive(Debug)]
struct RunResult {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs programs in the images of a mounted store.
struct Runner {
    // Dropped first: the directories of the other fields cannot be removed below a mount.
    mount: TestMount,
    program: Program,
    registry: DockerRegistry,
    images: Images,
    /// The first of the boxes reserved for this test.
    first_box: u32,
    sandbox: &'static str,
    isolate: Option<Isolate>,
    engine: &'static str,
}

/// An entry of a layer.
enum Entry<'a> {
    File(&'a str, &'a str),
    Directory(&'a str, u32),
    Link(&'a str, &'a str),
    Empty(&'a str),
}

impl Runner {
    fn new(first_box: u32, sandbox: &'static str) -> Self {
        let program = Program::new();
        let boxes = format!("[run]\nbox-ids = '{first_box}-{}'\n", first_box + BOXES - 1);
        fs::write(program.dir().join("config.toml"), boxes).unwrap();
        let images = Images::make(&["small"]);
        let mount = program.mount();
        let registry = DockerRegistry::start();
        Self { mount, program, registry, images, first_box, sandbox, isolate: None, engine: "fuse" }
    }

    fn with_isolate(first_box: u32) -> (Self, Vec<Isolate>) {
        (Self::new(first_box, "isolate"), all_isolates(first_box))
    }

    /// Pulls one of the images that all tests share.
    fn pull(&self, image: &str) -> String {
        Images::make(&[image]);
        self.registry.push_from(&self.images.layout(), image, &format!("lab/{image}:1"));
        self.program.pull(&self.registry.reference(&format!("lab/{image}:1")))
    }

    /// Pulls a variant of the small image with more entries and its own configuration.
    fn make(&self, name: &str, entries: &[Entry<'_>], config: &Value) -> String {
        let layout = self.images.layout().copy_of("small");
        let mut tar = tar::Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(0);
            let (path, content) = match entry {
                Entry::File(path, content) => (*path, *content),
                Entry::Directory(path, mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    (*path, "")
                }
                Entry::Link(path, target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target).unwrap();
                    continue;
                }
                Entry::Empty(path) => (*path, ""),
            };
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        let layer = tar.into_inner().unwrap();
        layout.add_layer(&layer);
        layout.change_config(|image| {
            for (key, value) in config.as_object().into_iter().flatten() {
                image["config"][key] = value.clone();
            }
        });
        self.registry.push(&layout.image(), &format!("made/{name}:1"), &[]);
        self.program.pull(&self.registry.reference(&format!("made/{name}:1")))
    }

    /// Builds a call of `run`.
    fn command(&self, image: &str, options: &[&str], words: &[&str]) -> Command {
        let mut command = self.program.command(&["run", "--sandbox", self.sandbox, "--engine", self.engine]);
        command.args(options).arg(image);
        if !words.is_empty() {
            command.arg("--").args(words);
        }
        self.set_up(&mut command);
        command
    }

    /// Sets up the environment of any call of the program as for runs.
    fn set_up(&self, command: &mut Command) {
        if let Some(isolate) = &self.isolate {
            let path = env::var_os("PATH").unwrap();
            let mut dirs = vec![isolate.program.parent().unwrap().to_owned()];
            dirs.extend(env::split_paths(&path));
            command.env("PATH", env::join_paths(dirs).unwrap());
        }
        command.env(MARK, self.mark()).current_dir(self.program.dir()).stdin(Stdio::null());
    }

    fn mark(&self) -> String {
        self.program.dir().display().to_string()
    }

    fn run(&self, image: &str, options: &[&str], words: &[&str]) -> RunResult {
        let output = self.command(image, options, words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        RunResult { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Runs a program that must exit with 0 and returns its standard output.
    #[track_caller]
    fn ok(&self, image: &str, options: &[&str], words: &[&str]) -> String {
        let ran = self.run(image, options, words);
        assert_eq!(ran.code, Some(0), "{options:?} {words:?} in {self:?}: {ran:?}");
        ran.out
    }

    /// Runs a program with `--json` and returns the result. The run itself must succeed.
    #[track_caller]
    fn verdict(&self, image: &str, options: &[&str], words: &[&str]) -> Value {
        let ran = self.run(image, &[options, &["--json"]].concat(), words);
        let verdict: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?} in {self:?}"));
        let expected = if verdict["status"] == "OK" { 0 } else { 1 };
        assert_eq!(ran.code, Some(expected), "{options:?} {words:?} in {self:?}: {ran:?}");
        verdict
    }

    /// Makes a run that must be refused with an error that contains all of `parts`, and leave nothing behind.
    #[track_caller]
    fn assert_refused(&self, image: &str, options: &[&str], words: &[&str], parts: &[&str]) {
        let output = self.command(image, options, words).output().unwrap();
        let error = failure(&output, &[options, words].concat());
        for part in parts {
            assert!(error.contains(part), "the error should contain {part:?}: {error}");
        }
        self.assert_clean();
    }

    /// Lists everything that exists of this test's runs: boxes, roots, mounts, processes and control groups.
    fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let run_dir = self.program.dir().join("run");
        let state_dir = self.program.store().join("rcx-imagefs");
        for dir in [
            run_dir.join("boxes"),
            run_dir.join("roots"),
            run_dir.join("root"),
            state_dir.join("roots"),
            state_dir.join("boxes"),
        ] {
            let names = names(&dir).into_iter().filter(|name| name != MARKER);
            traces.extend(names.map(|name| dir.join(name).display().to_string()));
        }
        // The files `isolate-*` keep what isolate has printed about itself.
        let is_known = |name: &str| {
            ["boxes", "roots", "root", "layers", "trees", "isolate-version", "isolate-users"].contains(&name)
                || name.ends_with(".sock")
                || name.ends_with(".lock")
                || name == "lock"
        };
        traces.extend(names(&run_dir).into_iter().filter(|name| !is_known(name)));
        for id in self.first_box..self.first_box + BOXES {
            let boxes = self.isolate.iter().map(|isolate| isolate.boxes.join(id.to_string()));
            let groups = names(Path::new("/sys/fs/cgroup")).into_iter();
            let groups = groups.map(|name| Path::new("/sys/fs/cgroup").join(name).join(format!("box-{id}")));
            traces.extend(
                boxes.chain(groups).filter(|path| path.exists()).map(|path| path.display().to_string()),
            );
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below_test_dir = format!(" {}/", self.mark());
        let daemon_mounts = [self.mount.dir(), self.mount.layers()].map(|dir| format!(" {} ", dir.display()));
        let is_daemons = |line: &str| daemon_mounts.iter().any(|mount| line.contains(mount));
        traces.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&below_test_dir) && !is_daemons(line))
                .map(str::to_owned),
        );
        traces.extend(self.processes().into_iter().map(|(pid, name)| format!("process {pid} {name}")));
        traces
    }

    /// The live processes of this test's runs as (pid, command name).
    fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("{MARK}={}\0", self.mark());
        let found = names(Path::new("/proc")).into_iter().filter_map(|name| {
            let pid: u32 = name.parse().ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let is_ours = environment.windows(mark.len()).any(|window| window == mark.as_bytes());
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            // The process that holds the mount of an image outlives the run.
            (is_ours && name != "rcx-tree\n").then(|| (pid, name.trim_end().to_owned()))
        });
        found.collect()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.traces(), Vec::<String>::new(), "{self:?}");
    }

    /// Sweeps until nothing is left. Killed processes may take a moment to disappear.
    #[track_caller]
    fn sweep_until_clean(&self) {
        wait_until("all runs are cleaned up", || {
            let mut command = self.program.command(&["root", "sweep"]);
            self.set_up(&mut command);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let traces = self.traces();
            if !traces.is_empty() {
                eprintln!("still left: {traces:#?}");
            }
            traces.is_empty()
        });
    }

    /// Writes a file on the host and returns its path.
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.program.dir().join(name);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.program.dir().join(name)).unwrap()
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = self.isolate.as_ref().map_or("", |isolate| &isolate.version);
        write!(f, "{} {version} on {}", self.sandbox, self.engine)
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Runs a program on the host, outside any sandbox.
fn on_host(program: &Path) -> Output {
    Command::new(program).output().unwrap()
}
