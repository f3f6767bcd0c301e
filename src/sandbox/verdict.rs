//! The verdict on a run: how the program ended and what it used.

use serde::Serialize;

use crate::fuse::LazyReads;

/// How a run ended. The values in JSON are those of isolate's meta file, and `OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RunStatus {
    /// The program exited with 0.
    #[serde(rename = "OK")]
    Ok,
    /// The program exited with another code.
    #[serde(rename = "RE")]
    RuntimeError,
    /// A signal killed the program.
    #[serde(rename = "SG")]
    Signal,
    /// The program exceeded a time limit.
    #[serde(rename = "TO")]
    TimedOut,
    /// The sandbox failed.
    #[serde(rename = "XX")]
    Internal,
}

/// How a program ended and what it used. Fields that the sandbox does not report are `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// How the run ended.
    pub status: RunStatus,
    /// The program's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended the program.
    pub exit_signal: Option<i32>,
    /// Processor time, in seconds.
    pub time_s: Option<f64>,
    /// Time from start to end, in seconds.
    pub wall_time_s: Option<f64>,
    /// The largest resident set of one process.
    pub max_rss_kib: Option<u64>,
    /// Memory of the whole control group.
    pub cg_mem_kib: Option<u64>,
    /// Whether the kernel killed the program because its control group ran out of memory.
    pub cg_oom_killed: bool,
    /// Context switches because the program waited for something.
    pub csw_voluntary: Option<u64>,
    /// Context switches in favour of other processes.
    pub csw_forced: Option<u64>,
    /// Whether the sandbox killed the program.
    pub killed: bool,
    /// A message for the user.
    pub message: Option<String>,
}

impl Verdict {
    /// Returns the verdict on a run that failed with `message`.
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

/// The verdict on a run, in both forms.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// The verdict.
    pub verdict: Verdict,
    /// The verdict as the text of isolate's meta file.
    pub meta: Vec<u8>,
    /// The box that the program ran in.
    pub box_id: u32,
    /// What the run has read from the daemon; `None` if it is not known.
    pub reads: Option<LazyReads>,
}
