//! Revisions that cannot be built, and hosts that cannot build.

use std::fs;

use support::program::failure;

use super::BuildFixture;

/// Builds a revision with these steps, which must fail in this way. Returns the error.
#[track_caller]
fn fails(build: &BuildFixture, steps: &str, options: &[&str], fault: &str) -> String {
    let number = build.approve(steps, options);
    let error = build.build_fails();
    assert!(error.contains(&format!("the build of env@{number} has failed ({fault}): ")), "{error}");
    assert!(error.contains(&format!("env/{number}/build.log")), "{error}");
    let result = build.result(number);
    assert_eq!((&result["outcome"], &result["fault"]), (&"failed".into(), &fault.into()));
    assert!(error.contains(result["message"].as_str().unwrap()), "{error}\n{result}");
    assert_eq!(build.state(number), "failed");
    assert!(build.log(number).contains(&format!("==> failed ({fault}): ")), "{}", build.log(number));
    error
}

#[test]
fn failing_command_fails_the_build() {
    let build = BuildFixture::new();
    let error = fails(&build, "RUN echo said && exit 7\n", &[], "build");
    assert!(error.contains("exit status 7"), "{error}");
    assert!(build.log(1).contains("said\n"));
    // The failure is final.
    let again = failure(&build.command(&["env@1"]).output().unwrap(), &["env", "build"]);
    assert!(again.contains("its build has failed"), "{again}");
}

#[test]
fn command_that_needs_the_network_fails() {
    let build = BuildFixture::new();
    fails(&build, "ADD http://192.0.2.1/file /file\n", &[], "build");
    let address = build.registry().address().to_owned();
    fails(&build, &format!("ADD http://{address}/v2/ /file\n"), &[], "build");
}

#[test]
fn build_that_exceeds_a_limit_is_ended_with_all_its_processes() {
    let build = BuildFixture::new();
    fails(&build, "RUN dd if=/dev/zero of=/big bs=1M\n", &[], "disk-limit");
    fails(&build, "RUN yes\n", &[], "log-limit");
    assert!(build.log(2).len() < (1 << 20) + 200);
    build.configure("build-time = 2\n");
    fails(&build, "RUN sleep 1000 & setsid sleep 1000\n", &[], "time-limit");
}

#[test]
fn base_that_is_gone_fails_the_build() {
    let build = BuildFixture::new();
    build.approve("RUN true\n", &[]);
    let review = build.revision(1).join("review.json");
    let text = fs::read_to_string(&review).unwrap();
    let digest = build.fixture.images.layout().digest("small");
    fs::write(&review, text.replace(&digest, &format!("sha256:{}", "0".repeat(64)))).unwrap();
    let error = build.build_fails();
    assert!(error.contains("has failed (base): base image "), "{error}");
    assert_eq!(build.result(1)["fault"], "base");
}

#[test]
fn image_whose_smoke_command_fails_is_not_kept() {
    let build = BuildFixture::new();
    let error = fails(&build, "RUN true\n", &["--smoke", "echo broken; exit 3"], "smoke");
    assert!(error.contains("the smoke command `echo broken; exit 3` failed"), "{error}");
    assert!(build.log(1).contains("broken\n"));
    let images = build.fixture.program.json(&["images"]).to_string();
    assert!(!images.contains("environments/env"), "{images}");
    // Without a sandbox, nobody knows whether the image works.
    let steps = "RUN true\n";
    let number = build.approve(steps, &["--smoke", "true"]);
    let config = build.fixture.program.dir().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[root]\nupper-dir = '/proc/none'\n")).unwrap();
    let error = build.build_fails();
    assert!(error.contains("the smoke command cannot be run"), "{error}");
    assert_eq!(build.state(number), "approved");
    fs::write(&config, text).unwrap();
    build.build();
    // The label of the image applies if the submission has no command.
    fails(&build, "LABEL io.rcx-imagefs.smoke=\"cat /missing\"\n", &[], "smoke");
}

#[test]
fn host_that_cannot_build_leaves_the_revision_approved() {
    let build = BuildFixture::new();
    build.approve("RUN true\n", &[]);
    let output = build.command(&[]).env("PATH", build.fixture.program.dir()).output().unwrap();
    let error = failure(&output, &["env", "build"]);
    assert!(error.contains("the program `buildah`, which builds need, is not on PATH"), "{error}");
    assert_eq!(build.state(1), "approved");
    build.assert_clean();

    build.approve("RUN true\n", &["--host", "mirror.example"]);
    let error = failure(&build.command(&["env@2"]).output().unwrap(), &["env", "build"]);
    assert!(error.contains("revision env@2 needs hosts (mirror.example)"), "{error}");
    assert_eq!(build.state(2), "approved");
}
