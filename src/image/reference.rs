//! Image references: what a user names an image by, in the grammar of `distribution/reference`.

use super::{DigestError, ManifestDigest, NAME_MAX, Name, Tag};
use std::fmt;

/// What a user names an image by: a name with a tag, a digest, or both (the digest then decides).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry and repository.
    pub name: Name,
    /// The tag, where one was written.
    pub tag: Option<Tag>,
    /// The manifest's digest, where one was written.
    pub digest: Option<ManifestDigest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there, or nothing in front of `:` or `@`.
    #[error("reference `{0}` has no name")]
    NoName(String),
    /// It is a URL.
    #[error("reference `{text}` starts with `{scheme}`; write it without")]
    Scheme {
        /// The text as given.
        text: String,
        /// What to leave out.
        scheme: String,
    },
    /// 64 hex digits alone: an image ID of another tool.
    #[error("`{0}` is an image ID, not a reference; write NAME@sha256:{0}")]
    ImageId(String),
    /// Host or port do not follow the grammar.
    #[error("registry host `{host}` of reference `{text}` is not valid: {reason}")]
    Host {
        /// The text as given.
        text: String,
        /// The part meant as host.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The repository has upper-case letters.
    #[error("repository `{0}` must be lower case (perhaps `{lower}` is meant)", lower = .0.to_lowercase())]
    UpperCase(String),
    /// A component of the repository does not follow the grammar.
    #[error("`{component}` in reference `{text}` is not valid: {reason}")]
    Component {
        /// The text as given.
        text: String,
        /// The component between two slashes.
        component: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is longer than [`NAME_MAX`].
    #[error("name `{0}` is longer than {NAME_MAX} characters")]
    TooLong(String),
    /// The tag does not follow the grammar.
    #[error("tag `{tag}` is not valid: {reason}")]
    Tag {
        /// The part meant as tag.
        tag: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What stands behind `@` is no digest.
    #[error("reference `{text}`")]
    Digest {
        /// The text as given.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
    /// The path form of the mount, where `-` stands for `:`.
    #[error("`{0}` is a path in the mount; as a reference write `{1}`")]
    MountPath(String, String),
    /// The configured default registry cannot be told from a repository.
    #[error("default registry `{0}` is not a host with a dot or a port, or localhost")]
    DefaultRegistry(String),
}

impl Reference {
    /// Parses what a user typed to name an image of a registry.
    ///
    /// # Errors
    /// Says which part is wrong and, where that can be told, what is meant.
    pub fn parse(text: &str, default_registry: Option<&str>) -> Result<Self, ReferenceError> {
        Self::with_name(text, |name| Name::normalized(name, default_registry))
    }

    /// Parses the name an image gets when it is loaded from a file; see [`Name::given`].
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn given(text: &str) -> Result<Self, ReferenceError> {
        Self::with_name(text, Name::given)
    }

    /// All that a text may mean for an image that is here already, the likeliest first: the default registry's, then a
    /// loaded image's name, then Docker Hub's.
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn meanings(text: &str, default_registry: Option<&str>) -> Result<Vec<Self>, ReferenceError> {
        let first = Self::parse(text, default_registry);
        let mut all: Vec<Self> = Vec::new();
        // A host in front can make a text too long for a name that is none with another or without one.
        for meaning in [first.clone(), Self::given(text), Self::parse(text, None)].into_iter().flatten() {
            if !all.contains(&meaning) {
                all.push(meaning);
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
        // A colon in front of the last slash belongs to the host's port.
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

    /// The tag to ask for where no digest is given: the one written, or `latest`.
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

/// The canonical text: host, repository, and tag and digest as far as they are given.
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
    fn what_is_left_out_is_added() {
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
    fn default_registry_takes_names_without_host() {
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
    fn loaded_images_keep_the_name_they_were_given() {
        for (text, canonical, shown) in [
            ("lab/python:1", "lab/python:1", "lab/python"),
            ("python:1", "docker.io/library/python:1", "python"),
            ("reg.example/lab/python:1", "reg.example/lab/python:1", "reg.example/lab/python"),
        ] {
            let reference = Reference::given(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.name.familiar(None), shown, "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_a_name_is_one_of_its_meanings() {
        for (text, shown) in [
            ("reg:1/a", "a"),
            ("reg:1/lab/a", "lab/a"),
            ("reg:1/library/a", "library/a"),
            ("a", "a"),
            ("docker.io/reg.example", "reg.example"),
            // Without its host, the first component would be one.
            ("reg:1/localhost/a", "reg:1/localhost/a"),
            ("reg:1/a.b/c", "reg:1/a.b/c"),
        ] {
            let name = Reference::parse(text, None).unwrap().name;
            assert_eq!(name.familiar(Some("reg:1")), shown, "{text}");
            let meanings = Reference::meanings(shown, Some("reg:1")).unwrap();
            assert!(meanings.iter().any(|meaning| meaning.name == name), "{text}: {meanings:?}");
        }
    }

    #[test]
    fn names_round_trip_through_their_canonical_text() {
        for text in ["python", "lab/python", "reg:5000/a/b", "localhost/a", "[::1]:80/a", "Reg/a"] {
            for reference in Reference::meanings(text, Some("default.example")).unwrap() {
                assert_eq!(reference.name.as_str().parse::<Name>().unwrap(), reference.name, "{text}");
            }
        }
    }

    #[test]
    fn meanings_start_with_the_default_registry() {
        let meanings = |text, default| -> Vec<String> {
            Reference::meanings(text, default).unwrap().iter().map(Reference::to_string).collect()
        };
        assert_eq!(meanings("a/b", Some("reg:1")), ["reg:1/a/b", "a/b", "docker.io/a/b"]);
        assert_eq!(meanings("a/b", None), ["docker.io/a/b", "a/b"]);
        assert_eq!(meanings("reg:1/b", None), ["reg:1/b"]);
        let long = "b".repeat(240);
        assert_eq!(meanings(&long, Some("reg:1")), [format!("reg:1/{long}")]);
        assert!(Reference::meanings("B", Some("reg:1")).is_err());
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        let mount_form = format!("python@sha256-{HEX}");
        for (text, part) in [
            ("", "has no name"),
            (":1", "has no name"),
            ("https://reg.example/a", "write it without"),
            (HEX, "is an image ID"),
            ("Python", "perhaps `python` is meant"),
            ("reg.example/Lab/x", "perhaps `lab/x` is meant"),
            ("a//b", "is empty"),
            ("/a", "is empty"),
            ("a/", "is empty"),
            ("reg.example/", "has no name"),
            ("a b", "only lower-case letters"),
            ("-a", "starts and ends"),
            ("a..b", "joined by"),
            ("a___b", "joined by"),
            ("a._b", "joined by"),
            ("../a", "empty label"),
            ("a/../b", "starts and ends"),
            ("reg:x/a", "port"),
            ("reg:70000/a", "port"),
            ("reg:/a", "port"),
            ("::1/a", "in brackets"),
            ("[::1/a", "not closed"),
            ("[1]/a", "not valid"),
            ("[zz::]/a.b", "IPv6"),
            ("-reg.example/a", "label"),
            ("a:", "it is empty"),
            ("a:.x", "starts with"),
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
