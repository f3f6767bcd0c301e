//! Names of environments, of their revisions, and of what a submission may ask for.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;

/// Longest ID of an environment, in characters: that of a runtime environment in ReCodEx.
pub const ENVIRONMENT_ID_MAX: usize = 32;
/// Longest name of a hardware group, in characters: that of ReCodEx.
const HARDWARE_GROUP_MAX: usize = 32;
/// Longest name of a host, in characters (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 253;
/// Longest part of a host's name between two dots (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;

/// The ID of an environment: that of the runtime environment in the judge.
///
/// It consists of lower-case letters and digits, joined by single `-`, `_` or `.`. So it is also a component of an image's
/// name, and a name of a directory that is never hidden.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvironmentId(String);

/// The number of a revision within its environment. The first one is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionNumber(NonZeroU32);

/// A revision of an environment: `ID@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevisionId {
    /// The environment.
    pub environment: EnvironmentId,
    /// The number of the revision.
    pub number: RevisionNumber,
}

/// A host that a build needs: `NAME[:PORT]`. The build reaches no other one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildHost(String);

/// A group of workers with the same hardware, as the judge names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HardwareGroup(String);

/// The reason why a text is no name of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentNameError {
    /// The ID is longer than [`ENVIRONMENT_ID_MAX`].
    #[error("environment ID `{text}` has {length} characters; at most {ENVIRONMENT_ID_MAX} are allowed")]
    Long {
        /// The ID.
        text: String,
        /// Its number of characters.
        length: usize,
    },
    /// The ID has other characters than those allowed, or none.
    #[error(
        "environment ID `{0}` is not valid: it must consist of lower-case letters and digits, joined by single `-`, `_` or `.`"
    )]
    Environment(String),
    /// The text has no `@`.
    #[error("`{0}` names no revision; write ID@REVISION, such as {0}@1")]
    NoRevision(String),
    /// The text is not a positive number without leading zeros.
    #[error("revision `{0}` is not a number from 1 up")]
    Revision(String),
    /// The text is not a host name with an optional port.
    #[error("host `{0}` is not of the form NAME[:PORT]")]
    Host(String),
    /// The text is no name of a hardware group.
    #[error(
        "hardware group `{0}` is not valid: it must have 1 to {HARDWARE_GROUP_MAX} letters, digits, `-`, `_` or `.`"
    )]
    HardwareGroup(String),
}

impl EnvironmentNameError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Usage
    }
}

impl EnvironmentId {
    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvironmentId {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length = text.chars().count();
        if length > ENVIRONMENT_ID_MAX {
            return Err(EnvironmentNameError::Long { text: text.to_owned(), length });
        }
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        match text.split(['-', '_', '.']).all(is_word) {
            true => Ok(Self(text.to_owned())),
            false => Err(EnvironmentNameError::Environment(text.to_owned())),
        }
    }
}

impl RevisionNumber {
    /// The first revision of an environment.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The next number; `None` after the largest one.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl FromStr for RevisionNumber {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A number has one form only: it is the name of a directory.
        let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = if is_canonical { text.parse().ok() } else { None };
        number.map(Self).ok_or_else(|| EnvironmentNameError::Revision(text.to_owned()))
    }
}

impl FromStr for RevisionId {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((environment, number)) = text.split_once('@') else {
            text.parse::<EnvironmentId>()?;
            return Err(EnvironmentNameError::NoRevision(text.to_owned()));
        };
        Ok(Self { environment: environment.parse()?, number: number.parse()? })
    }
}

impl FromStr for BuildHost {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let (name, port) = match lower.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (lower.as_str(), None),
        };
        let is_label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        match name.len() <= HOST_MAX && name.split('.').all(is_label) && port.is_none_or(is_port) {
            true => Ok(Self(lower)),
            false => Err(EnvironmentNameError::Host(text.to_owned())),
        }
    }
}

impl BuildHost {
    /// The name of the host.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }

    /// The port; `None` if the submission names none.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.0.split_once(':').and_then(|(_, port)| port.parse().ok())
    }
}

impl FromStr for HardwareGroup {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        match (1..=HARDWARE_GROUP_MAX).contains(&text.len()) && text.bytes().all(is_allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(EnvironmentNameError::HardwareGroup(text.to_owned())),
        }
    }
}

impl fmt::Display for RevisionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.environment, self.number)
    }
}

macro_rules! text_forms {
    ($($name:ident)+) => {
        $(
            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }

            impl TryFrom<String> for $name {
                type Error = EnvironmentNameError;

                fn try_from(text: String) -> Result<Self, Self::Error> {
                    text.parse()
                }
            }

            impl From<$name> for String {
                fn from(name: $name) -> Self {
                    name.0
                }
            }
        )+
    };
}

text_forms! { EnvironmentId BuildHost HardwareGroup }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_environments_are_lower_case_words_of_at_most_32_characters() {
        for id in ["c-gcc-linux", "python3", "cs-dotnet-core", "a.b_c-d", "7", &"a".repeat(32)] {
            assert_eq!(id.parse::<EnvironmentId>().unwrap().as_str(), id);
            // An ID is also a component of an image's name.
            crate::image::Name::new("registry.example", id).unwrap();
        }
        let long = "a".repeat(33);
        for id in
            ["", "A", "a b", "-a", "a-", "a--b", "..", ".a", "a/b", "a@1", "č", "a\n", "lost+found", &long]
        {
            let error = id.parse::<EnvironmentId>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{id}`")), "{error}");
        }
        assert!(long.parse::<EnvironmentId>().unwrap_err().to_string().contains("33 characters; at most 32"));
    }

    #[test]
    fn revisions_have_one_text_form() {
        let revision: RevisionId = "python3@12".parse().unwrap();
        assert_eq!((revision.environment.as_str(), revision.number.get()), ("python3", 12));
        assert_eq!(revision.to_string(), "python3@12");
        for text in [
            "python3",
            "python3@",
            "python3@0",
            "python3@01",
            "python3@+1",
            "python3@4294967296",
            "P@1",
            "a@1@2",
        ] {
            assert!(text.parse::<RevisionId>().is_err(), "{text}");
        }
        assert_eq!(
            "a".parse::<RevisionId>().unwrap_err().to_string(),
            "`a` names no revision; write ID@REVISION, such as a@1"
        );
        assert_eq!(RevisionNumber(NonZeroU32::MAX).next(), None);
    }

    #[test]
    fn hosts_have_a_name_and_perhaps_a_port() {
        let host: BuildHost = "Mirror.example:8080".parse().unwrap();
        assert_eq!(
            (host.name(), host.port(), host.to_string().as_str()),
            ("mirror.example", Some(8080), "mirror.example:8080")
        );
        assert_eq!("pypi.example".parse::<BuildHost>().unwrap().port(), None);
        for text in [
            "",
            "a:",
            "a:0",
            "a:70000",
            "https://a",
            "a/b",
            "*.example",
            "a..b",
            "-a",
            "a b",
            "a:1:2",
            &"a".repeat(64),
        ] {
            assert_eq!(text.parse::<BuildHost>().unwrap_err(), EnvironmentNameError::Host(text.to_owned()));
        }
        for text in ["", "a b", "a/b", &"a".repeat(33)] {
            assert!(text.parse::<HardwareGroup>().is_err(), "{text}");
        }
        assert!("group1".parse::<HardwareGroup>().is_ok());
    }
}
