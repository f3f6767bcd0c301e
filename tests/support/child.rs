//! Background processes that end with their owner, and waiting for a condition.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start, or to end after a signal.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns `command` with `file` open as descriptor 8 for reading and as descriptor 9 for appending.
pub fn with_open_file(command: &Command, file: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "file=$1; shift; exec \"$@\" 8<\"$file\" 9>>\"$file\"", "sh"]).arg(file);
    shell.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell.stdin(Stdio::null());
    shell
}

/// A server in a child process. Dropping it sends SIGTERM, waits, and kills the process if it does not end. The kernel sends
/// SIGTERM when the test's own process dies without unwinding.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdout: Receiver<String>,
    log: PathBuf,
}

impl Server {
    /// Starts `command`, and appends its stderr to the file `log`.
    pub fn start(command: &Command, log: &Path) -> Self {
        let stderr = File::options().create(true).append(true).open(log).expect("open the log");
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => bound.env(key, value),
                None => bound.env_remove(key),
            };
        }
        bound.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = bound.spawn().expect("setpriv (util-linux) is needed for this test");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, stdout) = channel();
        // The thread ends when the server closes its stdout.
        thread::spawn(move || lines.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, stdout, log: log.to_owned() }
    }

    /// Returns the next line of the server's stdout.
    ///
    /// # Errors
    /// The server's exit status and log, if it ended first.
    pub fn line(&mut self) -> Result<String, String> {
        match self.stdout.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}; log:\n{}", self.log()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().expect("wait for the server");
                Err(format!("{status}\n{}", self.log()))
            }
        }
    }

    /// Returns what the server has written to stderr so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, named as in `TERM`.
    pub fn signal(&self, name: &str) {
        // The result is ignored: the process may have just ended by itself.
        let _ = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the server") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "process {} did not end within {PATIENCE:?}; log:\n{}",
                self.pid(),
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal("TERM");
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Waits until `condition` is true, polling every 5 ms. Panics with `what` after 30 seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
