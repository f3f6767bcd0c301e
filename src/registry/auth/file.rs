//! Files with credentials: `config.json` of docker and `auth.json` of podman.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::time::Duration;

use docker_credential::DockerCredential;
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use super::credential_helper::run_helper;
use super::error::AuthError;
use crate::image::{DOCKER_HUB, Name};
use crate::os::PathError;

/// The key of Docker Hub in docker's files and helpers. It is older than the current registry protocol.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Maximum number of bytes that are read from a credential file.
const FILE_MAX: u64 = 4 << 20;

/// The fields of a credential file that this program reads.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CredentialFile {
    auths: Option<HashMap<String, CredentialEntry>>,
    cred_helpers: Option<HashMap<String, String>>,
    creds_store: Option<String>,
}

/// The entry of a registry. All fields are empty if a helper stores the credentials.
#[derive(Deserialize, Serialize, Default, Clone)]
#[serde(default)]
struct CredentialEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<String>,
    #[serde(skip_serializing)]
    registrytoken: Option<String>,
}

impl CredentialEntry {
    fn is_empty(&self) -> bool {
        let fields = [&self.auth, &self.username, &self.password, &self.identitytoken, &self.registrytoken];
        fields.into_iter().flatten().all(String::is_empty)
    }
}

impl CredentialFile {
    /// Reads a file; `None` if it does not exist.
    pub(super) async fn read(path: &Path) -> Result<Option<Self>, AuthError> {
        let read = async {
            let mut bytes = Vec::new();
            tokio::fs::File::open(path).await?.take(FILE_MAX).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        let bytes = match read.await {
            Ok(bytes) => bytes,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(PathError::new("read", path, error).into()),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| AuthError::Parse { path: path.to_owned(), source })
    }

    /// Returns the credentials for a repository: from its helper, its entry or the default helper, in this order.
    pub(super) async fn find(
        &self,
        path: &Path,
        name: &Name,
        deadline: Duration,
    ) -> Result<Option<RegistryAuth>, AuthError> {
        let host = name.host().unwrap_or_default();
        let server = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        let host_helper = self
            .cred_helpers
            .iter()
            .flatten()
            .find(|(key, helper)| bare_host(key) == bare_host(host) && !helper.is_empty())
            .map(|(_, helper)| helper);
        if let Some(helper) = host_helper {
            return run_helper(helper, server, path, deadline).await;
        }
        if let Some((key, entry)) = self.entry(name)
            && !entry.is_empty()
        {
            return entry_auth(key, entry, path).map(Some);
        }
        match self.creds_store.as_deref().filter(|store| !store.is_empty()) {
            Some(store) => run_helper(store, server, path, deadline).await,
            None => Ok(None),
        }
    }

    /// The entry for a repository. An entry for a namespace (`host/lab`), as podman writes it, takes precedence over
    /// the entry for the host.
    fn entry(&self, name: &Name) -> Option<(&String, &CredentialEntry)> {
        let auths = self.auths.as_ref()?;
        let mut prefix = name.as_str();
        while let Some((shorter, _)) = prefix.rsplit_once('/') {
            if let Some(entry) = auths.get_key_value(prefix) {
                return Some(entry);
            }
            prefix = shorter;
        }
        let host = bare_host(name.host()?);
        auths.get_key_value(prefix).or_else(|| {
            // The file may have several spellings of one host. Taking the smallest makes the choice deterministic.
            let keys: BTreeSet<&String> =
                auths.keys().filter(|key| is_whole_host(key) && bare_host(key) == host).collect();
            auths.get_key_value(*keys.first()?)
        })
    }
}

/// Whether a key is for a whole registry: it is a URL, or has no path.
fn is_whole_host(key: &str) -> bool {
    key.contains("://") || !key.contains('/')
}

/// The host of a key, which may be a URL. The three names of Docker Hub count as one host.
fn bare_host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Converts a non-empty entry to credentials.
fn entry_auth(key: &str, entry: &CredentialEntry, path: &Path) -> Result<RegistryAuth, AuthError> {
    let non_empty = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(token) = non_empty(&entry.registrytoken) {
        return Ok(RegistryAuth::Bearer(token));
    }
    let entry = CredentialEntry {
        auth: non_empty(&entry.auth),
        username: non_empty(&entry.username),
        password: non_empty(&entry.password),
        identitytoken: non_empty(&entry.identitytoken),
        registrytoken: None,
    };
    let file = serde_json::json!({"auths": {key: entry}}).to_string();
    match docker_credential::get_credential_from_reader(file.as_bytes(), key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => Err(AuthError::IdentityToken { key: key.to_owned() }),
        Err(source) => Err(AuthError::Entry { path: path.to_owned(), key: key.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::AuthFiles;
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// `a:b` in base64.
    const AB: &str = "YTpi";
    /// `lab:secret` in base64.
    const LAB: &str = "bGFiOnNlY3JldA==";

    async fn find(json: &str, name: &str) -> Result<RegistryAuth, AuthError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, json).unwrap();
        AuthFiles::new(vec![path]).find(&name.parse().unwrap(), DEADLINE).await
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.to_owned(), password.to_owned())
    }

    #[tokio::test]
    async fn entries_are_found_by_every_spelling_of_the_host() {
        for (key, name) in [
            ("reg:5000", "reg:5000/a"),
            ("https://reg:5000", "reg:5000/a"),
            ("http://reg:5000/v2/", "reg:5000/a/b"),
            ("https://index.docker.io/v1/", "docker.io/library/a"),
            ("docker.io", "docker.io/library/a"),
            ("registry-1.docker.io", "docker.io/lab/a"),
            ("reg:5000/lab", "reg:5000/lab/a"),
            ("reg:5000/lab/a", "reg:5000/lab/a"),
        ] {
            let json = format!(r#"{{"auths": {{"{key}": {{"auth": "{AB}"}}}}}}"#);
            assert_eq!(find(&json, name).await.unwrap(), basic("a", "b"), "{key}");
        }
        for (key, name) in [
            ("reg:5000", "reg:5001/a"),
            ("reg:5000/lab", "reg:5000/other/a"),
            ("reg:5000/la", "reg:5000/lab/a"),
            ("example.org", "reg.example.org/a"),
        ] {
            let json = format!(r#"{{"auths": {{"{key}": {{"auth": "{AB}"}}}}}}"#);
            assert_eq!(find(&json, name).await.unwrap(), RegistryAuth::Anonymous, "{key}");
        }
    }

    #[tokio::test]
    async fn namespace_entry_takes_precedence_over_host_entry() {
        let json = format!(
            r#"{{"auths": {{"reg:5000": {{"auth": "{AB}"}}, "reg:5000/lab": {{"auth": "{LAB}"}}}}}}"#
        );
        assert_eq!(find(&json, "reg:5000/lab/x").await.unwrap(), basic("lab", "secret"));
        assert_eq!(find(&json, "reg:5000/x").await.unwrap(), basic("a", "b"));
    }

    #[tokio::test]
    async fn each_form_of_entry_is_read() {
        let entry = |fields: &str| format!(r#"{{"auths": {{"reg:1": {{{fields}}}}}}}"#);
        let plain = entry(r#""username": "u", "password": "p:q""#);
        assert_eq!(find(&plain, "reg:1/a").await.unwrap(), basic("u", "p:q"));
        let token = entry(r#""registrytoken": "t""#);
        assert_eq!(find(&token, "reg:1/a").await.unwrap(), RegistryAuth::Bearer("t".to_owned()));
        assert_eq!(find(&entry(""), "reg:1/a").await.unwrap(), RegistryAuth::Anonymous);
        assert_eq!(find("{}", "reg:1/a").await.unwrap(), RegistryAuth::Anonymous);
        let identity = entry(r#""auth": "", "identitytoken": "t""#);
        assert!(matches!(find(&identity, "reg:1/a").await, Err(AuthError::IdentityToken { .. })));
        assert!(matches!(find(&entry(r#""auth": "%%""#), "reg:1/a").await, Err(AuthError::Entry { .. })));
        assert!(matches!(find("<html>", "reg:1/a").await, Err(AuthError::Parse { .. })));
    }

    #[tokio::test]
    async fn missing_file_means_anonymous_and_unreadable_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let name: Name = "reg:1/a".parse().unwrap();
        let missing = AuthFiles::new(vec![directory.path().join("none/config.json")]);
        assert_eq!(missing.find(&name, DEADLINE).await.unwrap(), RegistryAuth::Anonymous);
        let unreadable = AuthFiles::new(vec![directory.path().to_owned()]);
        assert!(matches!(unreadable.find(&name, DEADLINE).await, Err(AuthError::Read(_))));
    }

    #[tokio::test]
    async fn error_names_a_missing_helper() {
        for json in [r#"{"credHelpers": {"reg:1": "missing"}}"#, r#"{"credsStore": "missing"}"#] {
            let error = find(json, "reg:1/a").await.unwrap_err();
            assert!(error.to_string().contains("`docker-credential-missing`"), "{error}");
            assert!(error.hint().is_some());
        }
        assert_eq!(
            find(r#"{"credHelpers": {"reg:2": "missing"}}"#, "reg:1/a").await.unwrap(),
            RegistryAuth::Anonymous
        );
        assert!(find(r#"{"credsStore": "../x"}"#, "reg:1/a").await.is_err());
    }
}
