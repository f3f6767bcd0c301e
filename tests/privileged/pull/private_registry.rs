//! `scripts/registry`: who may do what, and what is kept.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::child::Server;
use support::images::{Images, Layout, run};
use support::program::Program;
use support::repository;

/// A registry that the script has made, with the users `builder` and `worker`, who have their names as passwords.
struct PrivateRegistry {
    program: Program,
    layout: Layout,
    address: String,
}

fn script(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(repository().join("scripts/registry"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A call that reads no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ok(arguments: &[&str], input: &str) -> String {
    let output = script(arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stderr
}

#[track_caller]
fn fails(arguments: &[&str]) -> String {
    let output = script(arguments, "");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl PrivateRegistry {
    fn new() -> Self {
        let program = Program::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let this = Self {
            program,
            layout: Images::make(&["small", "sparse"]).layout(),
            address: format!("127.0.0.1:{port}"),
        };
        ok(&["setup", &this.dir(), "--name", &this.address], "");
        ok(&["user", &this.dir(), "push", "builder"], "builder\n");
        ok(&["user", &this.dir(), "pull", "worker"], "worker");
        let certificates = this.certificates();
        fs::create_dir_all(&certificates).unwrap();
        fs::copy(Path::new(&this.dir()).join("ca.crt"), certificates.join("ca.crt")).unwrap();
        this
    }

    fn dir(&self) -> String {
        self.program.dir().join("registry").display().to_string()
    }

    fn certificates(&self) -> PathBuf {
        self.program.dir().join(".config/containers/certs.d").join(&self.address)
    }

    fn serve(&self, dir: &str) -> Server {
        let mut command = Command::new(repository().join("scripts/registry"));
        command.args(["serve", dir]);
        let mut server = Server::start(&command, &self.program.dir().join("log"));
        assert_eq!(server.line().unwrap(), format!("serving {}", self.address));
        server
    }

    fn push(&self, image: &str, name: &str, user: &str) -> Output {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy", "--dest-creds", &format!("{user}:{user}")]);
        command.arg("--dest-cert-dir").arg(self.certificates());
        command.arg(self.layout.image(image)).arg(format!("docker://{}/{name}", self.address));
        command.output().unwrap()
    }

    /// The digest of a tag, as a user sees it.
    fn digest(&self, name: &str) -> String {
        let (image, certificates) = (format!("docker://{}/{name}", self.address), self.certificates());
        let certificates = certificates.to_str().unwrap();
        let arguments =
            ["inspect", "--creds", "worker:worker", "--cert-dir", certificates, "--format", "{{.Digest}}"];
        run("skopeo", &[&arguments[..], &[&image]].concat()).trim().to_owned()
    }

    fn manifests(&self, repository: &str) -> PathBuf {
        Path::new(&self.dir())
            .join("data/docker/registry/v2/repositories")
            .join(repository)
            .join("_manifests")
    }
}

#[test]
fn private_registry_lets_one_user_write_and_the_other_read_and_nobody_delete() {
    let registry = PrivateRegistry::new();
    let mut server = registry.serve(&registry.dir());
    let output = registry.push("small", "env/c:1", "worker");
    assert!(!output.status.success(), "a worker must not write");
    let output = registry.push("small", "env/c:1", "builder");
    assert!(output.status.success(), "{output:?}");
    let digest = registry.digest("env/c:1");

    let reference = format!("{}/env/c:1", registry.address);
    let error = registry.program.fails(&["pull", &reference]);
    assert!(error.contains("not authorized"), "{error}");
    let mut login =
        registry.program.command(&["login", "-u", "worker", "--password-stdin", &registry.address]);
    let mut child = login.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"worker").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(registry.program.pull(&reference), format!("{}/env/c@{digest}", registry.address));

    let status = |user: &str, method: &str, path: &str| {
        let (ca, url) =
            (registry.certificates().join("ca.crt"), format!("https://{}{path}", registry.address));
        let mut command = Command::new("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-u", user, "--cacert"]);
        String::from_utf8(command.arg(ca).arg(url).output().unwrap().stdout).unwrap()
    };
    let manifest = format!("/v2/env/c/manifests/{digest}");
    assert_eq!(status("builder:builder", "DELETE", &manifest), "405");
    assert_eq!(status("worker:worker", "DELETE", &manifest), "401");
    assert_eq!(status("worker:wrong", "GET", "/v2/"), "401");
    assert_eq!(status("worker:worker", "GET", "/v2/"), "200");
    assert_eq!(status("worker:worker", "GET", "/"), "404");

    // A changed password and a removed user count at once.
    ok(&["user", &registry.dir(), "pull", "worker"], "other");
    assert_eq!(status("worker:worker", "GET", "/v2/"), "401");
    assert_eq!(status("worker:other", "GET", "/v2/"), "200");
    ok(&["user", &registry.dir(), "remove", "worker"], "");
    assert_eq!(status("worker:other", "GET", "/v2/"), "401");
    server.signal("TERM");
    server.wait();
    assert_eq!(status("builder:builder", "GET", "/v2/"), "000", "both programs have ended");
}

#[test]
fn private_registry_keeps_what_was_ever_tagged_and_comes_back_from_a_backup() {
    let registry = PrivateRegistry::new();
    let dir = registry.dir();
    let mut server = registry.serve(&dir);
    assert!(registry.push("small", "env/c:1", "builder").status.success());
    let old = registry.digest("env/c:1");
    assert!(registry.push("sparse", "env/c:1", "builder").status.success());
    let new = registry.digest("env/c:1");
    assert_ne!(old, new);
    assert!(fails(&["collect", &dir]).contains("runs: stop it first"));
    let archive = registry.program.dir().join("backup.tar").display().to_string();
    ok(&["backup", &dir, &archive], "");
    server.signal("TERM");
    server.wait();

    // A push that did not come to its end.
    let unfinished = registry.manifests("env/c").join("revisions/sha256").join("ab".repeat(32));
    fs::create_dir_all(&unfinished).unwrap();
    fs::write(unfinished.join("link"), format!("sha256:{}", "ab".repeat(32))).unwrap();
    let collected = ok(&["collect", &dir], "");
    assert!(collected.contains("removed 0 manifests"), "it may still come to its end: {collected}");
    run("touch", &["--date", "2 days ago", unfinished.to_str().unwrap()]);
    assert!(ok(&["collect", &dir, "--dry-run"], "").contains(&"ab".repeat(32)));
    assert!(unfinished.exists());
    assert!(ok(&["collect", &dir], "").contains("removed 1 manifests"));
    assert!(!unfinished.exists());

    let restored = registry.program.dir().join("restored").display().to_string();
    for dir in [&dir, &restored] {
        if dir == &restored {
            ok(&["restore", &archive, &restored], "");
        }
        let mut server = registry.serve(dir);
        assert_eq!(registry.digest("env/c:1"), new);
        assert_eq!(registry.digest(&format!("env/c@{old}")), old, "the tag has moved");
        assert!(registry.push("small", "env/other:1", "builder").status.success());
        server.signal("TERM");
        server.wait();
    }
}

#[test]
fn private_registry_refuses_what_it_cannot_do() {
    let program = Program::new();
    let path = |name: &str| program.dir().join(name).display().to_string();
    let dir = path("registry");
    for (arguments, message) in [
        (vec!["serve", &dir], "is no registry"),
        (vec!["collect", &dir], "is no registry"),
        (vec!["setup", &dir], "--name takes HOST or HOST:PORT, not ''"),
        (vec!["setup", &dir, "--name", "a b"], "not 'a b'"),
        (vec!["setup", &dir, "--name", "localhost:1", "--key", "/k"], "together"),
        (vec!["restore", &path("no.tar"), &dir], "cannot read"),
        (vec!["frobnicate"], "usage: scripts/registry setup"),
    ] {
        let error = fails(&arguments);
        assert!(error.contains(message), "{arguments:?}: {error}");
        assert!(!Path::new(&dir).join("registry.yml").exists(), "{arguments:?}");
    }
    ok(&["setup", &dir, "--name", "localhost:1"], "");
    assert!(fails(&["setup", &dir, "--name", "localhost:1"]).contains("is a registry already"));
    assert!(fails(&["user", &dir, "push", "a:b"]).contains("not 'a:b'"));
    assert!(fails(&["user", &dir, "push", "a"]).contains("password"));
    assert!(fails(&["user", &dir, "remove", "a"]).contains("there is no user a"));
    let archive = path("backup.tar");
    ok(&["backup", &dir, &archive], "");
    let bytes = fs::read(&archive).unwrap();
    // In the middle of a file, and between two files.
    for (name, length) in [("other", bytes.len() / 3), ("another", 512)] {
        fs::write(path("cut.tar"), &bytes[..length]).unwrap();
        let error = fails(&["restore", &path("cut.tar"), &path(name)]);
        assert!(error.contains("cut.tar") && error.contains(&path(name)), "{error}");
        assert!(!Path::new(&path(name)).join("registry.yml").exists());
    }
    assert!(fails(&["restore", &archive, &dir]).contains("is a registry already"));
}
