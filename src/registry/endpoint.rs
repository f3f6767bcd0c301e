//! Where a repository is: at its registry, and at the mirrors of the registry.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use super::RegistryError;
use crate::image::{DOCKER_HUB, Name, ReferenceError};

/// The host of Docker Hub's API.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// A registry that has copies of another registry's repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The host and port.
    host: String,
    /// What precedes the name of a repository at the mirror, with a slash at its end; may be empty.
    prefix: String,
}

/// A repository of a registry or of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// The host and port, as users write them.
    pub(super) host: String,
    /// The name of the repository there; empty for the registry as a whole.
    pub(super) repository: String,
    /// Whether this is a mirror.
    pub(super) is_mirror: bool,
}

impl Mirror {
    fn endpoint(&self, name: &Name) -> Endpoint {
        Endpoint {
            host: self.host.clone(),
            repository: format!("{}{}", self.prefix, name.repository()),
            is_mirror: true,
        }
    }
}

impl FromStr for Mirror {
    type Err = ReferenceError;

    /// Parses `HOST[:PORT][/PREFIX]`; `https://` in front is ignored.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, prefix) = bare.split_once('/').unwrap_or((bare, ""));
        let separator = if prefix.is_empty() { "" } else { "/" };
        let prefix = format!("{prefix}{separator}");
        Name::new(host, &format!("{prefix}x"))?;
        Ok(Self { host: host.to_owned(), prefix })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.prefix)
    }
}

impl Endpoint {
    /// The registry of a name.
    pub(super) fn of(name: &Name) -> Result<Self, RegistryError> {
        let host = name.host().ok_or_else(|| RegistryError::Local(name.clone()))?.to_owned();
        Ok(Self { host, repository: name.repository().to_owned(), is_mirror: false })
    }

    /// A registry as a whole.
    pub(super) fn of_host(host: &str) -> Self {
        Self { host: host.to_owned(), repository: String::new(), is_mirror: false }
    }

    /// All places of a repository, in the order in which they are asked: mirrors first.
    pub(super) fn all(name: &Name, mirrors: &[Mirror]) -> Result<Vec<Self>, RegistryError> {
        let own = Self::of(name)?;
        let mut all: Vec<Self> = mirrors.iter().map(|mirror| mirror.endpoint(name)).collect();
        all.push(own);
        Ok(all)
    }

    /// The URL of a path below `/v2/` and the repository.
    pub(super) fn url(&self, scheme: &str, path: &str) -> Result<Url, RegistryError> {
        let separator = if self.repository.is_empty() { "" } else { "/" };
        let url = format!("{scheme}://{}/v2/{}{separator}{path}", self.api_host(), self.repository);
        Url::parse(&url).map_err(|error| RegistryError::Address { url, reason: error.to_string() })
    }

    /// The host of the registry's API. For Docker Hub, it is not the host in the name.
    fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB { DOCKER_HUB_API } else { &self.host }
    }

    /// What a token must allow to pull from the repository.
    pub(super) fn pull_scope(&self) -> Option<String> {
        (!self.repository.is_empty()).then(|| format!("repository:{}:pull", self.repository))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_api_has_another_host() {
        let url =
            |name: &str| Endpoint::of(&name.parse().unwrap()).unwrap().url("https", "tags/list").unwrap();
        assert_eq!(
            url("docker.io/library/a").as_str(),
            "https://registry-1.docker.io/v2/library/a/tags/list"
        );
        assert_eq!(url("localhost:5000/a").as_str(), "https://localhost:5000/v2/a/tags/list");
        assert_eq!(Endpoint::of_host("reg:1").url("http", "").unwrap().as_str(), "http://reg:1/v2/");
        let local = Endpoint::of(&"lab/a".parse().unwrap());
        assert!(matches!(local, Err(RegistryError::Local(_))));
    }

    #[test]
    fn mirror_has_a_host_and_perhaps_a_prefix() {
        let name: Name = "docker.io/library/a".parse().unwrap();
        for (text, host, repository) in [
            ("mirror.example", "mirror.example", "library/a"),
            ("https://mirror.example:5000/", "mirror.example:5000", "library/a"),
            ("mirror.example/hub/cache", "mirror.example", "hub/cache/library/a"),
        ] {
            let endpoint = text.parse::<Mirror>().unwrap().endpoint(&name);
            assert_eq!((endpoint.host.as_str(), endpoint.repository.as_str()), (host, repository), "{text}");
        }
        for text in ["", "mirror", "http://mirror.example", "mirror.example/UPPER", "mirror.example/a//b"] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
