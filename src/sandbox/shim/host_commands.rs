//! Commands that run on the host, whatever image the configuration gives their box.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use super::ShimError;

/// Patterns of commands that run on the host: absolute paths in which `*` stands for any part of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCommands(Vec<String>);

impl HostCommands {
    /// Checks the patterns.
    ///
    /// # Errors
    /// [`ShimError::HostCommand`] if a pattern is not an absolute path without `.` and `..`.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, ShimError> {
        let check = |pattern: &str| {
            let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            let path = Path::new(pattern);
            // `components` drops empty names and `.`, which a command would have to repeat literally.
            let is_exact = path.components().collect::<std::path::PathBuf>().as_os_str() == path.as_os_str();
            match path.is_absolute() && is_exact && path.components().all(is_plain) {
                true => Ok(pattern.to_owned()),
                false => Err(ShimError::HostCommand(pattern.to_owned())),
            }
        };
        Ok(Self(patterns.into_iter().map(check).collect::<Result<_, _>>()?))
    }

    /// Whether a pattern matches the first word of a command. The word is compared as text.
    #[must_use]
    pub fn contains(&self, word: &OsStr) -> bool {
        self.0.iter().any(|pattern| matches_pattern(pattern.as_bytes(), word.as_bytes()))
    }
}

/// Whether `pattern` matches all of `text`. A `*` stands for any bytes except `/`.
fn matches_pattern(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            let longest = text.iter().take_while(|byte| **byte != b'/').count();
            (0..=longest).any(|length| matches_pattern(rest, &text[length..]))
        }
        ([byte, pattern @ ..], [other, text @ ..]) => byte == other && matches_pattern(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_part_of_one_name() {
        let commands = HostCommands::new(["/usr/bin/recodex-*", "/opt/*/judge", "/bin/true"]).unwrap();
        for word in ["/usr/bin/recodex-judge", "/usr/bin/recodex-", "/opt/a b/judge", "/bin/true"] {
            assert!(commands.contains(OsStr::new(word)), "{word}");
        }
        for word in [
            "recodex-judge",
            "/usr/bin/recodex",
            "/usr/bin/recodex-x/y",
            "/usr/bin/recodex-/../../../box/a.out",
            "/usr/bin/./recodex-judge",
            "/opt/a/b/judge",
            "/opt/judge",
            "/bin/true/",
            "/bin/truex",
            "x/bin/true",
            "",
        ] {
            assert!(!commands.contains(OsStr::new(word)), "{word}");
        }
    }

    #[test]
    fn pattern_must_be_an_absolute_path() {
        for pattern in ["", "recodex-*", "*", "./a", "/a/../b", "/a/./b", "/a//b", "/a/"] {
            assert!(matches!(HostCommands::new([pattern]), Err(ShimError::HostCommand(_))), "{pattern}");
        }
    }
}
