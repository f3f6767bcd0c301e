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
    /// What requests do there.
    pub(super) access: RepositoryAccess,
}

/// What requests to a repository do, and so what a token for them must allow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum RepositoryAccess {
    /// Read it.
    Pull,
    /// Write to it.
    Push,
    /// Write to it a blob that another repository of the same registry has.
    Mount {
        /// The other repository.
        from: String,
    },
}

impl Mirror {
    fn endpoint(&self, name: &Name) -> Endpoint {
        Endpoint {
            host: self.host.clone(),
            repository: format!("{}{}", self.prefix, name.repository()),
            is_mirror: true,
            access: RepositoryAccess::Pull,
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
        let host = name.host().ok_or_else(|| RegistryError::Local(name.clone()))?;
        Ok(Self { repository: name.repository().to_owned(), ..Self::of_host(host) })
    }

    /// The registry of a name, to write to. Never a mirror.
    pub(super) fn to_push(name: &Name) -> Result<Self, RegistryError> {
        Ok(Self { access: RepositoryAccess::Push, ..Self::of(name)? })
    }

    /// The same, to write a blob that the repository `from` has.
    pub(super) fn to_mount(name: &Name, from: &str) -> Result<Self, RegistryError> {
        Ok(Self { access: RepositoryAccess::Mount { from: from.to_owned() }, ..Self::of(name)? })
    }

    /// A registry as a whole.
    pub(super) fn of_host(host: &str) -> Self {
        let access = RepositoryAccess::Pull;
        Self { host: host.to_owned(), repository: String::new(), is_mirror: false, access }
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

    /// What a token must allow (distribution-spec, "Token Scope"). `asked` is what the registry asks for, if it is for a repository:
    /// this is right also behind a proxy that changes names.
    ///
    /// A registry asks for what the refused request needs, and that may be less than what the next request needs.
    pub(super) fn scopes(&self, asked: Option<&str>) -> Vec<String> {
        if self.repository.is_empty() {
            return Vec::new();
        }
        let asked_name = asked.and_then(|asked| {
            let (name, _actions) = asked.split(' ').next()?.strip_prefix("repository:")?.rsplit_once(':')?;
            Some(name)
        });
        let name = asked_name.unwrap_or(&self.repository);
        match (&self.access, asked) {
            (RepositoryAccess::Pull, Some(asked)) => vec![asked.to_owned()],
            (RepositoryAccess::Pull, None) => vec![format!("repository:{name}:pull")],
            (RepositoryAccess::Push, _) => vec![format!("repository:{name}:pull,push")],
            (RepositoryAccess::Mount { from }, _) => {
                vec![format!("repository:{name}:pull,push"), format!("repository:{from}:pull")]
            }
        }
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
