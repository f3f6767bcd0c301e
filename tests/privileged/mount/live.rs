//! Changes of the store by other processes show in a running mount at once.

use std::fs;
use std::io;

use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::{Images, run};
use support::program::Program;

/// The names in a directory of the mount.
fn listed(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn pulled_image_shows_in_the_running_mount_as_soon_as_pull_returns() {
    let images = Images::make(&["small", "small-arm64"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    let mount = program.mount();
    assert_eq!(listed(mount.dir()), Vec::<String>::new());
    for (number, image) in ["small", "small-arm64"].iter().enumerate() {
        let name = format!("lab/image{number}");
        let path = mount.path(&registry.reference(&format!("{name}:1")));
        // Asked for before it is there: the absence must not stick.
        assert_eq!(fs::metadata(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        registry.push_from(&images.layout(), image, &format!("{name}:1"));
        let reference = registry.reference(&format!("{name}:1"));
        let platform: &[&str] = if *image == "small" { &[] } else { &["--platform", "linux/arm64"] };
        program.ok(&[&["pull"], platform, &[&reference]].concat());
        assert_eq!(fs::read_to_string(path.join("etc/motd")).unwrap(), "a small image\n");
        assert!(listed(&mount.path(&registry.reference("lab"))).contains(&format!("image{number}:1")));
    }
    mount.stop();
}

#[test]
fn moved_tag_leads_to_the_new_image_at_once() {
    let images = Images::make(&["small", "python"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    let reference = registry.reference("lab/moving:1");
    let old = registry.push_from(&images.layout(), "small", "lab/moving:1");
    program.pull(&reference);
    let mount = program.mount();
    let tag = mount.path(&reference);
    assert!(tag.join("etc/motd").exists() && !tag.join("usr/bin/python3").exists());
    let before = fs::read_link(&tag).unwrap();
    assert!(before.to_str().unwrap().ends_with(&old), "{}", before.display());
    let open = fs::File::open(tag.join("etc/motd")).unwrap();

    let new = registry.push_from(&images.layout(), "python", "lab/moving:1");
    program.pull(&reference);
    assert!(fs::read_link(&tag).unwrap().to_str().unwrap().ends_with(&new));
    assert!(tag.join("usr/bin/python3").exists() && tag.join("etc/debian_version").exists());
    assert_eq!(io::read_to_string(&open).unwrap(), "a small image\n", "an open file stays what it was");
    mount.stop();
}

#[test]
fn removed_image_goes_from_the_running_mount_at_once() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "small", "lab/one:1");
    registry.push_from(&images.layout(), "small", "lab/two:1");
    let (one, two) = (registry.reference("lab/one:1"), registry.reference("lab/two:1"));
    program.pull(&one);
    program.pull(&two);
    let mount = program.mount();
    assert!(mount.path(&one).join("etc/motd").exists());
    program.ok(&["rm", &one]);
    assert_eq!(fs::symlink_metadata(mount.path(&one)).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!listed(&mount.path(&registry.reference("lab"))).contains(&"one:1".to_owned()));
    assert_eq!(fs::read_to_string(mount.path(&two).join("etc/motd")).unwrap(), "a small image\n");
    mount.stop();
}

#[test]
fn colon_free_names_lead_to_the_same_image_and_are_not_listed() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "small", "lab/one:1");
    let pulled = program.pull(&registry.reference("lab/one:1"));
    let mount = program.mount();
    for name in [pulled.clone(), registry.reference("lab/one:1")] {
        let alias = mount.path(&name.replace(':', "-"));
        assert_eq!(
            fs::read_to_string(alias.join("etc/motd")).unwrap(),
            "a small image\n",
            "{}",
            alias.display()
        );
    }
    let path = program.ok(&["path", &registry.reference("lab/one:1")]);
    assert!(fs::metadata(&path).unwrap().is_dir(), "{path}");
    assert!(listed(mount.dir()).iter().all(|name| name == registry.address()));
    mount.stop();
}

#[test]
fn daemon_that_was_killed_leaves_nothing_that_stops_the_next() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "small", "lab/one:1");
    let pulled = program.pull(&registry.reference("lab/one:1"));
    let mut first = program.mount();
    let motd = first.path(&pulled).join("etc/motd");
    let ino = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = ino(&motd);
    first.server().signal("KILL");
    first.server().wait();
    let second = program.mount();
    assert_eq!(fs::read_to_string(&motd).unwrap(), "a small image\n");
    assert_eq!(ino(&motd), before, "inode numbers survive a restart");
    second.stop();
}

#[test]
fn unmount_by_hand_ends_the_daemon_in_good_order() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "small", "lab/one:1");
    program.pull(&registry.reference("lab/one:1"));
    let mut mount = program.mount();
    run("umount", &[mount.dir().to_str().unwrap()]);
    let status = mount.server().wait();
    assert!(status.success(), "{status}: {}", mount.log());
}

#[test]
fn damaged_index_json_is_told_and_leaves_the_mount_as_it_was() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "small", "lab/one:1");
    let pulled = program.pull(&registry.reference("lab/one:1"));
    let mount = program.mount();
    let path = program.store().join("index.json");
    let sound = fs::read(&path).unwrap();
    fs::write(&path, "{ this is no index").unwrap();
    wait_until("the daemon has seen the damage", || mount.log().contains("index.json"));
    assert_eq!(fs::read_to_string(mount.path(&pulled).join("etc/motd")).unwrap(), "a small image\n");
    for arguments in [&["images"][..], &["pull", &registry.reference("lab/one:1")]] {
        let error = program.fails(arguments);
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    fs::write(&path, sound).unwrap();
    assert!(program.ok(&["images"]).contains("lab/one"));
    mount.stop();
}
