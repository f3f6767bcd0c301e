//! Credentials for a registry: from docker's and podman's files, and from the helper programs these name.
//!
//! They are looked up when a registry asks for them and not before, so a broken helper does not stand in the way of images
//! that need no login. Helpers are run here, not by `docker_credential`, which has no deadline and leaves a helper that
//! hangs running; reading what an entry of a file holds is its part.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use docker_credential::DockerCredential;
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::message::readable;
use crate::image::{DOCKER_HUB, Name};

/// Docker Hub's key in docker's files and helpers; it is older than the registry protocol in use.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Longest credential file, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The user name by which a helper says that the secret is a token to get tokens with.
const TOKEN_USER: &str = "<token>";

/// Why credentials that seem to be there cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file with credentials cannot be read.
    #[error("file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file with credentials is no JSON of the right form.
    #[error("file {}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A registry's entry holds nothing usable.
    #[error("file {}: entry `{key}`", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Key of the entry.
        key: String,
        /// Why.
        source: docker_credential::CredentialRetrievalError,
    },
    /// A helper cannot be run.
    #[error("credential helper `{helper}` (named in {}) cannot be run", .path.display())]
    HelperStart {
        /// Name of the program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A helper ended with an error.
    #[error("credential helper `{helper}` ends with {status}: {message}")]
    HelperFailed {
        /// Name of the program.
        helper: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
    /// A helper did not end in time.
    #[error("credential helper `{helper}` does not answer within {} s", .after.as_secs_f32())]
    HelperDeadline {
        /// Name of the program.
        helper: String,
        /// How long was waited.
        after: Duration,
    },
    /// A helper wrote something other than credentials.
    #[error("credential helper `{helper}` answers with something other than credentials")]
    HelperAnswer {
        /// Name of the program.
        helper: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Only a refresh token is stored.
    #[error("only an identity token is stored for `{key}`, which cannot be used to pull")]
    IdentityToken {
        /// Key of the entry.
        key: String,
    },
}

impl AuthError {
    /// What the user may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HelperStart { helper, path, .. } => {
                Some(format!("install `{helper}`, or take it out of {}", path.display()))
            }
            Self::IdentityToken { .. } => {
                Some("log in with a user name and a password or access token".to_owned())
            }
            _ => None,
        }
    }
}

/// The files in which credentials are looked for, in order; the first that has some for a registry counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFiles(Vec<PathBuf>);

impl AuthFiles {
    /// Those that docker and podman write for this user: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, then
    /// `$REGISTRY_AUTH_FILE` or `$XDG_RUNTIME_DIR/containers/auth.json`.
    #[must_use]
    pub fn of_user() -> Self {
        Self::from_variables(|name| {
            std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        })
    }

    /// These files alone.
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

    /// The credentials for a repository; anonymous where no file has any.
    pub(super) async fn find(&self, name: &Name, deadline: Duration) -> Result<RegistryAuth, AuthError> {
        for path in &self.0 {
            let Some(file) = File::read(path).await? else { continue };
            if let Some(found) = file.find(path, name, deadline).await? {
                tracing::debug!(file = %path.display(), registry = name.host(), "found credentials");
                return Ok(found);
            }
        }
        Ok(RegistryAuth::Anonymous)
    }
}

/// What is read of such a file.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: Option<HashMap<String, Entry>>,
    cred_helpers: Option<HashMap<String, String>>,
    creds_store: Option<String>,
}

