//! Credentials for a registry: from the files of docker and podman, and from the helper programs that they name.
//!
//! Credentials are looked up only when a registry requires them, so a broken helper does not affect images that need no
//! login. `docker_credential` parses the entries of the files, but this module runs the helpers: `docker_credential` has no
//! deadline and never kills a helper that hangs.

mod credential_helper;
mod error;
mod file;

use std::path::PathBuf;
use std::time::Duration;

use oci_client::secrets::RegistryAuth;

pub use error::AuthError;
use file::CredentialFile;

use crate::image::Name;

/// The files with credentials, in order of precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFiles(Vec<PathBuf>);

impl AuthFiles {
    /// The files that docker and podman write for this user.
    ///
    /// First `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, then `$REGISTRY_AUTH_FILE` or
    /// `$XDG_RUNTIME_DIR/containers/auth.json`.
    #[must_use]
    pub fn of_user() -> Self {
        Self::from_variables(|name| {
            std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        })
    }

    /// Uses only `files`.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    fn from_variables(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
        let podman = variable("REGISTRY_AUTH_FILE")
            .or_else(|| Some(variable("XDG_RUNTIME_DIR")?.join("containers/auth.json")));
        Self(docker.map(|directory| directory.join("config.json")).into_iter().chain(podman).collect())
    }

    /// Returns the credentials for a repository from the first file that has any; anonymous if no file has any.
    pub(super) async fn find(&self, name: &Name, deadline: Duration) -> Result<RegistryAuth, AuthError> {
        for path in &self.0 {
            let Some(file) = CredentialFile::read(path).await? else { continue };
            if let Some(credentials) = file.find(path, name, deadline).await? {
                tracing::debug!(file = %path.display(), registry = name.host(), "found credentials");
                return Ok(credentials);
            }
        }
        Ok(RegistryAuth::Anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_selects_the_files_of_docker_and_podman() {
        let of = |variables: &'static [(&str, &str)]| {
            AuthFiles::from_variables(|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        let files = |paths: &[&str]| AuthFiles::new(paths.iter().map(PathBuf::from).collect());
        assert_eq!(of(&[]), files(&[]));
        assert_eq!(of(&[("HOME", "/h")]), files(&["/h/.docker/config.json"]));
        assert_eq!(of(&[("HOME", "/h"), ("DOCKER_CONFIG", "/d")]), files(&["/d/config.json"]));
        assert_eq!(
            of(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/x")]),
            files(&["/h/.docker/config.json", "/x/containers/auth.json"])
        );
        assert_eq!(of(&[("XDG_RUNTIME_DIR", "/x"), ("REGISTRY_AUTH_FILE", "/r")]), files(&["/r"]));
    }
}
