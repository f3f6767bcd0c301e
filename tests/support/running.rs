//! Processes that must not outlive their test.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that is killed when dropped, so that a failing test leaves neither a root nor a box in use.
#[derive(Debug)]
pub struct RunningProcess(pub Child);

impl RunningProcess {
    /// Starts a process whose output is piped.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the process starts"))
    }

    /// Starts a process with `dir` as its current directory.
    pub fn in_directory(dir: &Path) -> Self {
        Self(Command::new("sleep").arg("1000").current_dir(dir).spawn().expect("`sleep` starts"))
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills the process and waits for its end.
    pub fn kill(&mut self) {
        self.0.kill().expect("kill a child");
        self.0.wait().expect("wait for a child");
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
