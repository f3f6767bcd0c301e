//! Only directories that rcx-imagefs made are used and removed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use serde_json::{Value, json};

use super::{MARKER, RootsFixture, names};
use support::trees::snapshot;

/// A user that is not root.
const OTHER: u32 = 4242;

impl RootsFixture {
    /// Runs every command that sweeps, whether or not it succeeds.
    fn sweep_in_all_ways(&mut self) {
        let image = self.mounted.good.clone();
        for arguments in [&["root", "sweep"][..], &["gc"], &["run", &image, "--", "/bin/true"]] {
            self.program().run(arguments);
        }
        self.mounted.mount.server().signal("KILL");
        self.mounted.mount.server().wait();
        self.mount_new_daemon();
    }

    /// Checks that no root can be made or swept, with an error that names `path`.
    #[track_caller]
    fn assert_untrusted(&self, path: &Path, reason: &str) {
        for arguments in [&["root", "sweep"][..], &["root", "create", &self.mounted.good]] {
            let output = self.program().run(&[arguments, &["--json"]].concat());
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer["error"]["code"], "untrusted", "{answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(path.to_str().unwrap()) && message.contains(reason), "{message}");
        }
    }
}

#[test]
fn directories_of_others_in_the_upper_dir_survive_every_sweep() {
    let scratch = tempfile::tempdir().unwrap();
    let srv = scratch.path().join("srv");
    fs::create_dir_all(srv.join("data/inner")).unwrap();
    fs::write(srv.join("data/file"), "precious").unwrap();
    fs::create_dir(srv.join("empty")).unwrap();
    // A scratch directory of somebody's own overlay.
    for name in ["upper", "work"] {
        fs::create_dir_all(srv.join("overlay").join(name)).unwrap();
    }
    let mut fixture = RootsFixture::with_upper_dir(&srv);
    fixture.create("it", "dir");
    // Even beside the homes, a directory without a marker is not ours.
    let beside = fixture.homes().join("beside");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("file"), "precious").unwrap();
    let before = ["data", "empty", "overlay"].map(|name| snapshot(&srv.join(name)));
    fixture.sweep_in_all_ways();
    assert_eq!(["data", "empty", "overlay"].map(|name| snapshot(&srv.join(name))), before);
    assert_eq!(fs::read_to_string(beside.join("file")).unwrap(), "precious");
    assert_eq!(fixture.state("beside"), None);
    let error = fixture.program().fails(&["root", "remove", "beside"]);
    assert!(error.contains("there is no root beside"), "{error}");
    assert_eq!(fixture.state("it"), None, "a root is swept after its daemon has ended");
    fs::remove_dir_all(beside).unwrap();
    fixture.finish();
}

#[test]
fn link_in_place_of_the_homes_is_refused_and_its_target_unchanged() {
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("data")).unwrap();
    fs::write(target.path().join("data/file"), "precious").unwrap();
    let before = snapshot(target.path());
    let mut fixture = RootsFixture::new();
    let link = fixture.program().store().join("rcx-imagefs/roots");
    symlink(target.path(), &link).unwrap();
    fixture.assert_untrusted(&link, "link");
    fixture.sweep_in_all_ways();
    assert!(snapshot(target.path()) == before, "the target of the link has changed");
    // A link one level up.
    fs::remove_file(&link).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let upper_dir = scratch.path().join("uppers");
    fs::create_dir(&upper_dir).unwrap();
    symlink(target.path(), upper_dir.join("rcx-imagefs-roots")).unwrap();
    let config = format!("[root]\nupper-dir = '{}'\n", upper_dir.display());
    fs::write(fixture.program().dir().join("config.toml"), config).unwrap();
    fixture.assert_untrusted(&upper_dir.join("rcx-imagefs-roots"), "link");
    fixture.sweep_in_all_ways();
    assert!(snapshot(target.path()) == before, "the target of the link has changed");
}

#[test]
fn homes_that_another_user_could_change_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let upper_dir = scratch.path().join("uppers");
    let fixture = RootsFixture::with_upper_dir(&upper_dir);
    fixture.create("it", "dir");
    fixture.remove("it");
    let homes = fixture.homes();
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for directory in [&homes, &upper_dir] {
        chown(directory, Some(OTHER), None).unwrap();
        fixture.assert_untrusted(directory, "it belongs to user 4242");
        chown(directory, Some(0), None).unwrap();
        for mode in [0o720, 0o702] {
            set_mode(directory, mode);
            fixture.assert_untrusted(directory, "other users may write to it");
        }
        set_mode(directory, 0o700);
    }
    // With the sticky bit, other users cannot replace the directory of homes.
    set_mode(&upper_dir, 0o1777);
    fixture.create("it", "dir");
    fixture.remove("it");
    set_mode(&homes, 0o1777);
    fixture.assert_untrusted(&homes, "other users may write to it");
    set_mode(&homes, 0o700);
    fixture.finish();
}

