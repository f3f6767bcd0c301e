//! Tries an image: runs its smoke command as `run` does.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;

use super::{BuildSession, Built};
use crate::environments::{
    BuildDirectory, BuildFailure, BuildFault, BuildOutput, Ending, EnvironmentsError, Revision, SmokeCommand,
    Supervision,
};
use crate::error::ErrorCode;
use crate::image::Reference;
use crate::os::AtPath as _;
use crate::pipeline::read_image;
use crate::sandbox::Sandbox;

/// The exit code of `run` if the program failed.
const EXIT_PROGRAM: i32 = 1;
/// Longest run of a smoke command.
const TIME_MAX: Duration = Duration::from_secs(60);

impl BuildSession<'_> {
    /// Runs the smoke command, if there is one.
    ///
    /// In a process of its own: a run needs one without threads.
    pub(super) fn try_image(
        &self,
        revision: &Revision,
        image: &Reference,
        directory: &BuildDirectory,
        log: &mut BuildOutput,
    ) -> anyhow::Result<Built<()>> {
        let Some(digest) = image.digest else { return Ok(Ok(())) };
        let stored = read_image(&self.store, &digest)?;
        let given = revision.submission.smoke.as_deref();
        let Some(SmokeCommand { text: smoke, words }) = SmokeCommand::of(given, stored.config()) else {
            return Ok(Ok(()));
        };
        let config = &self.context.config;
        let sandbox =
            Sandbox::find(config.run.sandbox()?, config.isolate.path.as_deref(), &self.context.run_dir)?;
        log.note(&format!("trying the image under {}: {smoke}", sandbox.name()))?;
        let own = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(own);
        command.arg("--store").arg(&self.context.store).arg("--run-dir").arg(&self.context.run_dir);
        if let Some(path) = &self.context.config_path {
            command.arg("--config").arg(path);
        }
        // With the only engine that needs neither a daemon nor a certain kernel.
        command.args(["run", "--json", "--engine=overlay2", "--sandbox", sandbox.name(), "--entrypoint", ""]);
        if sandbox.name() == "isolate" {
            // isolate allows one process unless it is told otherwise; bubblewrap has no such limit.
            command.arg("--processes");
        }
        command.arg(Reference { tag: None, ..image.clone() }.to_string()).arg("--").args(&words);
        command.stdin(Stdio::null()).process_group(0);
        let report_path = directory.path().join("smoke.json");
        let report = File::create_new(&report_path).at("create", &report_path)?;
        let supervision = Supervision {
            deadline: Instant::now() + TIME_MAX,
            stopped: &|| self.stop.is_set(),
            exceeds: &|_| None,
            signal: Signal::TERM,
            stdout: Some(&report),
        };
        let fail = |text: String| {
            let message = format!("the smoke command `{smoke}` {text}");
            Ok(Err(BuildFailure { fault: BuildFault::Smoke, message }))
        };
        match log.run(&mut command, &supervision)? {
            Ending::Stopped => Err(self.stop.error()),
            Ending::Exited(status) if status.success() => Ok(Ok(())),
            Ending::Exited(status) if status.code() == Some(EXIT_PROGRAM) => {
                fail(format!("failed: {}", log.last_line()))
            }
            Ending::Exited(_) => {
                let text = fs::read(&report_path).at("read", &report_path)?;
                let report: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
                match report["code"].as_str() == Some(ErrorCode::Program.as_str()) {
                    true => fail(format!("cannot be started: {}", log.last_line())),
                    false => Err(EnvironmentsError::SmokeSetup(log.last_line()).into()),
                }
            }
            Ending::Exceeded(BuildFault::TimeLimit) => {
                fail(format!("took longer than {} seconds", TIME_MAX.as_secs()))
            }
            Ending::Exceeded(_) => fail("printed too much".to_owned()),
        }
    }
}
