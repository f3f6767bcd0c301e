//! The verdict on a run under isolate, from its meta file and its exit code.

use super::IsolateMeta;
use crate::sandbox::error::SandboxError;
use crate::sandbox::first_process::ProgramExit;
use crate::sandbox::{RunStatus, Verdict};

/// Returns the verdict on a run, from isolate's exit and its meta file.
///
/// # Errors
/// isolate itself failed: it ended with an exit code other than 0 and 1, or a signal killed it.
pub(super) fn from_meta(exit: &ProgramExit, meta: &[u8]) -> Result<Verdict, SandboxError> {
    let failed = |message: String| Err(SandboxError::Sandbox { sandbox: "isolate", message });
    let meta = IsolateMeta::parse(meta);
    let code = match (exit.process.code(), exit.process.signal()) {
        (Some(code @ (0 | 1)), _) => code,
        (Some(code), _) => {
            let message = meta.value("message").map(str::to_owned);
            return failed(message.unwrap_or_else(|| format!("ended with exit code {code} and no message")));
        }
        (None, signal) => return failed(format!("killed by signal {}", signal.unwrap_or(0))),
    };
    let status = match meta.value("status") {
        None if code == 0 => RunStatus::Ok,
        Some("RE") => RunStatus::RuntimeError,
        Some("SG") => RunStatus::Signal,
        Some("TO") => RunStatus::TimedOut,
        other => {
            return failed(format!("unexpected status `{}` in its meta file", other.unwrap_or_default()));
        }
    };
    let unsigned = |key: &str| meta.value(key).and_then(|text| text.parse::<u64>().ok());
    let signed = |key: &str| meta.value(key).and_then(|text| text.parse::<i32>().ok());
    let seconds = |key: &str| meta.value(key).and_then(|text| text.parse::<f64>().ok());
    Ok(Verdict {
        status,
        exit_code: signed("exitcode"),
        exit_signal: signed("exitsig"),
        time_s: seconds("time"),
        wall_time_s: seconds("time-wall"),
        max_rss_kib: unsigned("max-rss"),
        cg_mem_kib: unsigned("cg-mem"),
        cg_oom_killed: meta.value("cg-oom-killed").is_some(),
        csw_voluntary: unsigned("csw-voluntary"),
        csw_forced: unsigned("csw-forced"),
        killed: meta.value("killed").is_some(),
        message: meta.value("message").map(str::to_owned),
    })
}
