//! Reads credential files: `config.json` of docker and `auth.json` of podman.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::credential_helper::{helper_program, run_helper};
use super::error::AuthError;
use super::login::{Login, LoginSecret, decode};
use super::warn_once;
use crate::image::DOCKER_HUB;
use crate::os::PathError;

/// The key of Docker Hub in docker's files and helpers. It is older than the current registry protocol.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Maximum number of bytes that are read from a credential file.
const FILE_MAX: u64 = 4 << 20;

/// The permission bits of other users.
const MODE_OTHERS: u32 = 0o006;

/// The fields of a credential file that this program reads.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CredentialFile {
    auths: Option<HashMap<String, CredentialEntry>>,
    cred_helpers: Option<HashMap<String, String>>,
    creds_store: Option<String>,
}

/// The entry of a registry. All fields are empty if a helper stores the login.
#[derive(Deserialize, Default)]
#[serde(default)]
struct CredentialEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl CredentialEntry {
    fn is_empty(&self) -> bool {
        let fields = [&self.auth, &self.username, &self.password, &self.identitytoken, &self.registrytoken];
        fields.into_iter().flatten().all(String::is_empty)
    }

    /// Converts a non-empty entry. A token takes precedence: beside it, `auth` has only a placeholder.
    fn secret(&self) -> Result<LoginSecret, &'static str> {
        let non_empty = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = non_empty(&self.registrytoken) {
            return Ok(LoginSecret::RegistryToken(token));
        }
        if let Some(token) = non_empty(&self.identitytoken) {
            return Ok(LoginSecret::IdentityToken(token));
        }
        let (user, password) = match non_empty(&self.auth) {
            Some(auth) => decode(&auth)?,
            None => (
                non_empty(&self.username).ok_or("it has no user name")?,
                non_empty(&self.password).ok_or("it has no password")?,
            ),
        };
        Ok(LoginSecret::Password { user, password })
    }
}

impl CredentialFile {
    /// Reads a file; `None` if it does not exist.
    pub(super) async fn read(path: &Path) -> Result<Option<Self>, AuthError> {
        let read = async {
            let file = tokio::fs::File::open(path).await?;
            let mode = file.metadata().await?.mode();
            let mut bytes = Vec::new();
            file.take(FILE_MAX).read_to_end(&mut bytes).await?;
            Ok((mode, bytes))
        };
        let (mode, bytes) = match read.await {
            Ok(result) => result,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(PathError::new("read", path, error).into()),
        };
        let file = Self::parse(path, &bytes)?;
        if mode & MODE_OTHERS != 0 && file.has_secrets() {
            let path = path.display();
            warn_once(format!(
                "{path} contains logins and is accessible to other users; protect it with `chmod go= {path}`"
            ));
        }
        Ok(Some(file))
    }

    /// Parses the content of a file. An empty file has no logins.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, AuthError> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes).map_err(|source| AuthError::Parse { path: path.to_owned(), source })
    }

    fn has_secrets(&self) -> bool {
        self.auths.iter().flatten().any(|(_, entry)| !entry.is_empty())
    }

    /// Returns the login for a repository: from its helper, its entry or the default helper, in this order.
    pub(super) async fn find(
        &self,
        path: &Path,
        host: &str,
        repository: &str,
        deadline: Duration,
    ) -> Result<Option<Login>, AuthError> {
        let server = if bare_host(host) == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        if let Some(helper) = self.host_helper(host)
            && let Some(login) = ask_helper(helper, server, path, deadline).await?
        {
            return Ok(Some(login));
        }
        if let Some((key, entry)) = self.entry(host, repository)
            && !entry.is_empty()
        {
            let secret = entry.secret().map_err(|reason| AuthError::Entry {
                path: path.to_owned(),
                key: key.to_owned(),
                reason,
            })?;
            return Ok(Some(Login { secret, origin: format!("from {}", path.display()) }));
        }
        match self.default_helper() {
            Some(store) => ask_helper(store, server, path, deadline).await,
            None => Ok(None),
        }
    }

    fn host_helper(&self, host: &str) -> Option<&str> {
        let mut helpers = self.cred_helpers.iter().flatten();
        let found = helpers.find(|(key, helper)| bare_host(key) == bare_host(host) && !helper.is_empty());
        found.map(|(_, helper)| helper.as_str())
    }

    fn default_helper(&self) -> Option<&str> {
        self.creds_store.as_deref().filter(|store| !store.is_empty())
    }

    /// The program that stores the logins for a host, if the file names one.
    pub(super) fn helper_of(&self, host: &str) -> Option<String> {
        self.host_helper(host).or(self.default_helper()).map(helper_program)
    }

    /// The entry for a repository. An entry for a namespace (`host/lab`), as podman writes it, takes precedence over
    /// the entry for the host.
    fn entry(&self, host: &str, repository: &str) -> Option<(&String, &CredentialEntry)> {
        let auths = self.auths.as_ref()?;
        let name = format!("{host}/{repository}");
        let mut prefix = name.as_str();
        while prefix.len() > host.len() {
            if let Some(entry) = auths.get_key_value(prefix) {
                return Some(entry);
            }
            prefix = prefix.rsplit_once('/').map_or("", |(shorter, _)| shorter);
        }
        auths.get_key_value(host).or_else(|| {
            // The file may have several spellings of one host. Taking the smallest makes the choice deterministic.
            let is_same = |key: &&String| is_whole_host(key) && bare_host(key) == bare_host(host);
            let keys: BTreeSet<&String> = auths.keys().filter(is_same).collect();
            auths.get_key_value(*keys.first()?)
        })
    }
}

