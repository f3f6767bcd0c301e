//! Image references, in the grammar of `distribution/reference`.

use std::fmt;

use super::{DigestError, ManifestDigest, NAME_MAX, Name, Tag};
use crate::error::ErrorCode;

/// A user's name for an image: a repository name with a tag, a digest, or both. The digest takes precedence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry and repository.
    pub name: Name,
    /// The tag, if the reference has one.
    pub tag: Option<Tag>,
    /// The digest of the manifest, if the reference has one.
    pub digest: Option<ManifestDigest>,
}

/// The reason why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text is empty, or has no name before `:` or `@`.
    #[error("reference `{0}` has no name")]
    NoName(String),
    /// The text is a URL.
    #[error("reference `{text}` starts with `{scheme}`; leave the scheme out")]
    Scheme {
        /// The whole text.
        text: String,
        /// The scheme, with `://`.
        scheme: String,
    },
    /// The text consists of 64 hex digits: an image ID of another tool.
    #[error("`{0}` is an image ID, not a reference; write NAME@sha256:{0}")]
    ImageId(String),
    /// The host or port does not follow the grammar.
    #[error("registry host `{host}` of reference `{text}` is not valid: {reason}")]
    Host {
        /// The whole text.
        text: String,
        /// The host part.
        host: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The repository has upper-case letters.
    #[error("repository `{0}` must be lower case (did you mean `{lower}`?)", lower = .0.to_lowercase())]
    UpperCase(String),
    /// A component of the repository does not follow the grammar.
    #[error("`{component}` in reference `{text}` is not valid: {reason}")]
    Component {
        /// The whole text.
        text: String,
        /// The component between two slashes.
        component: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The name is longer than [`NAME_MAX`].
    #[error("name `{0}` is longer than {NAME_MAX} characters")]
    TooLong(String),
    /// The tag does not follow the grammar.
    #[error("tag `{tag}` is not valid: {reason}")]
    Tag {
        /// The tag part.
        tag: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The text after `@` is not a digest.
    #[error("reference `{text}` is not valid")]
    Digest {
        /// The whole text.
        text: String,
        /// The error of the digest.
        source: DigestError,
    },
    /// The text is a path in the mount, which has `-` in place of `:`.
    #[error("`{0}` is a path in the mount; as a reference write `{1}`")]
    MountPath(String, String),
    /// The configured default registry would parse as a repository, not as a host.
    #[error("default registry `{0}` is not a host with a dot or a port, or localhost")]
    DefaultRegistry(String),
}

impl ReferenceError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoName(_)
            | Self::Scheme { .. }
            | Self::ImageId(_)
            | Self::Host { .. }
            | Self::UpperCase(_)
            | Self::Component { .. }
            | Self::TooLong(_)
            | Self::Tag { .. }
            | Self::MountPath(..) => ErrorCode::Reference,
            Self::Digest { source, .. } => source.code(),
            Self::DefaultRegistry(_) => ErrorCode::Configuration,
        }
    }
}

impl Reference {
    /// Parses a user's reference to an image of a registry.
    ///
    /// # Errors
    /// Names the invalid part and, if it can be guessed, the correct spelling.
    pub fn parse(text: &str, default_registry: Option<&str>) -> Result<Self, ReferenceError> {
        Self::with_name(text, |name| Name::normalized(name, default_registry))
    }

    /// Parses the name that an archive gives to an image; see [`Name::from_archive`].
    ///
    /// # Errors
    /// The same as for [`Reference::parse`].
    pub fn from_archive(text: &str) -> Result<Self, ReferenceError> {
        Self::with_name(text, Name::from_archive)
    }

