//! Reports the failure of a command: an error chain and an optional hint on stderr, an object on stdout with `--json`,
//! and exit code 2, or 128+N if signal N ended the command.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::output::{self, plain};
use super::unknown;
use crate::commit::{CommitError, InstructionError};
use crate::daemon::{ControlError, DaemonError};
use crate::environments::{
    AttributionError, EnvironmentsError, OfferListError, SignatureError, WorkerFileError,
};
use crate::error::{ErrorCode, chain, chain_text};
use crate::fs::{FsError, LoadError};
use crate::fuse::SessionError;
use crate::image::{DigestError, ManifestError, PlatformError, ReferenceError};
use crate::import::ImportError;
use crate::index::{BuildError, IndexError, ReadError};
use crate::layer::{LayerError, NameError, TarError};
use crate::os::PathError;
use crate::pipeline::{NodePathError, PipelineError};
use crate::registry::{AuthError, RegistryError};
use crate::roots::RootsError;
use crate::sandbox::isolate::IsolateError;
use crate::sandbox::shim::ShimError;
use crate::sandbox::{CopyError, SandboxError};
use crate::store::StoreError;
use crate::tree::MergeError;
use crate::unpack::{StagingError, UnpackError};

/// Exit code of a command that failed.
pub(super) const EXIT_FAILURE: u8 = 2;
/// Exit code of a command that a signal ended, less the number of the signal.
const EXIT_SIGNAL: i32 = 128;

/// Prints the error chain as one line, and the hint if there is one.
///
/// With `json`, the error is also printed as an object on stdout, unless the command has printed its own document.
pub(super) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let explained = ErrorJson::new(error);
    print(&explained);
    if json {
        output::json_error(&explained);
    }
    let interrupted = interrupted_by(error).and_then(|signal| u8::try_from(EXIT_SIGNAL + signal).ok());
    ExitCode::from(interrupted.unwrap_or(EXIT_FAILURE))
}

/// Prints an error and its hint on stderr.
pub(super) fn print(error: &ErrorJson) {
    eprintln!("error: {}", plain(&error.message));
    if let Some(hint) = &error.hint {
        eprintln!("hint: {}", plain(hint));
    }
}

/// Returns the signal that ended the command, if one did.
pub(super) fn interrupted_by(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(SandboxError::Interrupted(signal)) => Some(*signal),
        _ => None,
    })
}

/// Reports arguments that clap refused. Help and version are requested output, not errors.
pub(super) fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let arguments = std::env::args_os().skip(1).take_while(|argument| argument != "--");
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let advice = unknown::advice(error, &arguments);
    match advice {
        // Instead of clap's tip, which is to pass the option as a value.
        Some(advice) => {
            eprintln!("error: {}\nhint: {advice}", plain(&usage_message(&error.render().to_string())));
        }
        None => drop(error.print()),
    }
    if arguments.iter().any(|argument| argument == "--json") {
        output::json_error(&ErrorJson {
            code: ErrorCode::Usage.as_str(),
            message: usage_message(&error.render().to_string()),
            hint: Some(advice.unwrap_or("`--help` shows how the command is used").to_owned()),
        });
    }
    ExitCode::from(EXIT_FAILURE)
}

