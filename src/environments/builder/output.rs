//! Runs a command for a limited time, and keeps what it prints, up to a limit.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::environments::fault::BuildFault;
use crate::os::{AtPath as _, PathError};

/// Pause between two looks at a command.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a command may take to end after a signal.
const END_MAX: Duration = Duration::from_secs(10);

/// The output of a build, in a file of a limited length.
#[derive(Debug)]
pub struct BuildOutput {
    file: File,
    path: PathBuf,
    length: u64,
    limit: u64,
}

/// How a command ended.
#[derive(Debug)]
pub enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// It exceeded a limit.
    Exceeded(BuildFault),
    /// This process has to end.
    Stopped,
}

/// When a command is ended, and how.
pub struct Supervision<'a> {
    /// The end of its time.
    pub deadline: Instant,
    /// Whether this process has to end.
    pub stopped: &'a dyn Fn() -> bool,
    /// Whether the command, which has this process ID, exceeds another limit.
    pub exceeds: &'a dyn Fn(u32) -> Option<BuildFault>,
    /// The first signal that it gets.
    pub signal: Signal,
    /// Where its standard output goes, if not into the output of the build.
    pub stdout: Option<&'a File>,
}

impl std::fmt::Debug for Supervision<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervision").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl BuildOutput {
    /// Creates the file.
    ///
    /// # Errors
    ///
    /// It cannot be created.
    pub fn create(path: &Path, limit: u64) -> Result<Self, PathError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).at("create", path)?;
        Ok(Self { file, path: path.to_owned(), length: 0, limit })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds a line of the builder itself.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn note(&mut self, line: &str) -> Result<(), PathError> {
        let start = if self.length == 0 { "" } else { "\n" };
        let line = format!("{start}==> {line}\n");
        (&self.file).write_all(line.as_bytes()).at("write", &self.path)?;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Returns when the file is on disk.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn sync(&self) -> Result<(), PathError> {
        self.file.sync_all().at("sync", &self.path)
    }

    /// The last line that is not empty, without control characters.
    #[must_use]
    pub fn last_line(&self) -> String {
        let text = self.tail();
        let last =
            text.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("==> "));
        last.unwrap_or("it printed nothing").chars().filter(|letter| !letter.is_control()).take(500).collect()
    }

    /// Whether the end of the output contains a text, in any case of letters.
    #[must_use]
    pub fn ends_near(&self, text: &str) -> bool {
        self.tail().to_lowercase().contains(text)
    }

    fn tail(&self) -> String {
        use std::os::unix::fs::FileExt as _;
        const TAIL: u64 = 16 << 10;
        let mut bytes = vec![0; usize::try_from(self.length.min(TAIL)).unwrap_or(0)];
        match self.file.read_exact_at(&mut bytes, self.length.saturating_sub(TAIL)) {
            Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Runs a command whose output goes to this file.
    ///
    /// # Errors
    ///
    /// The command cannot be started, or its output cannot be read or written.
    pub fn run(&mut self, command: &mut Command, supervision: &Supervision<'_>) -> Result<Ending, PathError> {
        let program = PathBuf::from(command.get_program());
        let (reader, writer) = io::pipe().at("make a pipe for", &program)?;
        match supervision.stdout {
            Some(file) => command.stdout(file.try_clone().at("duplicate an output of", &program)?),
            None => command.stdout(writer.try_clone().at("duplicate a pipe of", &program)?),
        };
        command.stderr(writer);
        let spawned = command.spawn();
        // This process must not keep the pipe open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = spawned.at("start", &program)?;
        let number = child.id();
        let is_full = AtomicBool::new(false);
        thread::scope(|scope| {
            let copy = scope.spawn(|| self.copy(reader, &is_full));
            let exceeds = || {
                let over = |is_over: bool, fault| is_over.then_some(Ending::Exceeded(fault));
                (supervision.stopped)()
                    .then_some(Ending::Stopped)
                    .or_else(|| over(is_full.load(Ordering::Relaxed), BuildFault::LogLimit))
                    .or_else(|| over(Instant::now() >= supervision.deadline, BuildFault::TimeLimit))
                    .or_else(|| (supervision.exceeds)(number).map(Ending::Exceeded))
            };
            let ended = loop {
                if let Some(ending) = exceeds() {
                    break Some(ending);
                }
                match child.try_wait() {
                    Ok(None) => thread::sleep(PAUSE),
                    _ => break None,
                }
            };
            if ended.is_some() {
                let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
                let sent = pid.map(|pid| rustix::process::kill_process(pid, supervision.signal));
                tracing::debug!("ending {}: {sent:?}", program.display());
                let deadline = Instant::now() + END_MAX;
                while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                    thread::sleep(PAUSE);
                }
                let _ = child.kill();
            }
            let status = child.wait().at("wait for", &program)?;
            copy.join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
                .at("copy the output of", &program)?;
            let full = is_full.load(Ordering::Relaxed).then_some(Ending::Exceeded(BuildFault::LogLimit));
            Ok(ended.or(full).unwrap_or(Ending::Exited(status)))
        })
    }

    /// Copies until the limit, then only reads, so that the writers do not wait.
    fn copy(&mut self, mut reader: impl io::Read, is_full: &AtomicBool) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = reader.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            let room = usize::try_from(self.limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
            let kept = &buffer[..length.min(room)];
            (&self.file).write_all(kept)?;
            self.length += kept.len() as u64;
            if kept.len() < length {
                is_full.store(true, Ordering::Relaxed);
            }
        }
    }
}
