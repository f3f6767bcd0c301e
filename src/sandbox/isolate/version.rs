//! Which isolate it is, and what that one can do.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::IsolateError;

/// The oldest version that makes a root of any directory: 1.8 brought the last of the rule flags that this needs.
pub const OLDEST: IsolateVersion = IsolateVersion::new(1, 8, 0);

/// A release of isolate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IsolateVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl IsolateVersion {
    /// The version `major.minor.patch`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Asks the program at `path`, with an empty environment and nothing on its input.
    ///
    /// # Errors
    /// [`IsolateError::Start`], [`IsolateError::NoVersion`] and [`IsolateError::TooOld`].
    pub fn detect(path: &Path) -> Result<Self, IsolateError> {
        let output = Command::new(path)
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

    /// Reads what `--version` prints.
    #[must_use]
    pub fn parse(output: &[u8]) -> Option<Self> {
        let text = str::from_utf8(output).ok()?;
        let number = text.lines().next()?.strip_prefix("The process isolator ")?;
        let mut parts = number.trim_end().split('.');
        let mut next = |missing: Option<u32>| parts.next().map_or(missing, |part| part.parse().ok());
        let version = Self::new(next(None)?, next(None)?, next(Some(0))?);
        parts.next().is_none().then_some(version)
    }

    const fn at_least(self, major: u32, minor: u32) -> bool {
        self.major > major || (self.major == major && self.minor >= minor)
    }

    /// Whether `--cg-timing` and `--no-cg-timing` are known. From 2.0 on, times with `--cg` are always those of the group.
    #[must_use]
    pub const fn takes_cg_timing(self) -> bool {
        !self.at_least(2, 0)
    }

    /// Whether rules take the flag `norec`.
    #[must_use]
    pub const fn knows_norec(self) -> bool {
        self.at_least(1, 8)
    }

    /// Whether `--open-files` is known.
    #[must_use]
    pub const fn knows_open_files(self) -> bool {
        self.at_least(1, 9)
    }

    /// Whether `--core` is known.
    #[must_use]
    pub const fn knows_core(self) -> bool {
        self.at_least(1, 10)
    }

    /// Whether `--special-files` is known. Older versions keep what the program made.
    #[must_use]
    pub const fn knows_special_files(self) -> bool {
        self.at_least(1, 10)
    }

    /// Whether `--wait` is known, and a box is locked while it is in use.
    #[must_use]
    pub const fn locks_boxes(self) -> bool {
        self.at_least(2, 0)
    }

    /// Whether `--init` takes a box over that was not cleaned up. Older versions refuse it.
    #[must_use]
    pub const fn init_resets(self) -> bool {
        self.at_least(2, 0)
    }

    /// Whether `--as-uid` and `--as-gid` are known.
    #[must_use]
    pub const fn knows_as_uid(self) -> bool {
        self.at_least(2, 0)
    }

    /// Whether system calls are filtered. `--syscalls` came later.
    #[must_use]
    pub const fn filters_syscalls(self) -> bool {
        self.at_least(2, 4)
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
    fn version_is_what_the_first_line_says() {
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
    fn versions_are_ordered_by_number_and_not_by_text() {
        let (old, new) = (IsolateVersion::new(1, 8, 1), IsolateVersion::new(1, 10, 1));
        assert!(old < new && new.knows_open_files() && !old.knows_open_files());
        assert!(new.takes_cg_timing() && !IsolateVersion::new(2, 0, 0).takes_cg_timing());
        assert_eq!((old.to_string(), OLDEST.to_string()), ("1.8.1".to_owned(), "1.8".to_owned()));
    }

    #[test]
    fn what_is_not_isolate_is_told() {
        let missing = Path::new("/nonexistent/isolate");
        assert!(matches!(IsolateVersion::detect(missing), Err(IsolateError::Start { .. })));
        assert!(matches!(
            IsolateVersion::detect(Path::new("/bin/true")),
            Err(IsolateError::NoVersion { .. })
        ));
        assert!(matches!(
            IsolateVersion::detect(Path::new("/bin/false")),
            Err(IsolateError::NoVersion { .. })
        ));
    }
}
