//! How a command ends when it could not do its job: one error chain, a hint on a line of its own, exit code 2.

use std::process::ExitCode;

use crate::import::ImportError;
use crate::pipeline::PipelineError;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Exit code of a command that could not do its job.
pub(super) const EXIT_FAILURE: u8 = 2;

/// Prints the chain as one sentence, and the hint that fits, if one does.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(EXIT_FAILURE)
}

/// Something to say in place of an error of a library, with advice.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Advice {
    message: String,
    hint: String,
}

/// An error with a hint.
pub(super) fn advise(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Advice { message: message.into(), hint: hint.into() }.into()
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(advice) = cause.downcast_ref::<Advice>() {
            return Some(advice.hint.clone());
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return error.hint().map(str::to_owned);
        }
        if let Some(error) = cause.downcast_ref::<RegistryError>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<ImportError>() {
            return error.hint();
        }
        cause.downcast_ref::<PipelineError>().and_then(|error| error.hint().map(str::to_owned))
    })
}