    /// Returns all references that a text may mean among the images of the store, most likely first: in the default registry,
    /// with a local name, on Docker Hub.
    ///
    /// # Errors
    /// The same as for [`Reference::parse`].
    pub fn candidates(text: &str, default_registry: Option<&str>) -> Result<Vec<Self>, ReferenceError> {
        let first = Self::parse(text, default_registry);
        let mut all: Vec<Self> = Vec::new();
        // The name can be too long with one host, but not with another or without a host.
        for candidate in
            [first.clone(), Self::from_archive(text), Self::parse(text, None)].into_iter().flatten()
        {
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
        if all.is_empty() {
            first?;
        }
        Ok(all)
    }

    fn with_name(
        text: &str,
        name: impl FnOnce(&str) -> Result<Name, ReferenceError>,
    ) -> Result<Self, ReferenceError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme { text: text.to_owned(), scheme: format!("{scheme}://") });
        }
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::ImageId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest, text)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the port of the host.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(rest[last + colon + 1..].parse()?)),
            None => (rest, None),
        };
        if repository.is_empty() {
            return Err(ReferenceError::NoName(text.to_owned()));
        }
        Ok(Self { name: name(repository)?, tag, digest })
    }

    /// The tag to request if there is no digest; `latest` if the reference has no tag.
    #[must_use]
    pub fn tag_or_latest(&self) -> Tag {
        self.tag.clone().unwrap_or_else(Tag::latest)
    }
}

fn parse_digest(digest: &str, text: &str) -> Result<ManifestDigest, ReferenceError> {
    digest.parse().map_err(|source| match digest.strip_prefix("sha256-") {
        Some(hex) => {
            ReferenceError::MountPath(text.to_owned(), text.replace(digest, &format!("sha256:{hex}")))
        }
        None => ReferenceError::Digest { text: text.to_owned(), source },
    })
}

