//! The verdict on a run under bubblewrap, from its exit status and the kernel's counters.

use std::fmt::Write as _;

use crate::sandbox::error::SandboxError;
use crate::sandbox::first_process::ProgramExit;
use crate::sandbox::{RunStatus, Verdict};

/// Returns the verdict on a run. `output` is bubblewrap's output to `--json-status-fd`.
///
/// # Errors
/// The program was not started, or bubblewrap was killed.
pub(super) fn from_exit(exit: &ProgramExit, output: &[u8]) -> Result<Verdict, SandboxError> {
    let process = exit.process;
    let failed = |message: String| Err(SandboxError::Sandbox { sandbox: "bwrap", message });
    let (exit_code, exit_signal) = match (program_exit_code(output), process.signal()) {
        // Like a shell, bubblewrap reports the program's death by signal N as exit code 128 + N.
        (Some(code @ 129..=192), _) => (None, Some(code - 128)),
        (Some(code), _) => (Some(code), None),
        (None, Some(signal)) => return failed(format!("killed by signal {signal}")),
        (None, None) => return failed("could not set up the sandbox; its own message is above".to_owned()),
    };
    let (status, message) = match (exit_code, exit_signal) {
        (Some(0), _) => (RunStatus::Ok, None),
        (Some(code), _) => (RunStatus::RuntimeError, Some(format!("Exited with error status {code}"))),
        (None, signal) => (RunStatus::Signal, Some(format!("Caught fatal signal {}", signal.unwrap_or(0)))),
    };
    #[expect(clippy::cast_precision_loss, reason = "times of runs are far below 2^52 microseconds")]
    let seconds = |microseconds: u64| (microseconds / 1000) as f64 / 1000.0;
    Ok(Verdict {
        status,
        exit_code,
        exit_signal,
        time_s: Some(seconds(process.cpu_us)),
        wall_time_s: Some(seconds(exit.wall_us)),
        max_rss_kib: Some(process.max_rss_kib),
        cg_mem_kib: None,
        cg_oom_killed: false,
        csw_voluntary: Some(process.switches_voluntary),
        csw_forced: Some(process.switches_forced),
        killed: false,
        message,
    })
}

/// Returns the program's exit code: bubblewrap writes JSON documents, one of them with `exit-code`. `None` if the program
/// was not started.
fn program_exit_code(output: &[u8]) -> Option<i32> {
    let documents = serde_json::Deserializer::from_slice(output).into_iter::<serde_json::Value>();
    let codes = documents.map_while(Result::ok).filter_map(|document| document.get("exit-code")?.as_i64());
    codes.last().and_then(|code| i32::try_from(code).ok())
}

/// Returns a verdict as the text of isolate's meta file.
pub(super) fn meta_text(verdict: &Verdict) -> String {
    let mut meta = String::new();
    let mut add = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(meta, "{key}:{value}");
    };
    add("time", &format_args!("{:.3}", verdict.time_s.unwrap_or(0.0)));
    add("time-wall", &format_args!("{:.3}", verdict.wall_time_s.unwrap_or(0.0)));
    add("max-rss", &verdict.max_rss_kib.unwrap_or(0));
    add("csw-voluntary", &verdict.csw_voluntary.unwrap_or(0));
    add("csw-forced", &verdict.csw_forced.unwrap_or(0));
    if let Some(code) = verdict.exit_code {
        add("exitcode", &code);
    }
    if let Some(signal) = verdict.exit_signal {
        add("exitsig", &signal);
    }
    match verdict.status {
        RunStatus::RuntimeError => add("status", &"RE"),
        RunStatus::Signal => add("status", &"SG"),
        RunStatus::Ok | RunStatus::TimedOut | RunStatus::Internal => {}
    }
    if let Some(message) = &verdict.message {
        add("message", message);
    }
    meta
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_the_last_one_that_bubblewrap_writes() {
        assert_eq!(program_exit_code(b"{ \"child-pid\": 12 }\n{ \"exit-code\": 3 }\n"), Some(3));
        for text in ["{ \"child-pid\": 12 }\n", "", "x"] {
            assert_eq!(program_exit_code(text.as_bytes()), None, "{text}");
        }
    }
}
