//! The sandboxes that are installed, and the calls of isolate that are no run.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::str::FromStr;

use super::boxes::Asked;
use super::error::SandboxError;
use super::isolate::{IsolateError, IsolateVersion};

/// Which sandbox to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxKind {
    /// isolate where it is installed, bubblewrap otherwise.
    #[default]
    Auto,
    /// isolate: isolation and limits.
    Isolate,
    /// bubblewrap: isolation without limits.
    Bwrap,
}

impl FromStr for SandboxKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "isolate" => Ok(Self::Isolate),
            "bwrap" => Ok(Self::Bwrap),
            _ => Err("one of auto, isolate, bwrap is expected".to_owned()),
        }
    }
}

/// A sandbox that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// isolate.
    Isolate {
        /// Its program.
        program: PathBuf,
        /// Its version.
        version: IsolateVersion,
    },
    /// bubblewrap.
    Bwrap {
        /// Its program.
        program: PathBuf,
    },
}

impl Sandbox {
    /// Finds a sandbox; `isolate` is the program where the configuration names one, `run_dir` where its version is remembered.
    ///
    /// # Errors
    /// That what was asked for is not there, or is too old.
    pub fn find(kind: SandboxKind, isolate: Option<&Path>, run_dir: &Path) -> Result<Self, SandboxError> {
        let found = match kind {
            SandboxKind::Bwrap => None,
            _ => find_isolate(isolate),
        };
        if let Some(program) = found {
            let version = match fs::metadata(&program) {
                Ok(metadata) => IsolateVersion::known(&program, &metadata, run_dir)?,
                Err(_) => IsolateVersion::detect(&program)?,
            };
            return Ok(Self::Isolate { program, version });
        }
        if kind == SandboxKind::Isolate {
            return Err(SandboxError::Missing("isolate"));
        }
        match (find("bwrap", |_| true), kind) {
            (Some(program), _) => Ok(Self::Bwrap { program }),
            (None, SandboxKind::Auto) => Err(SandboxError::NoSandbox),
            (None, _) => Err(SandboxError::Missing("bwrap")),
        }
    }

    /// Its name, as on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Isolate { .. } => "isolate",
            Self::Bwrap { .. } => "bwrap",
        }
    }
}

/// The isolate to use: the one that the configuration names, or the first on the PATH that is not this program itself,
/// which may stand there under that name.
#[must_use]
pub fn find_isolate(configured: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = configured {
        return Some(path.to_owned());
    }
    let own = fs::metadata("/proc/self/exe").ok();
    find("isolate", |found| {
        own.as_ref().is_none_or(|own| (own.dev(), own.ino()) != (found.dev(), found.ino()))
    })
}

fn find(name: &str, accept: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from(super::DEFAULT_PATH));
    let candidates =
        env::split_paths(&path).filter(|place| place.is_absolute()).map(|place| place.join(name));
    let fits = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0 && accept(&found))
    };
    candidates.into_iter().find(fits)
}

/// Calls isolate, with the lock of its box in hand: should this process be killed meanwhile, the box stays locked until
/// isolate is done with it. Otherwise a sweep could clean a box that is made only then.
fn call(program: &Path, arguments: &[OsString], lock: &File) -> Result<Output, SandboxError> {
    let failed = |source| IsolateError::Start { path: program.to_owned(), source };
    // isolate reads nothing from its standard input then.
    let held = lock.try_clone().map_err(failed)?;
    Ok(Command::new(program).args(arguments).stdin(held).output().map_err(failed)?)
}

/// What a call that failed has said, on one line.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => line.trim().to_owned(),
        None => format!("it ended with {} and said nothing", output.status),
    }
}

/// Has isolate make a box, and returns the box's directory.
pub(super) fn init(
    program: &Path,
    arguments: &[OsString],
    lock: &File,
) -> Result<Asked<PathBuf>, SandboxError> {
    let output = call(program, arguments, lock)?;
    if output.status.success() {
        use std::os::unix::ffi::OsStrExt as _;
        let line = output.stdout.strip_suffix(b"\n").unwrap_or(&output.stdout);
        return Ok(Asked::Ready(Path::new(std::ffi::OsStr::from_bytes(line)).join("box")));
    }
    let message = complaint(&output);
    // What isolate says of boxes that others use, over all versions.
    let taken =
        ["already exists", "currently in use", "belongs to a different user", "incompatible control group"];
    match taken.iter().any(|words| message.contains(words)) {
        true => Ok(Asked::Taken(message)),
        false => Err(SandboxError::Sandbox { sandbox: "isolate --init", message }),
    }
}

/// Has isolate take a box away.
pub(super) fn clean_up(program: &Path, id: u32, cg: bool, lock: &File) -> Result<(), SandboxError> {
    let output = call(program, &super::spec::cleanup_arguments(id, cg), lock)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(SandboxError::Sandbox { sandbox: "isolate --cleanup", message: complaint(&output) }),
    }
}
