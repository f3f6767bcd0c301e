//! `pull` and `load` with a real registry: downloads, resumption after a kill, platforms, archives and credentials.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use support::child::wait_until;
use support::docker_registry::{DockerRegistry, PASSWORD, USER};
use support::fixture::Fixture;
use support::images::{Images, run};
use support::program::{Program, failure};
use support::trees;

/// The total size of all files below a directory. Files that disappear meanwhile are not counted.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |path: &Path| match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => bytes_below(path),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

#[test]
fn second_pull_prints_the_same_and_downloads_no_blob() {
    let fixture = Fixture::new(&["small"]);
    let Fixture { images, registry, program } = &fixture;
    let reference = fixture.reference("small");
    let first = program.pull(&reference);
    assert_eq!(first, format!("{}@{}", registry.reference("lab/small"), images.layout().digest("small")));
    let before = fs::read(program.store().join("index.json")).unwrap();
    let mark = registry.mark();
    assert_eq!(program.pull(&reference), first);
    assert_eq!(registry.downloads(mark), []);
    assert_eq!(fs::read(program.store().join("index.json")).unwrap(), before);
}

#[test]
fn concurrent_pulls_of_one_image_download_each_blob_once() {
    let fixture = Fixture::new(&["python"]);
    let Fixture { images, registry, program } = &fixture;
    let reference = fixture.reference("python");
    let start = || {
        let mut command = program.command(&["pull", &reference]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let pulls = [start(), start(), start()];
    let outputs = pulls.map(|child| child.wait_with_output().unwrap());
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    let mut times = BTreeMap::new();
    for (digest, _, _) in registry.downloads(0) {
        *times.entry(digest).or_insert(0) += 1;
    }
    for layer in images.layout().layers("python") {
        assert_eq!(times.get(&layer), Some(&1), "downloads of {layer}: {times:?}");
    }
}

#[test]
fn second_image_downloads_only_the_layers_it_does_not_share() {
    let fixture = Fixture::new(&["python"]);
    let Fixture { images, registry, program } = &fixture;
    let reference = fixture.reference("python");
    program.pull(&reference);
    let app = Images::make(&["app"]);
    registry.push_from(&app.layout(), "app", "lab/app:1");
    let mark = registry.mark();
    program.pull(&registry.reference("lab/app:1"));
    let fetched: Vec<String> = registry.downloads(mark).into_iter().map(|(digest, ..)| digest).collect();
    for layer in images.layout().layers("python") {
        assert!(!fetched.contains(&layer), "{layer} was downloaded although the store has it");
    }
}

/// Killed at any moment, a pull leaves a store that the next one takes, and nothing that looks like an image.
#[test]
fn killed_pull_shows_no_image_and_the_next_pull_resumes_the_download() {
    let fixture = Fixture::new(&["app"]);
    let Fixture { images, registry, program } = &fixture;
    let reference = fixture.reference("app");
    let layout = images.layout();
    let total: u64 =
        layout.layers("app").iter().map(|digest| fs::metadata(layout.blob(digest)).unwrap().len()).sum();
    let mut killed = 0;
    for percent in [1, 20, 45, 60, 80, 99] {
        let mut pull = program.command(&["pull", &reference]);
        let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut ended = false;
        wait_until("the download has progressed or the pull has ended", || {
            ended = pull.try_wait().unwrap().is_some();
            ended || bytes_below(program.store()) >= total * percent / 100
        });
        pull.kill().unwrap();
        pull.wait().unwrap();
        if ended {
            break;
        }
        killed += 1;
        assert_eq!(program.ok(&["images"]).matches("lab/app").count(), 0, "an incomplete image is listed");
    }
    assert!(killed >= 3, "only {killed} pulls were killed before they ended");

    let mark = registry.mark();
    let pulled = program.pull(&reference);
    let downloads = registry.downloads(mark);
    let bytes: u64 = downloads.iter().map(|one| one.2).sum();
    assert!(bytes < total, "the last pull fetched all of {total} bytes again: {downloads:?}");
    let all = registry.downloads(0);
    assert!(all.iter().any(|one| one.1 == 206), "no download was resumed by range: {all:?}");
    program.ok(&["verify"]);
    let partial = program.store().join("rcx-imagefs/partial");
    assert_eq!(bytes_below(&partial), 0, "partial downloads are left behind");
    assert_eq!(bytes_below(&program.store().join("rcx-imagefs/tmp")), 0, "temporary files are left behind");

    let images = Images::make(&["unpacked-app"]);
    let mount = program.mount();
    trees::assert_equal(&mount.path(&pulled).join("etc"), &images.unpacked("app").join("etc"), 100);
    mount.stop();
}

#[test]
fn store_is_an_oci_layout_for_skopeo_and_umoci() {
    let fixture = Fixture::new(&["python"]);
    let program = &fixture.program;
    let pulled = fixture.pull("python");
    let (_, digest) = pulled.split_once('@').unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(program.store().join("index.json")).unwrap()).unwrap();
    let tags = index["manifests"].as_array().unwrap().iter();
    let tags: Vec<&str> =
        tags.filter_map(|one| one["annotations"]["org.opencontainers.image.ref.name"].as_str()).collect();
    let tag = tags.first().expect("the pulled image has a reference name in index.json");
    let store = program.store().display();
    let inspected = run("skopeo", &["inspect", "--format", "{{.Digest}}", &format!("oci:{store}:{tag}")]);
    assert_eq!(inspected.trim(), digest);
    let bundle = program.dir().join("bundle");
    let copy = program.dir().join("copy");
    // umoci does not accept a slash in an image name, so it unpacks a copy with a plain name.
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--insecure-policy",
            &format!("oci:{store}:{tag}"),
            &format!("oci:{}:it", copy.display()),
        ],
    );
    run("umoci", &["unpack", "--image", &format!("{}:it", copy.display()), &bundle.display().to_string()]);
    assert_eq!(run("umoci", &["ls", "--layout", &store.to_string()]).lines().count(), tags.len());
    let mount = program.mount();
    trees::assert_equal(&mount.path(&pulled), &bundle.join("rootfs"), 3_000);
    mount.stop();
}