#[test]
fn run_directory_that_another_user_could_change_is_refused() {
    let fixture = RootsFixture::new();
    fixture.create("it", "dir");
    fixture.remove("it");
    let run_dir = fixture.run_dir();
    for directory in ["", "roots", "root"] {
        let path = run_dir.join(directory);
        chown(&path, Some(OTHER), None).unwrap();
        fixture.assert_untrusted(&path.canonicalize().unwrap(), "it belongs to user 4242");
        chown(&path, Some(0), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        fixture.assert_untrusted(&path.canonicalize().unwrap(), "other users may write to it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let outside = tempfile::tempdir().unwrap();
    fs::remove_dir(run_dir.join("roots")).unwrap();
    symlink(outside.path(), run_dir.join("roots")).unwrap();
    fixture.assert_untrusted(&run_dir.join("roots"), "link");
    fs::remove_file(run_dir.join("roots")).unwrap();
    fixture.create("it", "dir");
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn skeleton_that_another_user_made_does_not_appear_in_a_root() {
    let fixture = RootsFixture::new();
    // Where version 0.1 kept a skeleton that all roots shared.
    let skeleton = fixture.run_dir().join("skeleton");
    fs::create_dir_all(skeleton.join("layer/planted")).unwrap();
    fs::create_dir(skeleton.join("complete")).unwrap();
    chown(&skeleton, Some(OTHER), None).unwrap();
    for upper in ["dir", "none"] {
        let root = fixture.create("it", upper);
        assert!(root.join("box").is_dir() && !root.join("planted").exists());
        fixture.remove("it");
    }
    fs::remove_dir_all(&skeleton).unwrap();
    fixture.finish();
}

#[test]
fn directory_of_homes_without_its_marker_is_refused_unless_it_is_empty() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = RootsFixture::with_upper_dir(scratch.path());
    fixture.create("it", "dir");
    fixture.remove("it");
    let (homes, marker) = (fixture.homes(), fixture.homes().join(MARKER));
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(homes.join("file"), "").unwrap();
    for content in [Some("roots of another program\n"), Some(&text[..5]), None] {
        match content {
            Some(content) => fs::write(&marker, content).unwrap(),
            None => fs::remove_file(&marker).unwrap(),
        }
        fixture.assert_untrusted(&homes, MARKER);
    }
    // As after a crash before the marker was complete.
    fs::remove_file(homes.join("file")).unwrap();
    for content in ["", &text[..5]] {
        fs::write(&marker, content).unwrap();
        fixture.create("it", "dir");
        fixture.remove("it");
        assert_eq!(fs::read_to_string(&marker).unwrap(), text);
    }
    fixture.finish();
}

#[test]
fn roots_of_version_0_1_in_the_store_are_listed_removed_and_swept() {
    let fixture = RootsFixture::new();
    // With an upper on disk, the home would have a skeleton, which version 0.1 kept elsewhere.
    fixture.create("mounted", "tmpfs:1M");
    let dead = fixture.create("dead", "tmpfs:1M");
    support::images::run("umount", &[dead.to_str().unwrap()]);
    // A killed run, and a create that was killed after its first step.
    let homes = fixture.homes();
    for name in ["killed/upper/box", "killed/work/work", "empty", "not-ours/tree"] {
        fs::create_dir_all(homes.join(name)).unwrap();
    }
    for name in ["killed", "empty", "not-ours"] {
        fs::set_permissions(homes.join(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Version 0.1 wrote no markers.
    for directory in [homes.clone(), homes.join("mounted"), homes.join("dead")] {
        fs::remove_file(directory.join(MARKER)).unwrap();
    }
    assert_eq!(fixture.state("mounted").as_deref(), Some("mounted"));
    assert_eq!(fixture.state("dead").as_deref(), Some("detached"));
    assert_eq!(fixture.sweep(), json!(["dead", "empty", "killed"]));
    fixture.remove("mounted");
    assert_eq!(names(&homes), [MARKER, "not-ours"]);
    fs::remove_dir_all(homes.join("not-ours")).unwrap();
    fixture.finish();
}

#[test]
fn roots_of_version_0_1_in_the_upper_dir_are_named_and_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let old = scratch.path().join("old");
    for name in ["upper", "work"] {
        fs::create_dir_all(old.join(name)).unwrap();
    }
    fs::set_permissions(&old, fs::Permissions::from_mode(0o700)).unwrap();
    let fixture = RootsFixture::with_upper_dir(scratch.path());
    let output = fixture.program().run(&["root", "sweep"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&format!("`rm -r {}`", old.display())), "{log}");
    assert!(old.join("upper").exists());
    let output = fixture.program().run(&["root", "sweep"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "the message is printed once");
    fixture.finish();
}
