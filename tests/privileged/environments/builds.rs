//! Builds that succeed.

use std::fs;

use serde_json::Value;
use support::child::{Server, wait_until};
use support::docker_registry::{DockerRegistry, PASSWORD, USER};
use support::images::run;
use support::program::{Program, failure};

use super::BuildFixture;

#[test]
fn approved_revision_is_built_without_network_and_pushed() {
    let build = BuildFixture::new();
    let steps = "COPY file /copied\nRUN cat /copied > /made && wc -l < /proc/net/dev > /interfaces\n\
        LABEL io.rcx-imagefs.smoke=\"test -s /interfaces\"\n";
    build.approve(steps, &["--smoke", "cat /made && echo tried"]);
    let printed = build.build();
    let name = build.registry().reference("environments/env");
    let image = printed.strip_prefix("published env@1 as ").unwrap();
    assert!(image.starts_with(&format!("{name}@sha256:")), "{printed}");
    assert_eq!(build.state(1), "published");

    let result = build.result(1);
    assert_eq!((&result["outcome"], &result["image"]), (&"published".into(), &image.into()));
    let log = build.log(1);
    assert_eq!(result["log_size"], log.len());
    assert!(log.contains("COPY file /copied") && log.ends_with("of the context\ntried\n"), "{log}");

    // Another host gets the same image, whose lowest layer is that of the base.
    let worker = Program::new();
    assert_eq!(worker.pull(&format!("{name}:1")), image);
    let target = worker.dir().join("unpacked");
    worker.ok(&["unpack", image, target.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(target.join("made")).unwrap(), "of the context\n");
    // Two lines of headings, and the loopback interface.
    assert_eq!(fs::read_to_string(target.join("interfaces")).unwrap().trim(), "3");
    let remote = format!("docker://{name}:1");
    let layers = run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Layers}}", &remote]);
    assert!(layers.contains(&build.fixture.images.layout().layers("small")[0]), "{layers}");
}

#[test]
fn same_dockerfile_gives_the_same_digest_and_needs_no_registry_for_a_base_of_the_store() {
    let build = BuildFixture::new();
    build.configure("");
    let steps = "COPY file /copied\nRUN mkdir /a && echo x > /a/b\n";
    build.approve(steps, &[]);
    let first = build.build();
    let image = |printed: &str| printed.split(" as ").nth(1).unwrap().to_owned();
    assert!(image(&first).starts_with("localhost/env@sha256:"), "{first}");
    let mark = build.registry().mark();
    build.approve(steps, &["--smoke", "true"]);
    let approved = build.registry().requests().len();
    assert!(approved > mark, "an approval asks for the digest of the base");
    let second = build.build();
    assert_eq!(image(&second), image(&first));
    assert_eq!(build.registry().requests().len(), approved);
}

#[test]
fn image_of_a_build_whose_push_failed_is_only_pushed_the_next_time() {
    let build = BuildFixture::new();
    let registry = DockerRegistry::start_with_password();
    build.configure(&format!("registry = '{}'\n", registry.reference("lab")));
    build.approve("RUN head -c 16 /dev/urandom | od > /random\n", &[]);
    let error = build.build_fails();
    assert!(error.contains(&format!("push env@1 to {}", registry.reference("lab/env"))), "{error}");
    assert_eq!(build.state(1), "approved");
    let built: Value =
        serde_json::from_slice(&fs::read(build.revision(1).join("built.json")).unwrap()).unwrap();
    let log = build.log(1);

    let logins = build.fixture.program.dir().join("auth.json");
    rcx_imagefs::registry::add_login(&logins, registry.address(), USER, PASSWORD).unwrap();
    let output = build.command(&[]).env("REGISTRY_AUTH_FILE", &logins).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let expected = format!("{}@{}", registry.reference("lab/env"), built["digest"].as_str().unwrap());
    assert_eq!(printed.trim_end(), format!("published env@1 as {expected}"));
    assert_eq!((build.state(1).as_str(), build.log(1)), ("published", log));
    assert_eq!(build.result(1)["seconds"], built["seconds"]);
}

#[test]
fn watching_builder_is_the_only_one_and_ends_with_a_signal() {
    let build = BuildFixture::new();
    let log = build.fixture.program.dir().join("builder.log");
    build.approve("RUN echo first > /first\n", &[]);
    let mut builder = Server::start(&build.command(&["--watch"]), &log);
    wait_until("the first revision is published", || build.state(1) == "published");
    build.approve("RUN sleep 100\n", &[]);
    wait_until("the second revision is built", || build.state(2) == "building");
    let third = build.approve("RUN echo third > /third\n", &[]);
    let error = failure(&build.command(&[]).output().unwrap(), &["env", "build"]);
    assert!(error.contains("has another builder"), "{error}");
    assert_eq!(build.state(third), "approved");
    builder.signal("TERM");
    assert!(builder.wait().success(), "{}", builder.log());
    assert_eq!(build.state(2), "approved");
    build.assert_clean();
}