/// The first paragraph of clap's message, as one line.
fn usage_message(rendered: &str) -> String {
    let first = rendered.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error as `--json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ErrorJson {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl ErrorJson {
    pub(super) fn new(error: &anyhow::Error) -> Self {
        Self::of(error.as_ref())
    }

    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        Self {
            code: code_of(error).as_str(),
            message: chain_text(error),
            hint: chain(error).filter_map(explain).find_map(|explanation| explanation.hint),
        }
    }
}

/// Returns the code of an error: that of the first error in its chain that has one.
pub(super) fn code_of(error: &(dyn StdError + 'static)) -> ErrorCode {
    let code = chain(error).find_map(explain).map(|explanation| explanation.code);
    code.or_else(|| code_of_io(error)).unwrap_or(ErrorCode::Internal)
}

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct CliError {
    code: ErrorCode,
    message: String,
    hint: Option<String>,
}

/// Returns an error with a code.
pub(super) fn fail(code: ErrorCode, message: impl Into<String>) -> anyhow::Error {
    CliError { code, message: message.into(), hint: None }.into()
}

/// Returns an error with a code and advice.
pub(super) fn fail_with_hint(
    code: ErrorCode,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> anyhow::Error {
    CliError { code, message: message.into(), hint: Some(hint.into()) }.into()
}

/// Returns an error with the message and code of another one, and other advice.
pub(super) fn with_hint(error: anyhow::Error, hint: impl Into<String>) -> anyhow::Error {
    fail_with_hint(code_of(error.as_ref()), chain_text(error.as_ref()), hint)
}

impl CliError {
    fn code(&self) -> ErrorCode {
        self.code
    }

    fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The error of reading or parsing the configuration file.
#[derive(Debug, thiserror::Error)]
#[error("configuration {}", .path.display())]
pub(super) struct ConfigurationError {
    pub(super) path: PathBuf,
    pub(super) source: anyhow::Error,
}

impl ConfigurationError {
    fn code(&self) -> ErrorCode {
        ErrorCode::Configuration
    }
}

/// The code and the hint of an error.
struct Explanation {
    code: ErrorCode,
    hint: Option<String>,
}

/// Returns the code and the hint of an error, if its type belongs to this crate.
///
/// A transparent variant hides the error that it wraps: the chain continues with the source of the wrapped error. So `code`
/// and `hint` of the outer type must delegate to the wrapped error.
fn explain(cause: &(dyn StdError + 'static)) -> Option<Explanation> {
    macro_rules! first_of {
        (hint: $($hinting:ty),+; no hint: $($plain:ty),+;) => {
            $(if let Some(error) = cause.downcast_ref::<$hinting>() {
                return Some(Explanation { code: error.code(), hint: error.hint().map(Into::into) });
            })+
            $(if let Some(error) = cause.downcast_ref::<$plain>() {
                return Some(Explanation { code: error.code(), hint: None });
            })+
        };
    }
    first_of! {
        hint: CliError, PipelineError, StoreError, Box<StoreError>, RegistryError, AuthError, ImportError, LoadError, SessionError,
            DaemonError, ControlError, SandboxError, RootsError, ShimError, EnvironmentsError, SignatureError, WorkerFileError,
            Box<RegistryError>, CommitError;
        no hint: InstructionError, ConfigurationError, PathError, LayerError, NameError, TarError, UnpackError, StagingError, FsError,
            IsolateError, CopyError, ReferenceError, DigestError, PlatformError, ManifestError, BuildError, IndexError,
            ReadError, MergeError, NodePathError, AttributionError, OfferListError;
    }
    None
}

/// Returns the code of an operating system error that no type of this crate wraps.
fn code_of_io(error: &(dyn StdError + 'static)) -> Option<ErrorCode> {
    let error = chain(error).find_map(|cause| cause.downcast_ref::<io::Error>())?;
    Some(ErrorCode::of_io(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn hint_and_code_are_found_anywhere_in_the_chain() {
        let missing = || StoreError::NoBlob { digest: Digest::of(b"x") };
        let boxed = DaemonError::Store { path: "/store".into(), source: Box::new(missing()) };
        let errors = [
            anyhow::Error::from(missing()).context("outer"),
            anyhow::Error::from(PipelineError::from(missing())).context("outer"),
            anyhow::Error::from(boxed),
            fail_with_hint(ErrorCode::NoBlob, "message", "pull or load the image again"),
        ];
        for error in errors {
            let explained = ErrorJson::new(&error);
            assert_eq!(explained.hint.as_deref(), Some("pull or load the image again"), "{error:?}");
            assert_eq!(explained.code, "no-blob", "{error:?}");
        }
        assert_eq!(ErrorJson::new(&anyhow::anyhow!("no hint")).hint, None);
    }

    #[test]
    fn errors_of_other_crates_have_codes_too() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(ErrorJson::new(&anyhow::Error::from(full).context("outer")).code, "disk-full");
        assert_eq!(ErrorJson::new(&anyhow::Error::from(io::Error::other("x"))).code, "io");
        assert_eq!(ErrorJson::new(&anyhow::anyhow!("x")).code, "internal");
        let source = anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied));
        let configuration = ConfigurationError { path: "/c".into(), source };
        assert_eq!(ErrorJson::new(&configuration.into()).code, "configuration");
    }

    #[test]
    fn usage_message_is_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <REF>...\n\nUsage: x\n";
        let message = "the following required arguments were not provided: <REF>...";
        assert_eq!(usage_message(rendered), message);
    }
}
