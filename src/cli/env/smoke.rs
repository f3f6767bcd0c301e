//! Runs the smoke command of an image, in the sandbox of `run`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{Context, error};
use crate::environments::SmokeCommand;
use crate::error::ErrorCode;
use crate::sandbox::Sandbox;

/// How long a smoke command may take, with the preparation of its root.
const SMOKE_MAX: Duration = Duration::from_secs(60);
/// How long a run may take to clean up after the time is over.
const CLEAN_UP_MAX: Duration = Duration::from_secs(10);
/// The pause between two looks at a run.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs a command in an image of the store, in a process of its own, which can be stopped when the time is over.
pub(super) fn run(context: &Context, image: &str, command: &SmokeCommand) -> anyhow::Result<()> {
    let kind = context.config.run.sandbox()?;
    let sandbox = Sandbox::find(kind, context.config.isolate.path.as_deref(), &context.run_dir)?.name();
    // Also if the file of this program has been replaced.
    let mut program = Command::new("/proc/self/exe");
    program.arg("--store").arg(&context.store).arg("--run-dir").arg(&context.run_dir);
    if let Some(config) = &context.config_path {
        program.arg("--config").arg(config);
    }
    program.args(["run", "--entrypoint="]).arg(format!("--sandbox={sandbox}"));
    if sandbox == "isolate" {
        // It allows one process unless it is told otherwise; bubblewrap has no such limit.
        program.arg("--processes");
    }
    program.args(["--", image]).args(&command.words);
    let (status, printed) = run_for(&mut program, SMOKE_MAX)?;
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let reason = match status {
        Some(_) => {
            printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").trim()
        }
        None => "it took longer than a minute",
    };
    Err(error::fail(ErrorCode::Smoke, format!("the smoke command `{}` failed: {reason}", command.text)))
}

/// Runs a program for at most `limit`. Returns its status, or `None` if it was stopped, and what it printed.
fn run_for(program: &mut Command, limit: Duration) -> io::Result<(Option<ExitStatus>, String)> {
    let mut printed = File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?);
    program.stdin(Stdio::null()).stdout(printed.try_clone()?).stderr(printed.try_clone()?);
    let mut child = program.spawn()?;
    let mut status = wait_until(&mut child, Instant::now() + limit)?;
    if status.is_none() {
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        if wait_until(&mut child, Instant::now() + CLEAN_UP_MAX)?.is_none() {
            child.kill()?;
            child.wait()?;
        }
        status = None;
    }
    let mut bytes = Vec::new();
    printed.rewind()?;
    printed.read_to_end(&mut bytes)?;
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}

fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_takes_too_long_is_stopped() {
        let (status, _) = run_for(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap();
        assert_eq!(status, None);
        let (status, printed) = run_for(Command::new("echo").arg("x"), SMOKE_MAX).unwrap();
        assert!(status.unwrap().success() && printed == "x\n");
    }
}
