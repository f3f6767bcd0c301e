//! A run whose image could not be read is not blamed on its program.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::child::wait_until;
use support::images::Images;

use super::Runner;

/// The module that the damaged layer contains.
const MODULE: &str = "opt/modules/broken.py";
const CONTENT: &str = "answer = 'this text will be damaged'\n";
const IMPORT: &str = "import sys; sys.path.insert(0, '/opt/modules')
try:
    import broken
except OSError as error:
    print(error); sys.exit(1)
print(broken.answer)";
/// A program that reads nothing of its image between its first and its last line of output.
const WAIT: &str = "echo started; read line; echo ended";

/// Loads an image with Python and a module. Returns its name and the digest of the module's layer.
fn load(runner: &Runner) -> (String, String) {
    let layout = Images::make(&["python"]).layout().copy_of("python");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(CONTENT.len() as u64);
    tar.append_data(&mut header, MODULE, CONTENT.as_bytes()).unwrap();
    let layer = tar.into_inner().unwrap();
    let digest = layout.add_layer(&layer);
    let dir = layout.layout().dir().to_str().unwrap().to_owned();
    (runner.program.ok(&["load", "--name", "lab/broken", &dir]), digest)
}

/// Flips a bit in the content of the module.
fn damage(runner: &Runner, blob: &str) {
    let path = runner.program.blob(blob);
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(CONTENT.len()).position(|window| window == CONTENT.as_bytes()).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[at + 12] ^ 1], at as u64 + 12).unwrap();
}

/// A run of a shell that waits until the test lets it end.
struct WaitingRun {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl WaitingRun {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        Self { child, out }
    }

    /// Lets the run end. Returns its exit code and its standard error.
    fn end(mut self) -> (Option<i32>, String) {
        match self.child.stdin.take().unwrap().write_all(b"\n") {
            // A shell whose image is gone may have ended.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        let mut line = String::new();
        // A shell whose image is gone may not get this far.
        let _ = self.out.read_line(&mut line);
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn waiting(runner: &Runner, image: &str) -> WaitingRun {
    WaitingRun::start(runner.command(image, &["--meta", "waiting"], &["/bin/sh", "-c", WAIT]))
}

/// Checks that the run failed as a whole, in each of its outputs, and that all of `words` are named.
#[track_caller]
fn assert_internal(runner: &Runner, image: &str, script: &str, words: &[&str]) {
    let mut options = vec!["--json", "--meta", "meta"];
    if runner.sandbox == "isolate" {
        options.push("--processes=5");
    }
    let ran = runner.run(image, &options, &["python3", "-c", script]);
    let verdict: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!((ran.code, verdict["status"].as_str()), (Some(2), Some("XX")), "{runner:?}: {ran:?}");
    assert_eq!(
        (verdict["code"].as_str(), verdict["exit_code"].as_i64()),
        (Some("damaged"), None),
        "{verdict}"
    );
    let meta = runner.read("meta");
    assert!(meta.starts_with("status:XX\nmessage:image "), "{meta}");
    let message = verdict["message"].as_str().unwrap();
    for word in words {
        assert!(
            message.contains(word) && meta.contains(word) && ran.err.contains(word),
            "{word}: {ran:?} {meta}"
        );
    }
}

/// Damages an image and runs programs in it and beside it.
fn only_runs_that_could_not_read_fail(runner: &Runner) {
    let (image, blob) = load(runner);
    let small = runner.pull("small");
    damage(runner, &blob);
    let healthy = waiting(runner, &small);
    assert_internal(runner, &image, IMPORT, &[&image, &blob, MODULE, "checksum"]);
    // A program that ignores the error has read no more than one that fails.
    let ignored = IMPORT.replace("sys.exit(1)", "sys.exit(0)");
    assert_internal(runner, &image, &ignored, &[&blob]);
    let in_child = "import subprocess; subprocess.run(['cat', '/opt/modules/broken.py'])";
    assert_internal(runner, &image, in_child, &[&blob]);
    assert_eq!(healthy.end().0, Some(0));
    // The rest of the image can be read.
    assert_eq!(runner.ok(&image, &[], &["python3", "-c", "print(6 * 7)"]), "42\n");
    // Failed reads of other processes are not charged to a run.
    let other = waiting(runner, &image);
    let host = Command::new("cat").arg(runner.mount.path(&image).join(MODULE)).output().unwrap();
    assert!(!host.status.success(), "{host:?}");
    assert_internal(runner, &image, IMPORT, &[&blob]);
    assert_eq!(other.end().0, Some(0));
    runner.assert_clean();
}

/// Kills the daemon during a run.
fn run_whose_daemon_dies_fails(mut runner: Runner) {
    let small = runner.pull("small");
    let run = waiting(&runner, &small);
    runner.mount.server().signal("KILL");
    runner.mount.server().wait();
    let (code, err) = run.end();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("no daemon answers"), "{err}");
    let meta = runner.read("waiting");
    assert!(meta.starts_with("status:XX\n") && meta.contains(&small), "{meta}");
}

/// Replaces the daemon during a run.
fn run_whose_daemon_is_replaced_fails(runner: &mut Runner) {
    let small = runner.pull("small");
    let run = waiting(runner, &small);
    runner.mount.server().signal("KILL");
    runner.mount.server().wait();
    let dir = runner.mount.dir().to_owned();
    support::images::run("umount", &["--lazy", dir.to_str().unwrap()]);
    let old = std::mem::replace(&mut runner.mount, runner.program.mount());
    let (code, err) = run.end();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("was replaced during the run"), "{err}");
    std::mem::forget(old);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn run_under_isolate_fails_only_if_its_own_reads_failed() {
    let (mut runner, isolates) = Runner::with_isolate(408);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        only_runs_that_could_not_read_fail(&runner);
    }
    run_whose_daemon_is_replaced_fails(&mut runner);
    run_whose_daemon_dies_fails(runner);
}

#[test]
fn run_under_bubblewrap_fails_only_if_its_own_reads_failed() {
    let mut runner = Runner::new(12, "bwrap");
    only_runs_that_could_not_read_fail(&runner);
    run_whose_daemon_is_replaced_fails(&mut runner);
    run_whose_daemon_dies_fails(runner);
}

#[test]
fn failed_read_of_a_process_with_an_unknown_number_counts_for_every_run_of_the_image() {
    let runner = Runner::new(12, "bwrap");
    let (image, blob) = load(&runner);
    let small = runner.pull("small");
    damage(&runner, &blob);
    // In another PID namespace than the daemon, runs cannot recognise their processes by number.
    let elsewhere = |image: &str| {
        let inner = runner.command(image, &[], &["/bin/sh", "-c", WAIT]);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        command.arg(inner.get_program()).args(inner.get_args()).current_dir(runner.program.dir());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        WaitingRun::start(command)
    };
    let (same, other) = (elsewhere(&image), elsewhere(&small));
    let host = Command::new("cat").arg(runner.mount.path(&image).join(MODULE)).output().unwrap();
    assert!(!host.status.success(), "{host:?}");
    let (code, err) = same.end();
    assert!(code == Some(2) && err.contains(&blob), "{code:?} {err}");
    assert_eq!(other.end().0, Some(0));
    wait_until("the runs are gone", || runner.processes().is_empty());
    runner.mount.stop();
}