#[test]
fn platform_option_selects_from_an_index_and_the_index_digest_names_the_image() {
    let images = Images::make(&["multi"]);
    let layout = images.layout();
    let registry = DockerRegistry::start();
    let index = registry.push(&layout.image("multi"), "lab/multi:1", &["--all"]);
    let reference = registry.reference("lab/multi:1");
    let host = Program::new();
    assert_eq!(
        host.pull(&reference),
        format!("{}@{}", registry.reference("lab/multi"), layout.digest("small"))
    );
    let arm = Program::new();
    let pulled = arm.ok(&["pull", "--platform", "linux/arm64", &reference]);
    assert_eq!(pulled, format!("{}@{}", registry.reference("lab/multi"), layout.digest("small-arm64")));
    let mount = arm.mount();
    let by_index = mount.path(&registry.reference(&format!("lab/multi@{index}")));
    assert!(fs::symlink_metadata(&by_index).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(by_index.join("etc/motd")).unwrap(), "a small image\n");
    mount.stop();
}

/// Runs `pull`, which must refuse an image for another platform and store nothing.
#[track_caller]
fn assert_wrong_platform(program: &Program, arguments: &[&str], stated: &str) {
    let output = program.run(&[&["pull", "--json"], arguments].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {out}{err}");
    assert!(err.contains(&format!("is for {stated}, not for linux/")), "{arguments:?}: {err}");
    assert!(out.contains("no-platform") && err.contains("--any-platform"), "{arguments:?}: {out}{err}");
    assert_eq!(program.json(&["images"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn single_image_of_another_platform_is_refused_unless_any_platform_is_accepted() {
    let Fixture { images, registry, program } = Fixture::new(&["small-arm64"]);
    let reference = registry.reference("lab/small-arm64:1");
    let other = ["--platform", "linux/s390x"];
    assert_wrong_platform(&program, &[other[0], other[1], &reference], "linux/arm64");
    // Without the option, the platform is the host's.
    if std::env::consts::ARCH != "aarch64" {
        assert_wrong_platform(&program, &[&reference], "linux/arm64");
    }
    // A digest names the very image, but the user may still not know its platform.
    let digest = images.layout().digest("small-arm64");
    let by_digest = registry.reference(&format!("lab/small-arm64@{digest}"));
    assert_wrong_platform(&program, &[other[0], other[1], &by_digest], "linux/arm64");

    let pulled = program.run(&["pull", other[0], other[1], "--any-platform", &reference]);
    let warning = String::from_utf8_lossy(&pulled.stderr);
    assert!(pulled.status.success() && warning.contains("is for linux/arm64"), "{warning}");
    program.ok(&["rm", &reference]);
    assert_eq!(program.ok(&["pull", "--platform", "linux/arm64", &reference]), by_digest);
}

#[test]
fn pull_by_digest_works_without_a_tag() {
    let Fixture { images, registry, program } = Fixture::new(&["small"]);
    let digest = images.layout().digest("small");
    let reference = registry.reference(&format!("lab/small@{digest}"));
    assert_eq!(program.pull(&reference), reference);
    let mount = program.mount();
    assert_eq!(fs::read_to_string(mount.path(&reference).join("etc/motd")).unwrap(), "a small image\n");
    mount.stop();
}

#[test]
fn load_accepts_oci_layouts_and_docker_archives() {
    let images = Images::make(&["small"]);
    let layout = images.layout();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--insecure-policy",
            &layout.image("small"),
            &format!("oci:{}:small", path("layout")),
        ],
    );
    run("tar", &["-C", &path("layout"), "-cf", &path("layout.tar"), "."]);
    let archive = format!("docker-archive:{}:lab/small:7", path("saved.tar"));
    run("skopeo", &["copy", "--quiet", "--insecure-policy", &layout.image("small"), &archive]);
    for (file, same_manifest) in [("layout", true), ("layout.tar", true), ("saved.tar", false)] {
        let program = Program::new();
        let loaded = program.ok(&["load", "--name", "lab/loaded", &path(file)]);
        assert!(loaded.contains("lab/loaded@sha256:"), "{file}: {loaded}");
        assert_eq!(loaded.ends_with(&layout.digest("small")), same_manifest, "{file}: {loaded}");
        let mount = program.mount();
        let motd = mount.path(&loaded).join("etc/motd");
        assert_eq!(fs::read_to_string(motd).unwrap(), "a small image\n", "{file}");
        mount.stop();
    }
}

/// The value of `auth` in the docker configuration: `USER:PASSWORD` in base64, encoded by coreutils.
fn basic_auth(password: &str) -> String {
    run("sh", &["-c", "printf %s \"$0\" | base64 -w0", &format!("{USER}:{password}")])
}

#[test]
fn pull_uses_the_credentials_in_the_docker_config() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start_with_password();
    let digest = registry.push_from(&images.layout(), "small", "lab/private:1");
    let reference = registry.reference("lab/private:1");
    let program = Program::new();
    let error = program.fails(&["pull", &reference]);
    assert!(error.contains(&reference), "{error}");
    assert!(error.to_lowercase().contains("not authorized"), "{error}");

    let config = program.dir().join("docker");
    fs::create_dir(&config).unwrap();
    let pull_with = |password: &str| {
        let auths = serde_json::json!({ "auths": { registry.address(): { "auth": basic_auth(password) } } });
        fs::write(config.join("config.json"), auths.to_string()).unwrap();
        program.command(&["pull", &reference]).env("DOCKER_CONFIG", &config).output().unwrap()
    };
    let error = failure(&pull_with("guessed"), &["pull"]);
    assert!(
        !error.contains("guessed") && !error.contains(&basic_auth("guessed")),
        "the error message contains the password: {error}"
    );
    let output = pull_with(PASSWORD);
    let pulled = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(pulled, registry.reference(&format!("lab/private@{digest}")), "{output:?}");

    // A credential helper that the configuration names and that is found on PATH.
    let helper = config.join("docker-credential-test");
    fs::write(
        &helper,
        format!(
            "#!/bin/sh\n[ \"$1\" = get ] && echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
        ),
    )
    .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let helpers = serde_json::json!({ "credHelpers": { registry.address(): "test" } });
    fs::write(config.join("config.json"), helpers.to_string()).unwrap();
    let other = Program::new();
    let path = format!("{}:{}", config.display(), std::env::var("PATH").unwrap());
    let output = other
        .command(&["pull", &reference])
        .env("DOCKER_CONFIG", &config)
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
