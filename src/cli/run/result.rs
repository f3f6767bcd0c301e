//! Prints the result of a run.

use serde::Serialize;

use crate::cli::error::{ErrorJson, interrupted_by};
use crate::cli::output;
use crate::error::chain_text;
use crate::sandbox::{RunReport, SandboxError, Verdict};

/// The sandbox and the image of a run, as soon as they are known.
#[derive(Debug, Default)]
pub(super) struct RunSubject {
    pub(super) sandbox: Option<&'static str>,
    pub(super) image: Option<String>,
}

/// The output of `run --json`.
#[derive(Debug, Serialize)]
struct RunJson<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    sandbox: Option<&'static str>,
    image: Option<&'a str>,
    box_id: Option<u32>,
    /// Whether a signal to this program ended the run.
    interrupted: bool,
    /// What may help a program that failed.
    hint: Option<&'static str>,
    /// Bytes that the run has read from the daemon; null if they are not known.
    lazy_bytes: Option<u64>,
    /// Milliseconds that the run has waited for them.
    lazy_wait_ms: Option<u64>,
    /// Errors after the program ended, for example of --copy-out.
    errors: Vec<String>,
    /// The code of the error if the run failed, otherwise the code of the first of `errors`.
    code: Option<&'static str>,
}

impl RunSubject {
    /// Prints the result: as JSON, or for bubblewrap as a line on stderr. isolate prints this line itself.
    pub(super) fn print(
        &self,
        json: bool,
        silent: bool,
        report: &RunReport,
        hint: Option<&'static str>,
        errors: &[SandboxError],
    ) -> anyhow::Result<()> {
        if json {
            return output::json(&RunJson {
                verdict: &report.verdict,
                sandbox: self.sandbox,
                image: self.image.as_deref(),
                box_id: Some(report.box_id),
                interrupted: false,
                hint,
                lazy_bytes: report.reads.map(|reads| reads.bytes),
                lazy_wait_ms: report.reads.map(|reads| reads.wait_ms),
                errors: errors.iter().map(|error| chain_text(error)).collect(),
                code: errors.first().map(|error| ErrorJson::of(error).code),
            });
        }
        if self.sandbox == Some("bwrap") && !silent {
            let verdict = &report.verdict;
            match &verdict.message {
                Some(message) => eprintln!("{message}"),
                None => eprintln!(
                    "OK ({:.3} sec real, {:.3} sec wall)",
                    verdict.time_s.unwrap_or(0.0),
                    verdict.wall_time_s.unwrap_or(0.0)
                ),
            }
        }
        if let (Some(hint), false) = (hint, silent) {
            eprintln!("hint: {hint}");
        }
        Ok(())
    }

    /// Prints a failed run as JSON.
    pub(super) fn print_failure(&self, failure: &anyhow::Error, message: String) -> anyhow::Result<()> {
        output::json(&RunJson {
            verdict: &Verdict::internal(message),
            sandbox: self.sandbox,
            image: self.image.as_deref(),
            box_id: None,
            interrupted: interrupted_by(failure).is_some(),
            hint: None,
            lazy_bytes: None,
            lazy_wait_ms: None,
            errors: Vec::new(),
            code: Some(ErrorJson::new(failure).code),
        })
    }
}
