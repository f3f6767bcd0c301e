//! `push` and `copy` with Debian's registry: digests, logins, broken connections, and other programs that read what was pushed.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;
use std::thread;

use serde_json::Value;
use support::docker_registry::{DockerRegistry, PASSWORD, USER};
use support::fixture::Fixture;
use support::images::{Images, run};
use support::program::{Program, failure};
use support::token_server::TokenServer;

/// The program with an image of the test images, under this name.
fn with_image(image: &str, name: &str) -> (Program, String) {
    let images = Images::make(&[image]);
    let copy = images.layout().copy_of(image);
    let program = Program::new();
    let digest = images.layout().digest(image);
    program.ok(&["load", copy.layout().dir().to_str().unwrap(), "--name", name]);
    (program, digest)
}

/// Runs a command with the login of [`USER`] for these registries.
fn with_login(program: &Program, registries: &[&DockerRegistry], arguments: &[&str]) -> Output {
    let file = program.dir().join("auth.json");
    for registry in registries {
        rcx_imagefs::registry::add_login(&file, registry.address(), USER, PASSWORD).unwrap();
    }
    program.command(arguments).env("REGISTRY_AUTH_FILE", file).output().unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The numbers of `push --json` and `copy --json`: blobs, sent, mounted.
fn counts(printed: &Value) -> [u64; 3] {
    ["blobs", "blobs_sent", "blobs_mounted"].map(|key| printed[key].as_u64().unwrap())
}

/// The methods of all requests that sent something, since `mark`.
fn writes(registry: &DockerRegistry, mark: usize) -> Vec<String> {
    let requests = registry.requests();
    let writes = requests[mark..].iter().filter(|one| !matches!(one.method.as_str(), "GET" | "HEAD"));
    writes.map(|one| format!("{} {}", one.method, one.path)).collect()
}

#[test]
fn pushed_image_has_the_same_digest_in_another_store_and_in_skopeo() {
    let (program, digest) = with_image("python", "lab/python:1");
    let registry = DockerRegistry::start();
    let name = registry.reference("team/python");
    let expected = format!("{name}@{digest}");
    assert_eq!(program.ok(&["push", "lab/python:1", &name]), expected);
    assert_eq!(Program::new().pull(&format!("{name}:1")), expected);
    let remote = format!("docker://{name}:1");
    let inspected = run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &remote]);
    assert_eq!(inspected.trim(), digest);
    let target = format!("dir:{}", program.dir().join("copied").display());
    run("skopeo", &["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", &remote, &target]);

    let mark = registry.mark();
    let again = program.json(&["push", "lab/python:1", &name]);
    assert_eq!(counts(&again)[1..], [0, 0]);
    let manifest = format!("PUT /v2/team/python/manifests/{digest}");
    assert_eq!(writes(&registry, mark), [manifest.as_str(), "PUT /v2/team/python/manifests/1"]);
}

#[test]
fn blobs_of_another_repository_of_the_registry_are_mounted() {
    let Fixture { images, registry, program } = Fixture::new(&["python"]);
    let reference = registry.reference("lab/python:1");
    program.pull(&reference);
    let target = registry.reference("exam/python:2");
    let pushed = program.json(&["push", &reference, &target]);
    let blobs = images.layout().layers("python").len() as u64 + 1;
    assert_eq!(counts(&pushed), [blobs, 0, blobs]);
    assert_eq!((&pushed["bytes_sent"], &pushed["tag"]), (&0.into(), &"2".into()));
    let copied = program.json(&["copy", &target, &registry.reference("third/python")]);
    assert_eq!(counts(&copied), [blobs, 0, blobs]);
    assert_eq!((&copied["digest"], &copied["tag"]), (&pushed["digest"], &"2".into()));
}

#[test]
fn push_needs_a_login_where_the_registry_requires_one() {
    let (program, digest) = with_image("small", "lab/small:1");
    let registry = DockerRegistry::start_with_password();
    let target = registry.reference("team/small:1");
    let error = program.fails(&["push", "lab/small:1", &target]);
    assert!(error.contains("not authorized") && error.contains("rcx-imagefs login"), "{error}");
    let output = with_login(&program, &[&registry], &["push", "lab/small:1", &target]);
    assert_eq!(printed(&output), registry.reference(&format!("team/small@{digest}")));
}

#[test]
fn push_and_mount_get_tokens_for_what_they_do() {
    let (program, digest) = with_image("small", "lab/small:1");
    let tokens = TokenServer::start(program.dir());
    let registry = DockerRegistry::start().serve_again("", &tokens.registry_config());
    let target = registry.reference("team/small:1");
    let output = with_login(&program, &[&registry], &["push", "lab/small:1", &target]);
    assert_eq!(printed(&output), registry.reference(&format!("team/small@{digest}")));
    let requests = tokens.requests();
    assert_eq!(requests.len(), 1, "one token is enough for an image: {requests:?}");
    assert!(requests[0].contains("scope=repository%3Ateam%2Fsmall%3Apull%2Cpush"), "{requests:?}");

    let other = registry.reference("other/small:1");
    let output = with_login(&program, &[&registry], &["copy", &target, &other, "--json"]);
    let copied: Value = serde_json::from_str(&printed(&output)).unwrap();
    assert_eq!(counts(&copied)[1..], [0, counts(&copied)[0]]);
}

