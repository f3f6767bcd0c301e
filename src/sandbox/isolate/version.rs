//! The version of isolate, and the features that it supports.

use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::IsolateError;

/// The oldest supported version: 1.8 is the first with all flags of directory rules that a root needs.
pub const OLDEST: IsolateVersion = IsolateVersion::new(1, 8, 0);

/// A release of isolate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IsolateVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl IsolateVersion {
    /// Returns the version `major.minor.patch`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Returns the version that the program at `path` prints. It runs with an empty environment and without input, and as
    /// `identity`, a user and a group, if that is given.
    ///
    /// # Errors
    /// [`IsolateError::Start`], [`IsolateError::NoVersion`] and [`IsolateError::TooOld`].
    pub fn detect(path: &Path, identity: Option<(u32, u32)>) -> Result<Self, IsolateError> {
        let mut command = Command::new(path);
        if let Some((uid, gid)) = identity {
            command.uid(uid).gid(gid);
        }
        let output = command
            .arg("--version")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map_err(|source| IsolateError::Start { path: path.to_owned(), source })?;
        let version = Self::parse(&output.stdout)
            .filter(|_| output.status.success())
            .ok_or_else(|| IsolateError::NoVersion { path: path.to_owned() })?;
        if version < OLDEST {
            return Err(IsolateError::TooOld { path: path.to_owned(), version });
        }
        Ok(version)
    }

    /// Parses the output of `--version`.
    #[must_use]
    pub fn parse(output: &[u8]) -> Option<Self> {
        let text = str::from_utf8(output).ok()?;
        let number = text.lines().next()?.strip_prefix("The process isolator ")?;
        let mut parts = number.trim_end().split('.');
        let mut next = |missing: Option<u32>| parts.next().map_or(missing, |part| part.parse().ok());
        let version = Self::new(next(None)?, next(None)?, next(Some(0))?);
        parts.next().is_none().then_some(version)
    }

    /// Returns whether directory rules support the flag `norec`.
    #[must_use]
    pub fn has_norec(self) -> bool {
        self >= Self::new(1, 8, 0)
    }
}

impl fmt::Display for IsolateVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        match patch {
            0 => write!(f, "{major}.{minor}"),
            patch => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed_from_the_first_line() {
        let built = "The process isolator 1.8.1\n(c) 2012--2019 The authors\nBuilt on 2026-01-01\n";
        assert_eq!(IsolateVersion::parse(built.as_bytes()), Some(IsolateVersion::new(1, 8, 1)));
        assert_eq!(IsolateVersion::parse(b"The process isolator 2.6"), Some(IsolateVersion::new(2, 6, 0)));
        for text in ["", "isolate 2.6", "The process isolator 2", "The process isolator 2.x", "\u{ff}"] {
            assert_eq!(IsolateVersion::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(IsolateVersion::parse(b"The process isolator 1.2.3.4"), None);
        assert_eq!(IsolateVersion::parse(b"The process isolator \xff"), None);
    }

    #[test]
    fn versions_compare_by_number_and_not_as_text() {
        let old = IsolateVersion::new(1, 8, 1);
        assert!(old < IsolateVersion::new(1, 10, 1));
        assert!(old.has_norec() && !IsolateVersion::new(1, 7, 9).has_norec());
        assert_eq!((old.to_string(), OLDEST.to_string()), ("1.8.1".to_owned(), "1.8".to_owned()));
    }

    #[test]
    fn program_that_is_not_isolate_is_an_error() {
        let missing = Path::new("/nonexistent/isolate");
        assert!(matches!(IsolateVersion::detect(missing, None), Err(IsolateError::Start { .. })));
        assert!(matches!(
            IsolateVersion::detect(Path::new("/bin/true"), None),
            Err(IsolateError::NoVersion { .. })
        ));
        assert!(matches!(
            IsolateVersion::detect(Path::new("/bin/false"), None),
            Err(IsolateError::NoVersion { .. })
        ));
    }
}