/// The canonical text: host, repository, and the tag and digest if present.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn missing_host_and_library_are_added() {
        for (text, canonical) in [
            ("python", "docker.io/library/python"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("lab/python", "docker.io/lab/python"),
            ("docker.io/python", "docker.io/library/python"),
            ("index.docker.io/lab/python:1", "docker.io/lab/python:1"),
            ("localhost/python", "localhost/python"),
            ("localhost:5000/python:1", "localhost:5000/python:1"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("reg.example/a/b/c:x", "reg.example/a/b/c:x"),
            ("Reg/a", "Reg/a"),
            ("10.0.0.1:5000/a", "10.0.0.1:5000/a"),
            ("[::1]:5000/a:1", "[::1]:5000/a:1"),
            ("[2001:db8::1]/a", "[2001:db8::1]/a"),
            ("a/b__c.d-e--f_g", "docker.io/a/b__c.d-e--f_g"),
        ] {
            assert_eq!(Reference::parse(text, None).unwrap().to_string(), canonical, "{text}");
        }
        let text = format!("reg:5000/a:1@sha256:{HEX}");
        let both = Reference::parse(&text, None).unwrap();
        assert_eq!(both.to_string(), text);
        assert_eq!((both.tag.unwrap().as_str(), both.digest.unwrap().hex().as_str()), ("1", HEX));
    }

    #[test]
    fn names_without_host_belong_to_the_default_registry() {
        let parse = |text| Reference::parse(text, Some("reg:5000")).unwrap().to_string();
        assert_eq!(parse("python"), "reg:5000/python");
        assert_eq!(parse("lab/python:1"), "reg:5000/lab/python:1");
        assert_eq!(parse("docker.io/python"), "docker.io/library/python");
        assert_eq!(Reference::parse("a", Some("docker.io")).unwrap().to_string(), "docker.io/library/a");
        let old = Reference::parse("lab/a", Some("index.docker.io")).unwrap().name;
        assert_eq!((old.as_str(), &*old.familiar(Some("index.docker.io"))), ("docker.io/lab/a", "lab/a"));
        assert_eq!(Name::new("index.docker.io", "lab/a"), Ok(old));
        assert_eq!(
            Reference::parse("a", Some("reg")),
            Err(ReferenceError::DefaultRegistry("reg".to_owned()))
        );
    }

    #[test]
    fn loaded_images_keep_the_name_of_the_archive() {
        for (text, canonical, shown) in [
            ("lab/python:1", "lab/python:1", "lab/python"),
            ("python:1", "docker.io/library/python:1", "python"),
            ("reg.example/lab/python:1", "reg.example/lab/python:1", "reg.example/lab/python"),
        ] {
            let reference = Reference::from_archive(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.name.familiar(None), shown, "{text}");
        }
    }

    #[test]
    fn shown_name_is_a_reference_to_the_same_image() {
        for (text, shown) in [
            ("reg:1/a", "a"),
            ("reg:1/lab/a", "lab/a"),
            ("reg:1/library/a", "library/a"),
            ("a", "a"),
            ("docker.io/reg.example", "reg.example"),
            // Without its host, the first component would parse as a host.
            ("reg:1/localhost/a", "reg:1/localhost/a"),
            ("reg:1/a.b/c", "reg:1/a.b/c"),
        ] {
            let name = Reference::parse(text, None).unwrap().name;
            assert_eq!(name.familiar(Some("reg:1")), shown, "{text}");
            let candidates = Reference::candidates(shown, Some("reg:1")).unwrap();
            assert!(candidates.iter().any(|candidate| candidate.name == name), "{text}: {candidates:?}");
        }
    }

    #[test]
    fn names_round_trip_through_their_canonical_text() {
        for text in ["python", "lab/python", "reg:5000/a/b", "localhost/a", "[::1]:80/a", "Reg/a"] {
            for reference in Reference::candidates(text, Some("default.example")).unwrap() {
                assert_eq!(reference.name.as_str().parse::<Name>().unwrap(), reference.name, "{text}");
            }
        }
    }

    #[test]
    fn candidates_start_with_the_default_registry() {
        let candidates = |text, default| -> Vec<String> {
            Reference::candidates(text, default).unwrap().iter().map(Reference::to_string).collect()
        };
        assert_eq!(candidates("a/b", Some("reg:1")), ["reg:1/a/b", "a/b", "docker.io/a/b"]);
        assert_eq!(candidates("a/b", None), ["docker.io/a/b", "a/b"]);
        assert_eq!(candidates("reg:1/b", None), ["reg:1/b"]);
        let long = "b".repeat(240);
        assert_eq!(candidates(&long, Some("reg:1")), [format!("reg:1/{long}")]);
        assert!(Reference::candidates("B", Some("reg:1")).is_err());
    }

    #[test]
    fn each_malformed_reference_has_its_own_message() {
        let mount_form = format!("python@sha256-{HEX}");
        for (text, part) in [
            ("", "has no name"),
            (":1", "has no name"),
            ("https://reg.example/a", "leave the scheme out"),
            (HEX, "is an image ID"),
            ("Python", "did you mean `python`?"),
            ("reg.example/Lab/x", "did you mean `lab/x`?"),
            ("a//b", "is empty"),
            ("/a", "is empty"),
            ("a/", "is empty"),
            ("reg.example/", "has no name"),
            ("a b", "only lower-case letters"),
            ("-a", "start and end with"),
            ("a..b", "joined by"),
            ("a___b", "joined by"),
            ("a._b", "joined by"),
            ("../a", "empty label"),
            ("a/../b", "start and end with"),
            ("reg:x/a", "port"),
            ("reg:70000/a", "port"),
            ("reg:/a", "port"),
            ("::1/a", "in brackets"),
            ("[::1/a", "not closed"),
            ("[1]/a", "not valid"),
            ("[zz::]/a.b", "IPv6"),
            ("-reg.example/a", "label"),
            ("a:", "it is empty"),
            ("a:.x", "must start with"),
            ("a:x/y", "port"),
            ("a:x y", "are allowed"),
            ("a@sha512:00", "sha512"),
            ("a@sha256:00", "64 lower-case"),
            ("a@", "no algorithm"),
            (&mount_form, "write `python@sha256:e3b0"),
        ] {
            let error = Reference::parse(text, None).expect_err(text);
            let mut message = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                message = format!("{message}: {source}");
            }
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!(matches!(Reference::parse(&"a".repeat(256), None), Err(ReferenceError::TooLong(_))));
        assert!(Reference::parse(&format!("a:{}", "b".repeat(128)), None).is_ok());
        assert!(Reference::parse(&format!("a:{}", "b".repeat(129)), None).is_err());
    }
}
