//! A host for the commands of one page.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::images::Images;
use support::program::binary;
use support::repository;
use tempfile::TempDir;

use crate::page::Command;
use crate::pattern;

/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// How long the output of background processes may take, once a command has returned.
const OUTPUT_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether there is more output.
const INTERVAL: Duration = Duration::from_millis(20);

/// The first box of isolate that these tests use; others have lower ones.
const FIRST_BOX: usize = 900;
/// The number of boxes for each host.
const BOXES: usize = 10;

/// What a page finds on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The program is installed, and nothing has been pulled.
    Empty,
    /// What the README has at the end of its first session: `python:3.12` is pulled, and the store is mounted at `/images`.
    Mounted,
}

/// A shell on a host of its own: see `host.sh`. All its processes and mounts end with it.
#[derive(Debug)]
pub(crate) struct Host {
    /// `unshare`, which kills the first process of the process namespace when it is killed; that ends all others.
    shell: Child,
    /// Paths of files with commands, for the shell to run.
    commands: ChildStdin,
    /// How many commands have been sent.
    sent: usize,
    /// How much of the output belongs to earlier commands.
    read: usize,
    scratch: TempDir,
}

impl Host {
    /// Starts a host. `number` differs between hosts that run at the same time: isolate and its boxes are shared.
    pub(crate) fn new(start: Start, number: usize) -> Self {
        let images = Images::make(&["python"]);
        let scratch = tempfile::Builder::new().prefix("rcx-console").tempdir().unwrap();
        let output = File::options().create(true).append(true).open(scratch.path().join("output")).unwrap();
        let program = binary("rcx-imagefs");
        let mut command = Process::new("unshare");
        command.args([
            "--mount",
            "--propagation=private",
            "--net",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--",
        ]);
        command.arg("bash").arg(repository().join("tests/console/host.sh")).arg(scratch.path());
        command.arg(program.parent().unwrap()).arg(images.layout().dir());
        let first_box = FIRST_BOX + BOXES * number;
        command.arg(format!("{first_box}-{}", first_box + BOXES - 1));
        command.env_clear().env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut shell = command.spawn().expect("unshare (util-linux) is needed for this test");
        let commands = shell.stdin.take().unwrap();
        let mut host = Self { shell, commands, sent: 0, read: 0, scratch };
        host.wait(COMMAND_MAX, |host| host.scratch.path().join("ready").exists());
        if start == Start::Mounted {
            for (text, expected) in [
                ("rcx-imagefs pull docker.io/library/python:3.12", "python@sha256:…"),
                ("mkdir -p /images", ""),
                ("rcx-imagefs mount /images &", "mounted /var/lib/rcx-imagefs at /images"),
            ] {
                let expected = expected.lines().map(str::to_owned).collect();
                let command = Command { line: 0, text: text.to_owned(), expected };
                host.run(&command).unwrap_or_else(|output| panic!("{text}: {output}"));
            }
        }
        host
    }

    /// Runs a command. An error is what it printed, where that does not match what is expected.
    pub(crate) fn run(&mut self, command: &Command) -> Result<(), String> {
        let file = self.scratch.path().join(format!("command-{}", self.sent));
        fs::write(&file, format!("{}\n", command.text)).unwrap();
        self.sent += 1;
        writeln!(self.commands, "{}", file.display()).expect("the shell reads commands");
        let status = PathBuf::from(format!("{}.status", file.display()));
        self.wait(COMMAND_MAX, |_| status.exists());
        let deadline = Instant::now() + OUTPUT_MAX;
        loop {
            let output = self.output();
            if pattern::matches(&command.expected, &output[self.read..]) {
                self.read = output.len();
                break;
            }
            if Instant::now() > deadline {
                return Err(output[self.read..].to_owned());
            }
            thread::sleep(INTERVAL);
        }
        let code = fs::read_to_string(status).unwrap();
        if command.expected.is_empty() && code.trim() != "0" {
            return Err(format!("nothing, and exit code {code}"));
        }
        Ok(())
    }

    /// All that commands and background processes have printed so far.
    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.scratch.path().join("output")).unwrap()).into_owned()
    }

    fn wait(&mut self, longest: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + longest;
        while !done(self) {
            let ended = self.shell.try_wait().unwrap();
            assert!(ended.is_none(), "the shell ended with {ended:?}:\n{}", self.output());
            assert!(Instant::now() < deadline, "no end after {longest:?}:\n{}", self.output());
            thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