#[test]
fn copy_between_registries_with_different_logins_copies_every_platform() {
    let images = Images::make(&["multi"]);
    let (from, to) = (DockerRegistry::start_with_password(), DockerRegistry::start_with_password());
    let index = from.push(&images.layout().image("multi"), "lab/multi:1", &["--all"]);
    let program = Program::new();
    let (source, target) = (from.reference("lab/multi:1"), to.reference("lab/multi"));
    let error = failure(&with_login(&program, &[&from], &["copy", &source, &target]), &["copy"]);
    assert!(error.contains(&format!("{target}: blob ")) && error.contains("not authorized"), "{error}");

    let copied = printed(&with_login(&program, &[&from, &to], &["copy", &source, &target, "--json"]));
    let copied: Value = serde_json::from_str(&copied).unwrap();
    assert_eq!((&copied["digest"], &copied["manifests"]), (&index.clone().into(), &3.into()));
    assert!(!program.store().exists(), "the store is not used");
    for (platform, image) in [("linux/arm64", "small-arm64"), ("linux/amd64", "small")] {
        let other = Program::new();
        let pull = ["pull", "--any-platform", "--platform", platform, &format!("{target}:1")];
        let pulled = printed(&with_login(&other, &[&to], &pull));
        assert_eq!(pulled, format!("{target}@{}", images.layout().digest(image)));
    }

    let one = to.reference("lab/arm:1");
    let arguments = ["copy", "--platform", "linux/arm64", &source, &one];
    let copied = printed(&with_login(&program, &[&from, &to], &arguments));
    assert_eq!(copied, to.reference(&format!("lab/arm@{}", images.layout().digest("small-arm64"))));
}

#[test]
fn image_of_an_index_is_pushed_alone_and_the_user_is_told() {
    let images = Images::make(&["multi"]);
    let registry = DockerRegistry::start();
    let index = registry.push(&images.layout().image("multi"), "lab/multi:1", &["--all"]);
    let program = Program::new();
    let pulled = program.pull(&registry.reference("lab/multi:1"));
    let output = program.run(&["push", &registry.reference("lab/multi:1"), &registry.reference("lab/one:1")]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(printed(&output), pulled.replace("lab/multi", "lab/one"));
    assert!(warning.contains(&format!("from the index {index}")) && warning.contains("`copy`"), "{warning}");
}

#[test]
fn manifest_of_docker_is_pushed_unchanged() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let digest = registry.push(&images.layout().image("small"), "lab/docker:1", &["--format", "v2s2"]);
    let program = Program::new();
    program.pull(&registry.reference("lab/docker:1"));
    let other = DockerRegistry::start();
    let target = other.reference("lab/docker:1");
    program.ok(&["push", &registry.reference("lab/docker:1"), &target]);
    let manifest = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{target}")]);
    assert!(manifest.contains("application/vnd.docker.distribution.manifest.v2+json"), "{manifest}");
    assert_eq!(Program::new().pull(&target), other.reference(&format!("lab/docker@{digest}")));
}

/// Forwards connections on a port of loopback to a server, but closes the first one that has sent so many bytes.
fn breaking_proxy(to: String, after: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(&to).unwrap();
            let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut answers, &mut back));
            let broken = std::sync::Arc::clone(&broken);
            thread::spawn(move || {
                let (mut client, mut server) = (client, server);
                let mut sent = 0;
                let mut bytes = [0; 16 << 10];
                while let Ok(count) = client.read(&mut bytes) {
                    sent += count as u64;
                    let is_first =
                        sent > after && !broken.swap(sent > after, std::sync::atomic::Ordering::SeqCst);
                    if count == 0 || is_first || server.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

#[test]
fn push_over_a_broken_connection_goes_on() {
    let (program, digest) = with_image("python", "lab/python:1");
    let registry = DockerRegistry::start();
    let proxy = breaking_proxy(registry.address().to_owned(), 20 << 20);
    let pushed = program.ok(&["push", "lab/python:1", &format!("{proxy}/lab/python")]);
    assert_eq!(pushed, format!("{proxy}/lab/python@{digest}"));
    let asked = registry.requests();
    let asked = asked.iter().filter(|one| one.method == "GET" && one.path.contains("/uploads/")).count();
    assert!(asked > 0, "no connection was broken");
    assert_eq!(
        Program::new().pull(&registry.reference("lab/python:1")),
        registry.reference(&format!("lab/python@{digest}"))
    );
}
