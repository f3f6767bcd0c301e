//! Failures of commands that take several references: each one is reported, and the others go on.

use serde::Serialize;

use super::error::{self, ErrorJson};

/// The failures of a command so far.
pub(super) struct Failures {
    /// Number of references of the command.
    total: usize,
    failed: Vec<anyhow::Error>,
}

/// A reference that failed, in the output of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct FailedItemJson {
    reference: String,
    error: String,
    code: &'static str,
    hint: Option<String>,
}

impl Failures {
    /// Starts a command on `total` references.
    pub(super) fn new(total: usize) -> Self {
        Self { total, failed: Vec::new() }
    }

    /// Adds a failure. Reports it at once if the command has other references: they may take long.
    pub(super) fn add(&mut self, reference: &str, error: anyhow::Error) -> FailedItemJson {
        let explained = ErrorJson::new(&error);
        if self.total > 1 {
            error::print(&explained);
        }
        self.failed.push(error);
        let ErrorJson { code, message, hint } = explained;
        FailedItemJson { reference: reference.to_owned(), error: message, code, hint }
    }

    /// Whether the command has only one reference.
    pub(super) fn is_of_one(&self) -> bool {
        self.total == 1
    }

    /// Whether the only reference failed. `--json` then prints the error, and otherwise a list with an item for each reference.
    pub(super) fn is_single(&self) -> bool {
        self.total == 1 && !self.failed.is_empty()
    }

    /// Ends the command. The error of a single reference is the error of the command; otherwise that is a summary such as
    /// `2 of 5 images could not be pulled`, with the code of the first failure.
    pub(super) fn finish(mut self, done: &str) -> anyhow::Result<()> {
        let count = self.failed.len();
        let Some(first) = self.failed.drain(..).next() else { return Ok(()) };
        if self.total == 1 {
            return Err(first);
        }
        let message = format!("{count} of {} images could not be {done}", self.total);
        Err(error::fail(error::code_of(first.as_ref()), message))
    }
}
