//! Names of repositories and tags, and the form in which the mount shows them.
//!
//! A name without a host belongs to `docker.io` (a single component to `docker.io/library/`), or to the configured default
//! registry. Images loaded from a file may have a name without any host, a *local* name; these are never pulled from a
//! registry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ReferenceError;

/// The registry of a name without a host, unless a default registry is configured.
pub const DOCKER_HUB: &str = "docker.io";

/// The name of `docker.io` before 2016, which old files still contain.
const DOCKER_HUB_OLD: &str = "index.docker.io";

/// The namespace of Docker Hub that users leave out.
const LIBRARY: &str = "library/";

/// Longest name including its host, in bytes (`distribution/reference`, `NameTotalLengthMax`).
pub const NAME_MAX: usize = 255;

/// Longest tag, in bytes (distribution-spec, "Pulling manifests").
pub const TAG_MAX: usize = 128;

/// Registry host and repository of an image, or a repository alone for a local name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    /// `host/repository`, or only `repository` for a local name.
    canonical: String,
    /// Length of the host; 0 for a local name.
    host_len: usize,
}

/// A tag: a name for one manifest of a repository. It may move to another manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Name {
    /// Joins a registry host and a repository.
    ///
    /// # Errors
    /// The part that does not follow the grammar.
    pub fn new(host: &str, repository: &str) -> Result<Self, ReferenceError> {
        let text = format!("{host}/{repository}");
        let host = current_host(host);
        if !is_host(host) {
            let reason = "it has neither a dot nor a port, and is not localhost";
            return Err(ReferenceError::Host { text, host: host.to_owned(), reason });
        }
        check_host(host, &text)?;
        Self::checked(host, repository, &text)
    }

    /// Parses the name of an image in a file. Without a host, the name is local.
    ///
    /// A single component still becomes `docker.io/library/NAME`, because the mount shows both as `NAME`.
    ///
    /// # Errors
    /// The part that does not follow the grammar.
    pub fn from_archive(text: &str) -> Result<Self, ReferenceError> {
        match split_host(text) {
            (None, repository) if repository.contains('/') => Self::checked("", repository, text),
            _ => Self::normalized(text, None),
        }
    }

    /// Parses a name, and adds the host and `library/` if they are missing.
    pub(super) fn normalized(text: &str, default_registry: Option<&str>) -> Result<Self, ReferenceError> {
        let (host, repository) = split_host(text);
        let host = match (host, default_registry) {
            (None, None) => DOCKER_HUB,
            (None, Some(registry)) if !is_host(registry) => {
                return Err(ReferenceError::DefaultRegistry(registry.to_owned()));
            }
            (None, Some(registry)) | (Some(registry), _) => current_host(registry),
        };
        check_host(host, text)?;
        let mut name = Self::checked(host, repository, text)?;
        if host == DOCKER_HUB && !repository.contains('/') {
            name = Self::checked(host, &format!("{LIBRARY}{repository}"), text)?;
        }
        Ok(name)
    }

    fn checked(host: &str, repository: &str, text: &str) -> Result<Self, ReferenceError> {
        if repository.is_empty() {
            return Err(ReferenceError::NoName(text.to_owned()));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(repository.to_owned()));
        }
        for component in repository.split('/') {
            check_component(component).map_err(|reason| ReferenceError::Component {
                text: text.to_owned(),
                component: component.to_owned(),
                reason,
            })?;
        }
        let canonical = if host.is_empty() { repository.to_owned() } else { format!("{host}/{repository}") };
        if canonical.len() > NAME_MAX {
            return Err(ReferenceError::TooLong(canonical));
        }
        Ok(Self { canonical, host_len: host.len() })
    }

    /// `host/repository`; only the repository for a local name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// The registry's host and port; `None` for a local name.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        (self.host_len > 0).then(|| &self.canonical[..self.host_len])
    }

    /// The repository within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        if self.host_len == 0 { &self.canonical } else { &self.canonical[self.host_len + 1..] }
    }

    /// The name as the mount shows it: without `docker.io/library/`, and without the host of the default registry.
    ///
    /// Two names may have the same form: one of the default registry, and a local one or one of Docker Hub.
    #[must_use]
    pub fn familiar(&self, default_registry: Option<&str>) -> String {
        let repository = self.repository();
        match (self.host(), repository.strip_prefix(LIBRARY)) {
            (Some(DOCKER_HUB), Some(image)) if !image.contains('/') => image.to_owned(),
            // The host must stay if the first component of the repository would parse as a host.
            (Some(host), _)
                if Some(host) == default_registry.map(current_host) && split_host(repository).0.is_none() =>
            {
                repository.to_owned()
            }
            _ => self.canonical.clone(),
        }
    }
}

