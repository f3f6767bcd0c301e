//! The verdict on a run: what isolate says in its meta file, and the same in the same words of a run under bubblewrap.

use std::io::{self, Write as _};

use serde::Serialize;

use super::error::SandboxError;
use super::isolate::IsolateMeta;
use super::{bwrap, first_process};

/// How a run ended: what isolate says in its meta file, or the same of a run under bubblewrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RunStatus {
    /// It exited with 0.
    #[serde(rename = "OK")]
    Ok,
    /// It exited with something else.
    #[serde(rename = "RE")]
    RuntimeError,
    /// A signal killed it.
    #[serde(rename = "SG")]
    Signal,
    /// It took too long.
    #[serde(rename = "TO")]
    TimedOut,
    /// The sandbox failed.
    #[serde(rename = "XX")]
    Internal,
}

/// What is known of a run's end. What the sandbox does not tell is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// In a word.
    pub status: RunStatus,
    /// Of the program.
    pub exit_code: Option<i32>,
    /// That ended the program.
    pub exit_signal: Option<i32>,
    /// Processor time, in seconds.
    pub time_s: Option<f64>,
    /// In seconds.
    pub wall_time_s: Option<f64>,
    /// The largest resident set of one process.
    pub max_rss_kib: Option<u64>,
    /// Memory of the whole control group.
    pub cg_mem_kib: Option<u64>,
    /// Whether the kernel killed it for want of memory in its group.
    pub cg_oom_killed: bool,
    /// Times that it waited for something.
    pub csw_voluntary: Option<u64>,
    /// Times that others were let go first.
    pub csw_forced: Option<u64>,
    /// Whether the sandbox killed it.
    pub killed: bool,
    /// For people.
    pub message: Option<String>,
}

impl Verdict {
    /// That there was no run.
    #[must_use]
    pub fn internal(message: String) -> Self {
        Self {
            status: RunStatus::Internal,
            exit_code: None,
            exit_signal: None,
            time_s: None,
            wall_time_s: None,
            max_rss_kib: None,
            cg_mem_kib: None,
            cg_oom_killed: false,
            csw_voluntary: None,
            csw_forced: None,
            killed: false,
            message: Some(message),
        }
    }
}

/// A verdict and the lines of isolate's meta file that say the same.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// The verdict.
    pub verdict: Verdict,
    /// The meta file.
    pub meta: Vec<u8>,
    /// The box that the program was in.
    pub box_id: u32,
}

/// The verdict of a run under isolate, from its meta file and how it ended.
pub(super) fn by_isolate(
    ended: &first_process::ProgramExit,
    told: Vec<u8>,
) -> Result<RunReport, SandboxError> {
    let failed = |message: String| Err(SandboxError::Sandbox { sandbox: "isolate", message });
    let meta = IsolateMeta::parse(&told);
    let code = match (ended.process.code(), ended.process.signal()) {
        (Some(code @ (0 | 1)), _) => code,
        (Some(code), _) => {
            let message = meta.value("message").map(str::to_owned);
            return failed(
                message.unwrap_or_else(|| format!("it ended with exit code {code} and no message")),
            );
        }
        // It had not begun to listen to signals yet.
        (None, Some(signal)) if ended.told_to_end => return Err(SandboxError::Interrupted(signal)),
        (None, signal) => return failed(format!("signal {} killed it", signal.unwrap_or(0))),
    };
    let number = |key: &str| meta.value(key).and_then(|text| text.parse::<u64>().ok());
    let seconds = |key: &str| meta.value(key).and_then(|text| text.parse::<f64>().ok());
    let small = |key: &str| meta.value(key).and_then(|text| text.parse::<i32>().ok());
    let status = match meta.value("status") {
        None if code == 0 => RunStatus::Ok,
        Some("RE") => RunStatus::RuntimeError,
        Some("SG") => RunStatus::Signal,
        Some("TO") => RunStatus::TimedOut,
        other => return failed(format!("its meta file says `{}`", other.unwrap_or_default())),
    };
    let verdict = Verdict {
        status,
        exit_code: small("exitcode"),
        exit_signal: small("exitsig"),
        time_s: seconds("time"),
        wall_time_s: seconds("time-wall"),
        max_rss_kib: number("max-rss"),
        cg_mem_kib: number("cg-mem"),
        cg_oom_killed: meta.value("cg-oom-killed").is_some(),
        csw_voluntary: number("csw-voluntary"),
        csw_forced: number("csw-forced"),
        killed: meta.value("killed").is_some(),
        message: meta.value("message").map(str::to_owned),
    };
    Ok(RunReport { verdict, meta: told, box_id: 0 })
}

