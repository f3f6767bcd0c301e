//! A running mount shows changes that other processes make to the store at once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use support::child::wait_until;
use support::fixture::Fixture;
use support::images::run;

const MOTD: &str = "a small image\n";

/// The names in a directory of the mount, sorted.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn pulled_image_appears_in_the_running_mount_before_pull_returns() {
    let fixture = Fixture::new(&["small", "small-arm64"]);
    let mount = fixture.program.mount();
    assert_eq!(names_in(mount.dir()), Vec::<String>::new());
    for (image, platform) in [("small", "linux/amd64"), ("small-arm64", "linux/arm64")] {
        let reference = fixture.reference(image);
        let path = mount.path(&reference);
        // A lookup before the image exists: the kernel must not keep the negative entry.
        assert_eq!(fs::metadata(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fixture.program.ok(&["pull", "--platform", platform, &reference]);
        assert_eq!(fs::read_to_string(path.join("etc/motd")).unwrap(), MOTD);
        let lab = mount.path(&fixture.registry.reference("lab"));
        assert!(names_in(&lab).contains(&format!("{image}:1")));
    }
    mount.stop();
}

#[test]
fn moved_tag_names_the_new_image_at_once() {
    let fixture = Fixture::new(&["small", "python"]);
    let reference = fixture.registry.reference("lab/moving:1");
    let old = fixture.push("small", "lab/moving:1");
    fixture.program.pull(&reference);
    let mount = fixture.program.mount();
    let tag = mount.path(&reference);
    assert!(tag.join("etc/motd").exists() && !tag.join("usr/bin/python3").exists());
    let target = fs::read_link(&tag).unwrap();
    assert!(target.to_str().unwrap().ends_with(&old), "{}", target.display());
    let open = fs::File::open(tag.join("etc/motd")).unwrap();

    let new = fixture.push("python", "lab/moving:1");
    fixture.program.pull(&reference);
    assert!(fs::read_link(&tag).unwrap().to_str().unwrap().ends_with(&new));
    assert!(tag.join("usr/bin/python3").exists() && tag.join("etc/debian_version").exists());
    assert_eq!(io::read_to_string(&open).unwrap(), MOTD, "an open file keeps its content");
    mount.stop();
}

#[test]
fn removed_image_disappears_from_the_running_mount_at_once() {
    let fixture = Fixture::new(&["small"]);
    let [one, two] = ["lab/one:1", "lab/two:1"].map(|name| {
        fixture.push("small", name);
        let reference = fixture.registry.reference(name);
        fixture.program.pull(&reference);
        reference
    });
    let mount = fixture.program.mount();
    assert!(mount.path(&one).join("etc/motd").exists());
    fixture.program.ok(&["rm", &one]);
    assert_eq!(fs::symlink_metadata(mount.path(&one)).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!names_in(&mount.path(&fixture.registry.reference("lab"))).contains(&"one:1".to_owned()));
    assert_eq!(fs::read_to_string(mount.path(&two).join("etc/motd")).unwrap(), MOTD);
    mount.stop();
}

#[test]
fn colon_free_names_open_the_same_image_and_are_not_listed() {
    let fixture = Fixture::new(&["small"]);
    let pulled = fixture.pull("small");
    let mount = fixture.program.mount();
    for name in [pulled, fixture.reference("small")] {
        let motd = mount.path(&name.replace(':', "-")).join("etc/motd");
        assert_eq!(fs::read_to_string(&motd).unwrap(), MOTD, "{}", motd.display());
    }
    let path = fixture.program.ok(&["path", &fixture.reference("small")]);
    assert!(fs::metadata(&path).unwrap().is_dir(), "{path}");
    assert!(names_in(mount.dir()).iter().all(|name| name == fixture.registry.address()));
    mount.stop();
}

#[test]
fn daemon_killed_with_sigkill_does_not_block_the_next_daemon() {
    let fixture = Fixture::new(&["small"]);
    let pulled = fixture.pull("small");
    let mut first = fixture.program.mount();
    let motd = first.path(&pulled).join("etc/motd");
    let before = fs::metadata(&motd).unwrap().ino();
    first.server().signal("KILL");
    first.server().wait();
    let second = fixture.program.mount();
    assert_eq!(fs::read_to_string(&motd).unwrap(), MOTD);
    assert_eq!(fs::metadata(&motd).unwrap().ino(), before, "inode numbers survive a restart");
    second.stop();
}

#[test]
fn daemon_exits_successfully_when_unmounted_by_hand() {
    let fixture = Fixture::new(&["small"]);
    fixture.pull("small");
    let mut mount = fixture.program.mount();
    run("umount", &[mount.dir().to_str().unwrap()]);
    let status = mount.server().wait();
    assert!(status.success(), "{status}: {}", mount.log());
}

#[test]
fn damaged_index_json_is_logged_and_leaves_the_mount_unchanged() {
    let fixture = Fixture::new(&["small"]);
    let program = &fixture.program;
    let pulled = fixture.pull("small");
    let mount = program.mount();
    let path = program.store().join("index.json");
    let intact = fs::read(&path).unwrap();
    fs::write(&path, "{ not JSON").unwrap();
    wait_until("the daemon logs the damage", || mount.log().contains("index.json"));
    assert_eq!(fs::read_to_string(mount.path(&pulled).join("etc/motd")).unwrap(), MOTD);
    for arguments in [&["images"][..], &["pull", &fixture.reference("small")]] {
        let error = program.fails(arguments);
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    fs::write(&path, intact).unwrap();
    assert!(program.ok(&["images"]).contains("lab/small"));
    mount.stop();
}
