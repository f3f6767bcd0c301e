//! Debian's `docker-registry`, on a free loopback port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::child::{Server, wait_until};
use crate::images::{Layout, run};

/// The only user of a registry with a password.
pub const USER: &str = "reader";
/// The password of [`USER`].
pub const PASSWORD: &str = "open sesame";
/// The bcrypt hash of [`PASSWORD`].
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

/// A registry for one test. Its port changes from run to run; tests may damage its storage on disk.
#[derive(Debug)]
pub struct DockerRegistry {
    address: String,
    // Dropped before its working directory.
    server: Server,
    dir: TempDir,
    password: bool,
}

/// A request that the registry has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The HTTP status of the answer.
    pub status: u16,
    /// Length of the body that was sent.
    pub bytes: u64,
}

impl DockerRegistry {
    /// Starts an empty registry without authentication.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// Starts an empty registry that requires [`USER`] and [`PASSWORD`].
    pub fn start_with_password() -> Self {
        Self::start_with(true)
    }

    /// Starts another registry with the content of this one, to pull from. `http` is added to the object `http` of its
    /// configuration (`, KEY: VALUE`), and `auth` is a line of the configuration.
    pub fn serve_again(&self, http: &str, auth: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-registry").tempdir().expect("temporary directory");
        let (server, address) = Self::serve(dir.path(), &self.dir.path().join("data"), http, auth);
        Self { address, server, dir, password: false }
    }

    fn start_with(password: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("rcx-registry").tempdir().expect("temporary directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("make the registry's storage");
        let mut auth = String::new();
        if password {
            let file = dir.path().join("htpasswd");
            fs::write(&file, format!("{USER}:{PASSWORD_HASH}\n")).expect("write the registry's users");
            auth = format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", file.display());
        }
        let (server, address) = Self::serve(dir.path(), &data, "", &auth);
        Self { address, server, dir, password }
    }

    /// Starts the server with its configuration and log in `dir`.
    fn serve(dir: &Path, data: &Path, http: &str, auth: &str) -> (Server, String) {
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: info }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: \"127.0.0.1:0\"{http} }}\n{auth}",
            data.display()
        );
        fs::write(&config, text).expect("write the registry's configuration");
        let log = dir.join("log");
        // The access log goes to stdout and everything else to stderr; both are needed in one file.
        let mut command = Command::new("sh");
        command.args(["-c", "exec docker-registry serve \"$0\" >>\"$1\" 2>&1"]).arg(&config).arg(&log);
        let mut server = Server::start(&command, &log);
        let address = Self::listening(&mut server);
        (server, address)
    }

    fn listening(server: &mut Server) -> String {
        let mut address = None;
        wait_until("docker-registry (a Debian package) accepts connections", || {
            let log = server.log();
            let after = log.split("listening on ").nth(1);
            address = after.and_then(|rest| rest.split(['"', ' ', ',', '\n']).next()).map(str::to_owned);
            address.is_some()
        });
        address.expect("the wait above ends with an address")
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The reference of `REPOSITORY:TAG` or `REPOSITORY@DIGEST` in this registry.
    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Copies an image, named in skopeo's syntax, to `REPOSITORY:TAG` in this registry. Returns the digest of its manifest.
    pub fn push(&self, image: &str, to: &str, options: &[&str]) -> String {
        let digest_file = self.dir.path().join("pushed");
        let file = digest_file.display().to_string();
        let target = format!("docker://{}", self.reference(to));
        let mut arguments =
            vec!["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--digestfile", &file];
        let credentials = format!("--dest-creds={USER}:{PASSWORD}");
        if self.password {
            arguments.push(&credentials);
        }
        // Without this, skopeo recompresses layers that it takes for uncompressed ones.
        if !options.contains(&"--format") {
            arguments.push("--preserve-digests");
        }
        arguments.extend(options);
        arguments.extend([image, &target]);
        run("skopeo", &arguments);
        fs::read_to_string(digest_file).expect("skopeo wrote the digest").trim().to_owned()
    }

    /// Pushes an image of a layout. Returns the digest of its manifest.
    pub fn push_from(&self, layout: &Layout, tag: &str, to: &str) -> String {
        self.push(&layout.image(tag), to, &[])
    }

    /// The file in which the registry stores a blob or manifest.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest starts with its algorithm");
        self.storage().join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn storage(&self) -> PathBuf {
        self.dir.path().join("data/docker/registry/v2")
    }

    /// All requests answered so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.log().lines().filter_map(Request::parse).collect()
    }

    /// The number of requests answered so far: a starting point for [`Self::downloads`].
    pub fn mark(&self) -> usize {
        self.requests().len()
    }

    /// Downloads of blobs since `mark`, as (digest, status, bytes).
    pub fn downloads(&self, mark: usize) -> Vec<(String, u16, u64)> {
        let requests = self.requests();
        let blobs = requests[mark..].iter().filter(|one| one.method == "GET" && one.path.contains("/blobs/"));
        blobs
            .map(|one| (one.path.rsplit('/').next().unwrap_or_default().to_owned(), one.status, one.bytes))
            .collect()
    }
}

impl Request {
    /// Parses a line of the access log (combined log format). Returns `None` for any other line.
    fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.split('"');
        let before = quoted.next()?;
        if before.contains("level=") {
            return None;
        }
        let mut request = quoted.next()?.split(' ');
        let mut answer = quoted.next()?.split_whitespace();
        Some(Self {
            method: request.next()?.to_owned(),
            path: request.next()?.to_owned(),
            status: answer.next()?.parse().ok()?,
            bytes: answer.next()?.parse().ok()?,
        })
    }
}