/// Replaces the old name of Docker Hub.
fn current_host(host: &str) -> &str {
    if host == DOCKER_HUB_OLD { DOCKER_HUB } else { host }
}

/// Splits off the host by the rule of `distribution/reference`: the first of several components, if it has a dot, a colon or
/// an upper-case letter, or is `localhost`.
fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if is_host(first) => (Some(first), rest),
        _ => (None, text),
    }
}

fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':']) || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str, text: &str) -> Result<(), ReferenceError> {
    let bad = |reason| Err(ReferenceError::Host { text: text.to_owned(), host: host.to_owned(), reason });
    let (address, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return bad("`[` is not closed") };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return bad("the text in brackets is not an IPv6 address");
            }
            match port.strip_prefix(':') {
                None if port.is_empty() => (None, None),
                None => return bad("only a port may follow the bracket"),
                port => (None, port),
            }
        }
        None => match host.split_once(':') {
            Some((_, port)) if port.contains(':') => return bad("an IPv6 address must be in brackets"),
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    // Nothing can connect to port 0.
    if let Some(port) = port
        && !(port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        return bad("the port is not a number from 1 to 65535");
    }
    for label in address.into_iter().flat_map(|name| name.split('.')) {
        if label.is_empty() {
            return bad("it has an empty label");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return bad("a label starts or ends with `-`");
        }
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return bad("only letters, digits, `-` and `.` are allowed");
        }
    }
    Ok(())
}

/// Checks a component: `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn check_component(component: &str) -> Result<(), &'static str> {
    if component.is_empty() {
        return Err("it is empty");
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.chars().all(|c| alphanumeric(c) || matches!(c, '.' | '_' | '-')) {
        return Err("only lower-case letters, digits, `.`, `_` and `-` are allowed");
    }
    if !component.starts_with(alphanumeric) || !component.ends_with(alphanumeric) {
        return Err("it must start and end with a letter or digit");
    }
    let separators = component.split(alphanumeric).filter(|between| !between.is_empty());
    for between in separators {
        if !matches!(between, "." | "_" | "__") && between.bytes().any(|byte| byte != b'-') {
            return Err("letters and digits must be joined by one `.`, one or two `_`, or any number of `-`");
        }
    }
    Ok(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical)
    }
}

/// Parses the text of [`Name::as_str`]. User input goes through [`Reference::parse`](super::Reference::parse), which applies the
/// default registry.
impl FromStr for Name {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::from_archive(text)
    }
}

impl TryFrom<String> for Name {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.canonical
    }
}

impl Tag {
    /// The tag of a reference that has neither tag nor digest.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// The tag's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = |reason| Err(ReferenceError::Tag { tag: text.to_owned(), reason });
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        match text.as_bytes() {
            [] => bad("it is empty"),
            tag if tag.len() > TAG_MAX => bad("it is longer than 128 characters"),
            [first, ..] if !word(*first) => bad("it must start with a letter, a digit or `_`"),
            tag if !tag.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-')) => {
                bad("only letters, digits, `_`, `.` and `-` are allowed")
            }
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Tag {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_library_and_the_default_host_are_left_out_in_the_mount() {
        for (canonical, default, shown) in [
            ("docker.io/library/python", None, "python"),
            ("docker.io/library/a/b", None, "docker.io/library/a/b"),
            ("docker.io/lab/python", None, "docker.io/lab/python"),
            ("docker.io/lab/python", Some("docker.io"), "lab/python"),
            ("reg:5000/python", None, "reg:5000/python"),
            ("reg:5000/lab/python", Some("reg:5000"), "lab/python"),
            ("reg:5000/python", Some("reg:5001"), "reg:5000/python"),
        ] {
            assert_eq!(canonical.parse::<Name>().unwrap().familiar(default), shown, "{canonical}");
        }
    }

    #[test]
    fn name_is_split_into_host_and_repository() {
        let local: Name = "lab/python".parse().unwrap();
        assert_eq!((local.host(), local.repository()), (None, "lab/python"));
        let name = Name::new("reg:5000", "lab/python").unwrap();
        assert_eq!((name.host(), name.repository()), (Some("reg:5000"), "lab/python"));
        assert_eq!(name.as_str(), "reg:5000/lab/python");
        assert!(Name::new("reg", "python").is_err(), "the text of the name would parse as a local name");
    }
}
