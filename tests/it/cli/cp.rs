//! `cp`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Fixture;

const FILES: &str = "\
    d etc
    f etc/hosts 127.0.0.1 uid=7 gid=8 mtime=1714979289
    l etc/link hosts
    l etc/escape /tmp
    d etc/sub mode=555
    f etc/sub/su x mode=4755
    h etc/sub/again etc/sub/su
    f top y
    ";

struct Copies {
    fixture: Fixture,
    dir: PathBuf,
}

impl Copies {
    fn new() -> Self {
        let fixture = Fixture::new();
        fixture.load("lab/a:1", FILES);
        let dir = fixture.program.dir().join("to");
        fs::create_dir(&dir).unwrap();
        Self { fixture, dir }
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Copies a path of the image. Returns the path of the copy.
    #[track_caller]
    fn cp(&self, path: &str, to: &str) -> PathBuf {
        PathBuf::from(self.fixture.program.ok(&["cp", &format!("lab/a:1:{path}"), &self.at(to)]))
    }

    /// The names in the directory of the copies.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn file_is_copied_under_its_own_name_or_a_new_one_and_replaces_a_file() {
    let copies = Copies::new();
    let hosts = copies.cp("/etc/hosts", "");
    assert_eq!(fs::canonicalize(&hosts).unwrap(), fs::canonicalize(copies.dir.join("hosts")).unwrap());
    let metadata = fs::metadata(&hosts).unwrap();
    assert_eq!((metadata.mtime(), metadata.mode() & 0o7777), (1_714_979_289, 0o644));
    let own = fs::metadata(&copies.dir).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (own.uid(), own.gid()), "the copy belongs to the user");
    fs::write(copies.at("new"), "old content that is longer").unwrap();
    copies.cp("/etc/hosts", "new");
    assert_eq!(fs::read_to_string(copies.at("new")).unwrap(), "127.0.0.1");
    assert_eq!(copies.names(), ["hosts", "new"], "nothing else is left");
}

#[test]
fn existing_links_are_replaced_and_never_followed() {
    let copies = Copies::new();
    let outside = copies.fixture.program.dir().join("outside");
    fs::write(&outside, "untouched").unwrap();
    symlink(&outside, copies.at("hosts")).unwrap();
    copies.cp("/etc/hosts", "hosts");
    assert!(fs::symlink_metadata(copies.at("hosts")).unwrap().is_file());
    symlink(&outside, copies.at("top")).unwrap();
    copies.cp("/top", "");
    assert_eq!(fs::read_to_string(copies.at("top")).unwrap(), "y");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
}

#[test]
fn directory_is_copied_without_set_uid_bits_and_with_links_as_they_are() {
    let copies = Copies::new();
    assert_eq!(copies.cp("/etc", "").file_name().unwrap(), "etc");
    assert_eq!(fs::read_link(copies.at("etc/escape")).unwrap(), Path::new("/tmp"));
    assert_eq!(fs::read_link(copies.at("etc/link")).unwrap(), Path::new("hosts"));
    let su = fs::metadata(copies.at("etc/sub/su")).unwrap();
    assert_eq!((su.permissions().mode() & 0o7777, su.nlink()), (0o755, 2));
    assert_eq!(fs::metadata(copies.at("etc/sub")).unwrap().permissions().mode() & 0o7777, 0o555);
    copies.cp("/etc/sub", "renamed");
    assert_eq!(copies.names(), ["etc", "renamed"]);
    let copied = copies.fixture.program.json(&["cp", "lab/a:1:/etc", &copies.at("third")]);
    assert_eq!(
        (&copied["directories"], &copied["files"], &copied["bytes"]),
        (&json!(2), &json!(4), &json!(10))
    );
    // `tempfile` cannot remove it otherwise, unless root runs the tests.
    for name in ["etc/sub", "renamed", "third/sub"] {
        fs::set_permissions(copies.at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn link_is_copied_as_a_link_unless_its_target_is_asked_for() {
    let copies = Copies::new();
    copies.cp("/etc/link", "link");
    assert_eq!(fs::read_link(copies.at("link")).unwrap(), Path::new("hosts"));
    copies.fixture.program.ok(&["cp", "-L", "lab/a:1:/etc/link", &copies.at("followed")]);
    assert_eq!(fs::read_to_string(copies.at("followed")).unwrap(), "127.0.0.1");
    assert!(fs::symlink_metadata(copies.at("followed")).unwrap().is_file());
}

#[test]
fn standard_output_gets_the_content_of_a_file_and_the_tar_of_a_directory() {
    let copies = Copies::new();
    let run = |path: &str| {
        let output = copies.fixture.program.run(&["cp", &format!("lab/a:1:{path}"), "-"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(run("/etc/hosts"), b"127.0.0.1");
    assert_eq!(run("/etc/link"), b"127.0.0.1");
    let tar = run("/etc");
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut members: Vec<(String, u32, u64)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, entry.header().mode().unwrap(), entry.header().uid().unwrap())
        })
        .collect();
    members.sort();
    let expected = [
        ("etc/", 0o755, 0),
        ("etc/escape", 0o777, 0),
        ("etc/hosts", 0o644, 7),
        ("etc/link", 0o777, 0),
        ("etc/sub/", 0o555, 0),
        ("etc/sub/again", 0o755, 0),
        ("etc/sub/su", 0o755, 0),
    ];
    assert_eq!(members, expected.map(|(path, mode, uid)| (path.to_owned(), mode, uid)));
}

#[test]
fn wrong_places_for_a_copy_are_errors_that_leave_nothing() {
    let copies = Copies::new();
    fs::create_dir(copies.at("hosts")).unwrap();
    fs::create_dir_all(copies.at("etc/x")).unwrap();
    for (source, to, wanted) in [
        ("lab/a:1:/etc/hosts", "", "hosts is a directory"),
        ("lab/a:1:/etc", "", "etc is not empty"),
        ("lab/a:1:/etc/hosts", "none/", "none/ does not exist"),
        ("lab/a:1:/etc/hosts", "none/x", "none does not exist"),
        ("lab/a:1:/none", "x", "the image has no file /none"),
        ("lab/a:1", "x", "`lab/a:1` has no path in the image"),
    ] {
        let (error, _) = copies.fixture.fails(&["cp", source, &copies.at(to)]);
        assert!(error.ends_with(wanted), "{source} {to}: {error}");
    }
    assert_eq!(copies.names(), ["etc", "hosts"]);
}

#[test]
fn copy_into_an_image_is_refused_with_a_hint() {
    let copies = Copies::new();
    let (error, hint) = copies.fixture.fails(&["cp", "hello.c", "lab/a:1:/etc"]);
    assert_eq!(error, "`hello.c` has no path in the image");
    assert!(hint.unwrap().starts_with("`cp` only copies out of an image; `run --copy-in`"));
}
