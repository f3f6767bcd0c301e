//! The calls `isolate --init` and `isolate --cleanup`.
//!
//! Each call receives the locked file of its box as standard input, which isolate does not read. If this process is killed
//! during the call, the box stays locked until isolate ends. Otherwise a sweep could clean a box that isolate is still making.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::arguments::{cleanup_arguments, init_arguments};
use super::{GivenOption, IsolateError, IsolateOption};
use crate::sandbox::error::SandboxError;

/// Phrases in the messages with which any version of `isolate --init` reports that another program uses the box.
const BOX_TAKEN_MESSAGES: [&str; 4] =
    ["already exists", "currently in use", "belongs to a different user", "incompatible control group"];
/// Pause between two attempts to clean up a box.
const CLEANUP_PAUSE: Duration = Duration::from_millis(10);

/// Makes a box and returns its directory.
pub(super) fn init(
    program: &Path,
    id: u32,
    options: &[GivenOption],
    lock: &File,
) -> Result<PathBuf, SandboxError> {
    let output = call(program, &init_arguments(id, options), lock)?;
    if output.status.success() {
        let line = output.stdout.strip_suffix(b"\n").unwrap_or(&output.stdout);
        return Ok(Path::new(OsStr::from_bytes(line)).join("box"));
    }
    let message = failure_message(&output);
    if BOX_TAKEN_MESSAGES.iter().any(|words| message.contains(words)) {
        Err(SandboxError::BoxTaken { id, message })
    } else {
        Err(SandboxError::Sandbox { sandbox: "isolate --init", message })
    }
}

/// Removes a box.
pub(super) fn clean_up(program: &Path, id: u32, cg: bool, lock: &File) -> Result<(), SandboxError> {
    let output = call(program, &cleanup_arguments(id, cg), lock)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(SandboxError::Sandbox { sandbox: "isolate --cleanup", message: failure_message(&output) })
    }
}

/// Removes the box of a killed run, which may have been killed before isolate had made it. Tries again until `deadline`.
pub(in crate::sandbox) fn remove_abandoned(
    program: &Path,
    id: u32,
    cg: bool,
    lock: &File,
    deadline: Instant,
) -> Result<(), SandboxError> {
    // isolate 1 leaves an empty directory behind if it cleans a box that was never made, so make the box first. If the box
    // exists, isolate refuses to make it.
    let options: &[GivenOption] =
        if cg { &[GivenOption { option: IsolateOption::Cg, value: None }] } else { &[] };
    if let Err(error) = init(program, id, options, lock) {
        tracing::debug!("box {id}: {error}");
    }
    // The kernel lets a control group be removed only shortly after its last process has ended.
    while let Err(error) = clean_up(program, id, cg, lock) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        std::thread::sleep(CLEANUP_PAUSE);
    }
    Ok(())
}

fn call(program: &Path, arguments: &[OsString], lock: &File) -> Result<Output, SandboxError> {
    let failed = |source| IsolateError::Start { path: program.to_owned(), source };
    let lock = lock.try_clone().map_err(failed)?;
    Ok(Command::new(program).args(arguments).stdin(lock).output().map_err(failed)?)
}

/// Returns the first line that a failed call printed to stderr.
fn failure_message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => line.trim().to_owned(),
        None => format!("ended with {} and no message", output.status),
    }
}
