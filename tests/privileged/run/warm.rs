//! `warm`, and what the daemon decodes ahead.

use std::fs;
use std::process::Output;

use serde_json::Value;
use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::Images;
use support::program::{Program, TestMount, failure};

const IMPORT: [&str; 3] = ["python3", "-c", "import json"];

/// A store with an image of Python, whose daemon is replaced now and then.
struct WarmHost {
    // Dropped first: the directories of the program cannot be removed below a mount.
    mount: Option<TestMount>,
    program: Program,
    image: String,
}

impl WarmHost {
    fn new() -> Self {
        let program = Program::new();
        let images = Images::make(&["python"]);
        let registry = DockerRegistry::start();
        registry.push_from(&images.layout(), "python", "lab/python:1");
        let image = program.pull(&registry.reference("lab/python:1"));
        let mut host = Self { mount: None, program, image };
        host.restart("");
        host
    }

    /// Replaces the daemon, so that nothing is decoded and no superblock is used again. `erofs` is a table of the configuration.
    fn restart(&mut self, erofs: &str) {
        self.stop();
        let configuration = format!("[run]\nsandbox = 'bwrap'\n[erofs]\n{erofs}\n");
        fs::write(self.program.dir().join("config.toml"), configuration).unwrap();
        self.mount = Some(self.program.mount());
    }

    fn stop(&mut self) {
        self.mount.take().into_iter().for_each(TestMount::stop);
    }

    fn warm(&self, words: &[&str]) -> Output {
        let mut command = self.program.command(&["warm", "--json", &self.image]);
        if !words.is_empty() {
            command.arg("--").args(words);
        }
        command.output().unwrap()
    }

    #[track_caller]
    fn warmed(&self, words: &[&str]) -> Value {
        let output = self.warm(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Bytes that a run of the command reads from lazy layers.
    #[track_caller]
    fn lazy_bytes(&self) -> u64 {
        let run = ["run", "--json", "--engine", "erofs", &self.image, "--", IMPORT[0], IMPORT[1], IMPORT[2]];
        let verdict: Value = serde_json::from_str(&self.program.ok(&run)).unwrap();
        verdict["lazy_bytes"].as_u64().unwrap_or_else(|| panic!("{verdict}"))
    }

    /// Warms the image until a run reads nothing from lazy layers. Other tests may drop the page cache in between.
    #[track_caller]
    fn assert_warms(&self, words: &[&str]) {
        let is_warm = || {
            self.warmed(words);
            self.lazy_bytes() == 0
        };
        assert!((0..5).any(|_| is_warm()), "a run still reads from lazy layers after `warm`");
    }

    /// Number of spans that the daemon has decoded.
    fn decodes(&self) -> u64 {
        self.program.json(&["status"])["filesystem"]["cache"]["decodes"].as_u64().unwrap()
    }

    fn trace_files(&self) -> Vec<String> {
        super::names(&self.program.store().join("rcx-imagefs/traces"))
    }

    fn remove_traces(&self) {
        fs::remove_dir_all(self.program.store().join("rcx-imagefs/traces")).unwrap();
    }
}

#[test]
fn run_after_warm_reads_nothing_from_lazy_layers() {
    let mut host = WarmHost::new();
    let warmed = host.warmed(&IMPORT);
    assert!(warmed["lazy_bytes"].as_u64().unwrap() > 1 << 20, "{warmed}");
    assert!(warmed["runs"].as_u64().unwrap() >= 2, "the last run shows that nothing is cold: {warmed}");
    assert_eq!((warmed["image"].as_str().unwrap(), &warmed["files"]), (&*host.image, &Value::from(0)));
    host.assert_warms(&IMPORT);

    // Without a record of any run, all files are read.
    host.stop();
    host.remove_traces();
    host.restart("");
    let everything = host.warmed(&[]);
    host.assert_warms(&[]);

    // With the record of a run, what it has read.
    host.stop();
    host.remove_traces();
    host.restart("");
    assert!(host.lazy_bytes() > 1 << 20);
    host.restart("");
    assert_eq!(host.trace_files().len(), 1);
    let recorded = host.warmed(&[]);
    let bytes = |warmed: &Value| warmed["bytes"].as_u64().unwrap();
    assert!(bytes(&recorded) < bytes(&everything) / 2, "{recorded} {everything}");
    host.assert_warms(&[]);
    host.stop();
}

#[test]
fn daemon_decodes_ahead_what_earlier_runs_have_read() {
    let mut host = WarmHost::new();
    assert!(host.lazy_bytes() > 1 << 20);
    host.restart("prefetch = false");
    let image = host.image.clone();
    let create = ["root", "create", &image, "--id", "it", "--engine", "erofs", "--upper", "none"];
    host.program.ok(&create);
    // The image is open, and nothing of it was read.
    assert_eq!(host.decodes(), 0);
    host.program.ok(&["root", "remove", "it"]);
    host.restart("");
    host.program.ok(&create);
    wait_until("the spans of the first run are decoded", || host.decodes() > 10);
    host.program.ok(&["root", "remove", "it"]);

    // A trace that cannot be used is recorded anew.
    host.stop();
    let trace = host.program.store().join("rcx-imagefs/traces").join(&host.trace_files()[0]);
    let whole = fs::read(&trace).unwrap();
    for damaged in [&b"{"[..], &whole[..whole.len() / 2], br#"{"format":9,"layers":[],"reads":[]}"#] {
        fs::write(&trace, damaged).unwrap();
        host.restart("");
        assert!(host.lazy_bytes() > 1 << 20);
        host.stop();
        let recorded: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
        assert!(recorded["reads"].as_array().unwrap().len() > 10, "{recorded}");
    }
    host.program.ok(&["rm", &image]);
    host.program.ok(&["gc"]);
    assert_eq!(host.trace_files(), Vec::<String>::new());
}

#[test]
fn warm_says_what_went_wrong() {
    let mut host = WarmHost::new();
    let output = host.warm(&["python3", "-c", "raise SystemExit(3)"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the command failed"));
    let failed = |words: &[&str]| {
        let mut command = host.program.command(&["warm"]);
        failure(&command.args(words).output().unwrap(), words)
    };
    assert!(failed(&[&host.image, "--", "/no/such/program"]).contains("/no/such/program"));
    assert!(failed(&["lab/nothing"]).contains("lab/nothing"));
    host.stop();
    let mut command = host.program.command(&["warm", &host.image]);
    assert!(failure(&command.output().unwrap(), &["warm"]).contains("no daemon serves"));
}
