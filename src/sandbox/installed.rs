//! Finds an installed sandbox.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::DEFAULT_PATH;
use super::backend::Backend;
use super::bwrap::BwrapSandbox;
use super::error::SandboxError;
use super::isolate::IsolateSandbox;

/// The choice of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxKind {
    /// isolate if it is installed, otherwise bubblewrap.
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
            _ => Err("expected auto, isolate or bwrap".to_owned()),
        }
    }
}

/// An installed sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// isolate.
    Isolate(IsolateSandbox),
    /// bubblewrap.
    Bwrap(BwrapSandbox),
}

impl Sandbox {
    /// Finds the sandbox to use. `isolate` is the program that the configuration names. isolate's version is cached in
    /// `run_dir`.
    ///
    /// # Errors
    /// The sandbox is not installed, or isolate is too old.
    pub fn find(kind: SandboxKind, isolate: Option<&Path>, run_dir: &Path) -> Result<Self, SandboxError> {
        let isolate = match kind {
            SandboxKind::Bwrap => None,
            SandboxKind::Auto | SandboxKind::Isolate => find_isolate(isolate),
        };
        match (isolate, kind) {
            (Some(program), _) => Ok(Self::Isolate(IsolateSandbox::new(program, run_dir)?)),
            (None, SandboxKind::Isolate) => Err(SandboxError::Missing("isolate")),
            (None, SandboxKind::Auto | SandboxKind::Bwrap) => match search_path("bwrap", |_| true) {
                Some(program) => Ok(Self::Bwrap(BwrapSandbox::new(program))),
                None if kind == SandboxKind::Auto => Err(SandboxError::NoSandbox),
                None => Err(SandboxError::Missing("bwrap")),
            },
        }
    }

    /// Returns the name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Isolate(_) => "isolate",
            Self::Bwrap(_) => "bwrap",
        }
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        match self {
            Self::Isolate(sandbox) => sandbox,
            Self::Bwrap(sandbox) => sandbox,
        }
    }
}

/// Returns the isolate to use: the configured one, otherwise the first `isolate` on the `PATH` that is not this program,
/// which may be installed under that name.
#[must_use]
pub fn find_isolate(configured: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = configured {
        return Some(path.to_owned());
    }
    let own = fs::metadata("/proc/self/exe").ok();
    search_path("isolate", |file| {
        own.as_ref().is_none_or(|own| (own.dev(), own.ino()) != (file.dev(), file.ino()))
    })
}

/// Returns the first executable file `name` on the `PATH` that `accept` accepts.
fn search_path(name: &str, accept: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from(DEFAULT_PATH));
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0 && accept(&file))
    };
    env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(is_program)
}