/// A registry's entry; all empty where the credentials are in a store.
#[derive(Deserialize, Serialize, Default, Clone)]
#[serde(default)]
struct Entry {
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

impl Entry {
    fn is_empty(&self) -> bool {
        let fields = [&self.auth, &self.username, &self.password, &self.identitytoken, &self.registrytoken];
        fields.into_iter().flatten().all(String::is_empty)
    }
}

impl File {
    /// Reads a file; `None` where there is none, as docker has it.
    async fn read(path: &Path) -> Result<Option<Self>, AuthError> {
        use tokio::io::AsyncReadExt as _;
        let read = async {
            let mut bytes = Vec::new();
            tokio::fs::File::open(path).await?.take(FILE_MAX).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        let bytes = match read.await {
            Ok(bytes) => bytes,
            Err(error) if missing(&error) => return Ok(None),
            Err(source) => return Err(AuthError::Read { path: path.to_owned(), source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| AuthError::Parse { path: path.to_owned(), source })
    }

    async fn find(
        &self,
        path: &Path,
        name: &Name,
        deadline: Duration,
    ) -> Result<Option<RegistryAuth>, AuthError> {
        let host = name.host().unwrap_or_default();
        let server = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        let own_helper = self
            .cred_helpers
            .iter()
            .flatten()
            .find(|(key, helper)| bare_host(key) == bare_host(host) && !helper.is_empty())
            .map(|(_, helper)| helper);
        if let Some(helper) = own_helper {
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

    /// The entry for a repository: podman also has some for a namespace (`host/lab`), which go before the host's.
    fn entry(&self, name: &Name) -> Option<(&String, &Entry)> {
        let auths = self.auths.as_ref()?;
        let mut prefix = name.as_str();
        while let Some((shorter, _)) = prefix.rsplit_once('/') {
            if let Some(found) = auths.get_key_value(prefix) {
                return Some(found);
            }
            prefix = shorter;
        }
        let host = bare_host(name.host()?);
        auths.get_key_value(prefix).or_else(|| {
            // Several spellings of one host may be there; the smallest is taken, to be the same each time.
            let keys: BTreeSet<&String> =
                auths.keys().filter(|key| is_whole_host(key) && bare_host(key) == host).collect();
            auths.get_key_value(*keys.first()?)
        })
    }
}

/// Whether a key means a whole registry: a URL, or no path at all.
fn is_whole_host(key: &str) -> bool {
    key.contains("://") || !key.contains('/')
}

/// The host of a key, which may be a URL; Docker Hub's three names are one.
fn bare_host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn entry_auth(key: &str, entry: &Entry, path: &Path) -> Result<RegistryAuth, AuthError> {
    let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(token) = filled(&entry.registrytoken) {
        return Ok(RegistryAuth::Bearer(token));
    }
    let entry = Entry {
        auth: filled(&entry.auth),
        username: filled(&entry.username),
        password: filled(&entry.password),
        identitytoken: filled(&entry.identitytoken),
        registrytoken: None,
    };
    let alone = serde_json::json!({"auths": {key: entry}}).to_string();
    match docker_credential::get_credential_from_reader(alone.as_bytes(), key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => Err(AuthError::IdentityToken { key: key.to_owned() }),
        Err(source) => Err(AuthError::Entry { path: path.to_owned(), key: key.to_owned(), source }),
    }
}

/// Asks `docker-credential-NAME get`, in the protocol of docker/docker-credential-helpers; `None` if it knows nothing.
async fn run_helper(
    name: &str,
    server: &str,
    path: &Path,
    deadline: Duration,
) -> Result<Option<RegistryAuth>, AuthError> {
    let helper = format!("docker-credential-{name}");
    // A name with a slash would run a program from anywhere; docker looks in PATH only.
    if name.contains('/') {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "its name has a slash");
        return Err(AuthError::HelperStart { helper, path: path.to_owned(), source });
    }
    ask(Command::new(&helper), &helper, server, path, deadline).await
}

async fn ask(
    mut program: Command,
    helper: &str,
    server: &str,
    path: &Path,
    deadline: Duration,
) -> Result<Option<RegistryAuth>, AuthError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        secret: String,
    }
    let helper = helper.to_owned();
    let start = |source| AuthError::HelperStart { helper: helper.clone(), path: path.to_owned(), source };
    let mut child = program
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let run = async {
        // A helper that ends without reading is judged by how it ends.
        if let Err(error) = stdin.write_all(server.as_bytes()).await {
            tracing::debug!(%error, helper, "does not read its input");
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(deadline, run).await {
        Ok(output) => output.map_err(start)?,
        Err(_) => return Err(AuthError::HelperDeadline { helper, after: deadline }),
    };
    if !output.status.success() {
        // Helpers write their errors to stdout; this one is part of the protocol.
        let said = [output.stdout, output.stderr].concat();
        let message = readable(&said);
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(AuthError::HelperFailed { helper, status: output.status, message });
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|source| AuthError::HelperAnswer { helper: helper.clone(), source })?;
    match (answer.username.as_str(), answer.secret.as_str()) {
        ("", "") => Ok(None),
        (TOKEN_USER, _) => Err(AuthError::IdentityToken { key: server.to_owned() }),
        _ => Ok(Some(RegistryAuth::Basic(answer.username, answer.secret))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// `a:b` and `lab:secret` in base64.
    const AB: &str = "YTpi";
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
    async fn namespace_goes_before_host() {
        let json = format!(
            r#"{{"auths": {{"reg:5000": {{"auth": "{AB}"}}, "reg:5000/lab": {{"auth": "{LAB}"}}}}}}"#
        );
        assert_eq!(find(&json, "reg:5000/lab/x").await.unwrap(), basic("lab", "secret"));
        assert_eq!(find(&json, "reg:5000/x").await.unwrap(), basic("a", "b"));
    }

    #[tokio::test]
    async fn each_form_of_an_entry_is_read() {
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
    async fn missing_file_is_anonymous_and_unreadable_one_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let name: Name = "reg:1/a".parse().unwrap();
        let missing = AuthFiles::new(vec![directory.path().join("none/config.json")]);
        assert_eq!(missing.find(&name, DEADLINE).await.unwrap(), RegistryAuth::Anonymous);
        let unreadable = AuthFiles::new(vec![directory.path().to_owned()]);
        assert!(matches!(unreadable.find(&name, DEADLINE).await, Err(AuthError::Read { .. })));
    }

    #[test]
    fn files_are_those_of_docker_and_podman() {
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

    #[tokio::test]
    async fn missing_helper_is_named() {
        for json in [r#"{"credHelpers": {"reg:1": "is-not-there"}}"#, r#"{"credsStore": "is-not-there"}"#] {
            let error = find(json, "reg:1/a").await.unwrap_err();
            assert!(error.to_string().contains("`docker-credential-is-not-there`"), "{error}");
            assert!(error.hint().is_some());
        }
        assert_eq!(
            find(r#"{"credHelpers": {"reg:2": "is-not-there"}}"#, "reg:1/a").await.unwrap(),
            RegistryAuth::Anonymous
        );
        assert!(find(r#"{"credsStore": "../x"}"#, "reg:1/a").await.is_err());
    }

    /// Asks a helper that is a shell script.
    async fn helper(script: &str, deadline: Duration) -> Result<Option<RegistryAuth>, AuthError> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("helper");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        ask(Command::new(program), "docker-credential-test", "reg:1", Path::new("config.json"), deadline)
            .await
    }

    #[tokio::test]
    async fn helper_gets_the_server_and_gives_the_credentials() {
        let script = r#"test "$1" = get || exit 9; read -r server; echo "{\"ServerURL\":\"x\",\"Username\":\"$server\",\"Secret\":\"s\"}""#;
        assert_eq!(helper(script, DEADLINE).await.unwrap(), Some(basic("reg:1", "s")));
        let nothing = "echo credentials not found in native keychain; exit 1";
        assert_eq!(helper(nothing, DEADLINE).await.unwrap(), None);
        let token = r#"echo '{"Username":"<token>","Secret":"s"}'"#;
        assert!(matches!(helper(token, DEADLINE).await, Err(AuthError::IdentityToken { .. })));
    }

    #[tokio::test]
    async fn failing_or_hanging_helper_is_an_error_that_names_it() {
        let failed = helper("echo locked >&2; exit 3", DEADLINE).await.unwrap_err().to_string();
        assert!(failed.contains("docker-credential-test") && failed.contains("locked"), "{failed}");
        assert!(matches!(helper("echo hello", DEADLINE).await, Err(AuthError::HelperAnswer { .. })));
        let hangs = helper("exec sleep 1000", Duration::from_millis(50)).await;
        assert!(matches!(hangs, Err(AuthError::HelperDeadline { .. })));
    }
}