/// Runs a helper. One that is missing, or that this host cannot execute, is a warning: the image may not need a login.
async fn ask_helper(
    helper: &str,
    server: &str,
    path: &Path,
    deadline: Duration,
) -> Result<Option<Login>, AuthError> {
    match run_helper(helper, server, path, deadline).await {
        Err(AuthError::HelperStart { helper, source, .. })
            if source.kind() != io::ErrorKind::InvalidInput =>
        {
            let path = path.display();
            let problem = match source.kind() {
                io::ErrorKind::NotFound => "is not installed".to_owned(),
                _ => format!("cannot be run: {source}"),
            };
            warn_once(format!(
                "the credential helper `{helper}` (named in {path}) {problem}; going on without it"
            ));
            Ok(None)
        }
        result => result,
    }
}

/// Whether a key is for a whole registry: it is a URL, or has no path.
pub(super) fn is_whole_host(key: &str) -> bool {
    key.contains("://") || !key.contains('/')
}

/// The host of a key, which may be a URL. The three names of Docker Hub count as one host.
pub(super) fn bare_host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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

    async fn find(json: &str, name: &str) -> Result<Option<LoginSecret>, AuthError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, json).unwrap();
        let (host, repository) = name.split_once('/').unwrap();
        let login = AuthFiles::new(vec![path]).find(host, repository, DEADLINE).await?;
        Ok(login.map(|login| login.secret))
    }

    fn password(user: &str, password: &str) -> Option<LoginSecret> {
        Some(Login::typed(user, password).secret)
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
            assert_eq!(find(&json, name).await.unwrap(), password("a", "b"), "{key}");
        }
        for (key, name) in [
            ("reg:5000", "reg:5001/a"),
            ("reg:5000/lab", "reg:5000/other/a"),
            ("reg:5000/la", "reg:5000/lab/a"),
            ("example.org", "reg.example.org/a"),
        ] {
            let json = format!(r#"{{"auths": {{"{key}": {{"auth": "{AB}"}}}}}}"#);
            assert_eq!(find(&json, name).await.unwrap(), None, "{key}");
        }
    }

    #[tokio::test]
    async fn namespace_entry_takes_precedence_over_host_entry() {
        let json = format!(
            r#"{{"auths": {{"reg:5000": {{"auth": "{AB}"}}, "reg:5000/lab": {{"auth": "{LAB}"}}}}}}"#
        );
        assert_eq!(find(&json, "reg:5000/lab/x").await.unwrap(), password("lab", "secret"));
        assert_eq!(find(&json, "reg:5000/x").await.unwrap(), password("a", "b"));
    }

    #[tokio::test]
    async fn each_form_of_entry_is_read() {
        let entry = |fields: &str| format!(r#"{{"auths": {{"reg:1": {{{fields}}}}}}}"#);
        let plain = entry(r#""username": "u", "password": "p:q""#);
        assert_eq!(find(&plain, "reg:1/a").await.unwrap(), password("u", "p:q"));
        let token = entry(r#""registrytoken": "t""#);
        assert_eq!(find(&token, "reg:1/a").await.unwrap(), Some(LoginSecret::RegistryToken("t".to_owned())));
        let identity = entry(&format!(r#""auth": "{AB}", "identitytoken": "t""#));
        assert_eq!(
            find(&identity, "reg:1/a").await.unwrap(),
            Some(LoginSecret::IdentityToken("t".to_owned()))
        );
        for nothing in [entry("").as_str(), "{}", "", " \n", r#"{"auths": null}"#] {
            assert_eq!(find(nothing, "reg:1/a").await.unwrap(), None, "{nothing}");
        }
        for malformed in [r#""auth": "%%""#, r#""auth": "YWI=""#, r#""username": "u""#] {
            let error = find(&entry(malformed), "reg:1/a").await.unwrap_err();
            assert!(matches!(error, AuthError::Entry { .. }), "{malformed}: {error}");
        }
        let error = find("<html>", "reg:1/a").await.unwrap_err();
        assert!(
            matches!(error, AuthError::Parse { .. }) && error.to_string().contains("config.json"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn missing_file_means_anonymous_and_unreadable_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let missing = AuthFiles::new(vec![directory.path().join("none/config.json")]);
        assert_eq!(missing.find("reg:1", "a", DEADLINE).await.unwrap(), None);
        let unreadable = AuthFiles::new(vec![directory.path().to_owned()]);
        assert!(matches!(unreadable.find("reg:1", "a", DEADLINE).await, Err(AuthError::File(_))));
    }

    #[tokio::test]
    async fn missing_helper_is_passed_over() {
        let helper = r#"{"credHelpers": {"reg:1": "missing"}}"#;
        assert_eq!(find(helper, "reg:1/a").await.unwrap(), None);
        assert_eq!(find(r#"{"credsStore": "missing"}"#, "reg:1/a").await.unwrap(), None);
        let both =
            format!(r#"{{"credHelpers": {{"reg:1": "missing"}}, "auths": {{"reg:1": {{"auth": "{AB}"}}}}}}"#);
        assert_eq!(find(&both, "reg:1/a").await.unwrap(), password("a", "b"));
        assert!(find(r#"{"credsStore": "../x"}"#, "reg:1/a").await.is_err());
    }
}
