//! How a command ends when it could not do its job: one error chain, a hint on a line of its own, exit code 2.

use std::process::ExitCode;

use super::output::plain;
use crate::daemon::{ControlError, DaemonError};
use crate::fuse::SessionError;
use crate::import::ImportError;
use crate::pipeline::PipelineError;
use crate::registry::RegistryError;
use crate::roots::RootsError;
use crate::sandbox::SandboxError;
use crate::store::StoreError;

/// Exit code of a command that could not do its job.
pub(super) const EXIT_FAILURE: u8 = 2;

/// Prints the chain as one sentence, and the hint that fits, if one does.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", plain(&format!("{error:#}")));
    if let Some(hint) = hint(error) {
        eprintln!("hint: {}", plain(&hint));
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

/// The first hint along the chain.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_of)
}

fn hint_of(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let of_store = |error: &StoreError| error.hint().map(str::to_owned);
    if let Some(advice) = cause.downcast_ref::<Advice>() {
        Some(advice.hint.clone())
    } else if let Some(error) = cause.downcast_ref::<StoreError>() {
        of_store(error)
    } else if let Some(error) = cause.downcast_ref::<Box<StoreError>>() {
        of_store(error)
    } else if let Some(error) = cause.downcast_ref::<RegistryError>() {
        error.hint()
    } else if let Some(error) = cause.downcast_ref::<ImportError>() {
        error.hint()
    } else if let Some(error) = cause.downcast_ref::<RootsError>() {
        error.hint().map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<SandboxError>() {
        error.hint().map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<SessionError>() {
        of_session(error).map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<DaemonError>() {
        // Transparent variants, as below.
        match error {
            DaemonError::Session(error) => of_session(error).map(str::to_owned),
            DaemonError::Control(ControlError::InUse(_)) => {
                Some("each daemon has its own `--run-dir`: name another one".to_owned())
            }
            _ => None,
        }
    } else {
        // A transparent variant is not followed by the error in it, but by that one's source.
        match cause.downcast_ref::<PipelineError>()? {
            PipelineError::Store(error) => of_store(error),
            PipelineError::Registry(error) => error.hint(),
            PipelineError::Import(error) => error.hint(),
            error => error.hint().map(str::to_owned),
        }
    }
}

fn of_session(error: &SessionError) -> Option<&'static str> {
    match error {
        SessionError::Missing(_) => Some("make it, as an empty directory"),
        SessionError::NotEmpty(_) => Some("`--allow-nonempty` mounts over what is there"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn hint_is_found_wherever_it_stands_in_the_chain() {
        let missing = || StoreError::NoBlob { digest: Digest::of(b"x") };
        let boxed = DaemonError::Store { path: "/store".into(), source: Box::new(missing()) };
        let errors = [
            anyhow::Error::from(missing()).context("outer"),
            anyhow::Error::from(PipelineError::from(missing())).context("outer"),
            anyhow::Error::from(boxed),
            advise("message", "pull or load the image again"),
        ];
        for error in errors {
            assert_eq!(hint(&error).as_deref(), Some("pull or load the image again"), "{error:?}");
        }
        assert_eq!(hint(&anyhow::anyhow!("nothing helps")), None);
    }
}