/// The verdict of a run under bubblewrap, from what the kernel counted.
pub(super) fn by_bubblewrap(
    ended: &first_process::ProgramExit,
    told: &[u8],
) -> Result<RunReport, SandboxError> {
    let process = ended.process;
    let (exit_code, exit_signal) = match (bwrap::exit_code(told), process.signal()) {
        // As a shell does, it tells of a signal by a code beyond 128.
        (Some(code @ 129..=192), _) => (None, Some(code - 128)),
        (Some(code), _) => (Some(code), None),
        (None, Some(signal)) if ended.told_to_end => (None, Some(signal)),
        (None, Some(signal)) => {
            let message = format!("signal {signal} killed it");
            return Err(SandboxError::Sandbox { sandbox: "bwrap", message });
        }
        (None, None) => {
            let message = "the sandbox could not be set up; what it said is above".to_owned();
            return Err(SandboxError::Sandbox { sandbox: "bwrap", message });
        }
    };
    let (status, message) = match (exit_code, exit_signal) {
        (Some(0), _) => (RunStatus::Ok, None),
        (Some(code), _) => (RunStatus::RuntimeError, Some(format!("Exited with error status {code}"))),
        (None, _) if ended.told_to_end => (RunStatus::Signal, Some("Interrupted".to_owned())),
        (None, signal) => (RunStatus::Signal, Some(format!("Caught fatal signal {}", signal.unwrap_or(0)))),
    };
    #[expect(clippy::cast_precision_loss, reason = "times of runs are far below 2^52 microseconds")]
    let seconds = |microseconds: u64| (microseconds / 1000) as f64 / 1000.0;
    let verdict = Verdict {
        status,
        exit_code,
        exit_signal,
        time_s: Some(seconds(process.cpu_us)),
        wall_time_s: Some(seconds(ended.wall_us)),
        max_rss_kib: Some(process.max_rss_kib),
        cg_mem_kib: None,
        cg_oom_killed: false,
        csw_voluntary: Some(process.switches_voluntary),
        csw_forced: Some(process.switches_forced),
        killed: ended.told_to_end,
        message,
    };
    let mut meta = Vec::new();
    write_meta(&verdict, &mut meta).map_err(|error| SandboxError::step("verdict", error))?;
    Ok(RunReport { verdict, meta, box_id: 0 })
}

/// Writes a verdict in the words of isolate's meta file.
fn write_meta(verdict: &Verdict, meta: &mut Vec<u8>) -> io::Result<()> {
    if verdict.killed {
        writeln!(meta, "killed:1")?;
    }
    writeln!(meta, "time:{:.3}", verdict.time_s.unwrap_or(0.0))?;
    writeln!(meta, "time-wall:{:.3}", verdict.wall_time_s.unwrap_or(0.0))?;
    writeln!(meta, "max-rss:{}", verdict.max_rss_kib.unwrap_or(0))?;
    writeln!(meta, "csw-voluntary:{}", verdict.csw_voluntary.unwrap_or(0))?;
    writeln!(meta, "csw-forced:{}", verdict.csw_forced.unwrap_or(0))?;
    if let Some(code) = verdict.exit_code {
        writeln!(meta, "exitcode:{code}")?;
    }
    if let Some(signal) = verdict.exit_signal {
        writeln!(meta, "exitsig:{signal}")?;
    }
    match verdict.status {
        RunStatus::RuntimeError => writeln!(meta, "status:RE")?,
        RunStatus::Signal => writeln!(meta, "status:SG")?,
        RunStatus::Ok | RunStatus::TimedOut | RunStatus::Internal => {}
    }
    if let Some(message) = &verdict.message {
        writeln!(meta, "message:{message}")?;
    }
    Ok(())
}
