//! Runs the smoke command of an image, in the sandbox of `run`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{Context, error};
use crate::environments::Offer;
use crate::error::ErrorCode;
use crate::image::ImageConfig;
use crate::sandbox::Sandbox;

/// The label of an image with its smoke command.
const LABEL: &str = "io.rcx-imagefs.smoke";
/// How long a smoke command may take, with the preparation of its root.
const SMOKE_MAX: Duration = Duration::from_secs(60);
/// How long a run may take to clean up after the time is over.
const CLEAN_UP_MAX: Duration = Duration::from_secs(10);
/// The pause between two looks at a run.
const PAUSE: Duration = Duration::from_millis(20);

/// The smoke command of an environment, in words; `None` if it has none. As in a Dockerfile, a JSON list is the words, and other text is for the
/// image's shell.
pub(super) fn command(offer: &Offer, image: &ImageConfig) -> Option<Vec<String>> {
    let label = || image.raw["config"]["Labels"][LABEL].as_str();
    let text = offer.smoke.as_deref().or_else(label).filter(|text| !text.trim().is_empty())?;
    let words = serde_json::from_str::<Vec<String>>(text).ok().filter(|words| !words.is_empty());
    Some(words.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]))
}

/// Runs a command in an image of the store, in a process of its own, which can be stopped when the time is over.
pub(super) fn run(context: &Context, image: &str, command: &[String]) -> anyhow::Result<()> {
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
    program.args(["--", image]).args(command.iter().map(OsString::from));
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
    Err(error::fail(ErrorCode::Smoke, format!("the smoke command `{}` failed: {reason}", command.join(" "))))
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
    use serde_json::json;

    use super::*;

    #[test]
    fn smoke_command_of_the_list_overrides_that_of_the_image() {
        let config = |label: &str| {
            let document = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []},
                "config": {"Labels": {LABEL: label}}});
            ImageConfig::parse(document.to_string().as_bytes()).unwrap()
        };
        let offer = |smoke: Option<&str>| -> Offer {
            let mut value = json!({"id": "a", "image": format!("reg.example/a@sha256:{:064x}", 1), "revision": 1, "platform": "linux/amd64"});
            if let Some(smoke) = smoke {
                value["smoke"] = json!(smoke);
            }
            serde_json::from_value(value).unwrap()
        };
        let words = |smoke, label| command(&offer(smoke), &config(label));
        assert_eq!(words(Some("a -V"), "b").unwrap(), ["/bin/sh", "-c", "a -V"]);
        assert_eq!(words(None, "[\"/b\", \"-V\"]").unwrap(), ["/b", "-V"]);
        assert_eq!(words(None, "[ -f /b ]").unwrap(), ["/bin/sh", "-c", "[ -f /b ]"]);
        assert_eq!(words(None, " "), None);
    }

    #[test]
    fn program_that_takes_too_long_is_stopped() {
        let (status, _) = run_for(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap();
        assert_eq!(status, None);
        let (status, printed) = run_for(Command::new("echo").arg("x"), SMOKE_MAX).unwrap();
        assert!(status.unwrap().success() && printed == "x\n");
    }
}
