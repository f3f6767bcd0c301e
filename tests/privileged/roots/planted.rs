//! A store of another user, with links in place of its directories and files, leads no command of root out of the store.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use support::program::Program;
use support::text::{image, layers, load};
use support::trees::{paths, snapshot};

/// The owner of the store.
const OWNER: u32 = 4242;

/// A store that belongs to another user than root.
struct ForeignStore {
    program: Program,
    /// The name of each file in the directories of the store that `gc` empties.
    digits: String,
}

impl ForeignStore {
    fn new() -> Self {
        let program = Program::new();
        load(&program, &image("one", layers("f file x")));
        load(&program, &image("two", layers("f file y")));
        program.ok(&["rm", "lab/text:two"]);
        let store = Self { program, digits: "5a".repeat(32) };
        store.give();
        store
    }

    /// Gives everything in the store to its owner.
    fn give(&self) {
        let store = self.program.store();
        for path in paths(store) {
            lchown(store.join(path), Some(OWNER), Some(OWNER)).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.program.store().join(name)
    }

    /// Makes a directory with everything that a command could remove or replace in place of a directory of the store.
    fn make_target(&self, target: &Path) {
        let digits = &self.digits;
        let names = [
            format!("sha256/{digits}"),
            digits.clone(),
            format!("{digits}.idx"),
            format!("{digits}.spans"),
            format!("tmp/1-0-{digits}"),
            format!("partial/{digits}"),
            format!("locks/{digits}"),
            format!("indexes/{digits}.idx"),
            format!("layers/{digits}/meta.json"),
            "boxes/900/box/file".to_owned(),
            "900/box/file".to_owned(),
            "roots/dead/upper/file".to_owned(),
            "dead/upper/file".to_owned(),
            "1-0-leftover".to_owned(),
            "index.json".to_owned(),
            "slots".to_owned(),
            "daemon".to_owned(),
        ];
        for name in names {
            let path = target.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "precious").unwrap();
        }
        // A layer directory, as the overlay2 engine names it.
        fs::create_dir(target.join("6b".repeat(32))).unwrap();
        fs::create_dir(target.join("empty")).unwrap();
    }

    /// Runs every command of root that removes or writes, whether or not it succeeds.
    fn use_it(&self) {
        let copy = self.program.dir().join("copy");
        let mount = self.program.dir().join("images");
        fs::create_dir_all(&mount).unwrap();
        let layout = self.program.dir().join("layouts/two");
        for arguments in [
            &["gc"][..],
            &["gc", "--partial"],
            &["root", "sweep"],
            &["verify"],
            &["load", "--name", "lab/text", layout.to_str().unwrap()],
            &["rm", "lab/text:one"],
            &["run", "lab/text:two", "--", "/file"],
            &["run", "--sandbox", "bwrap", "--engine", "overlay2", "lab/text:two", "--", "/file"],
            &["root", "create", "--engine", "overlay2", "lab/text:two"],
            &["unpack", "lab/text:two", copy.to_str().unwrap()],
        ] {
            let output = self.program.run(arguments);
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(!log.contains("panicked"), "{arguments:?}: {log}");
        }
        let _ = fs::remove_dir_all(&copy);
        if let Ok(mount) = self.program.mount_at(&mount) {
            mount.stop();
        }
    }
}

#[test]
fn link_in_place_of_a_directory_of_a_store_leads_no_command_out_of_the_store() {
    for name in [
        "blobs",
        "blobs/sha256",
        "rcx-imagefs",
        "rcx-imagefs/tmp",
        "rcx-imagefs/partial",
        "rcx-imagefs/locks",
        "rcx-imagefs/indexes",
        "rcx-imagefs/seekable",
        "rcx-imagefs/layers",
        "rcx-imagefs/boxes",
        "rcx-imagefs/roots",
    ] {
        let store = ForeignStore::new();
        let target = tempfile::tempdir().unwrap();
        store.make_target(target.path());
        let before = snapshot(target.path());
        let link = store.path(name);
        let _ = fs::remove_dir_all(&link);
        symlink(target.path(), &link).unwrap();
        store.give();
        store.use_it();
        assert!(snapshot(target.path()) == before, "{name}: the target of the link has changed");
    }
}

#[test]
fn link_in_place_of_a_file_of_a_store_makes_root_write_to_no_other_file() {
    let digits = ForeignStore::new().digits;
    let files = [
        "index.json".to_owned(),
        "oci-layout".to_owned(),
        "rcx-imagefs/version".to_owned(),
        "rcx-imagefs/slots".to_owned(),
        "rcx-imagefs/daemon".to_owned(),
        "rcx-imagefs/reserve".to_owned(),
        "rcx-imagefs/locks/gc".to_owned(),
        "rcx-imagefs/locks/daemon".to_owned(),
        "rcx-imagefs/locks/index.json".to_owned(),
        format!("rcx-imagefs/partial/{digits}"),
        format!("rcx-imagefs/indexes/{digits}.idx"),
        format!("blobs/sha256/{digits}"),
    ];
    for name in &files {
        for hard in [false, true] {
            let store = ForeignStore::new();
            // On the same filesystem, for hard links. A valid file: only then do some commands go on.
            let target = store.program.dir().join("precious");
            let place = store.path(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(&place, &target).or_else(|_| fs::write(&target, "precious").map(|()| 0)).unwrap();
            let _ = fs::remove_file(&place);
            let link = if hard { fs::hard_link(&target, &place) } else { symlink(&target, &place) };
            link.unwrap();
            store.give();
            // The store's owner cannot give a file of root away, so the target stays root's.
            lchown(&target, Some(0), Some(0)).unwrap();
            let before = (fs::read(&target).unwrap(), attributes(&target));
            store.use_it();
            assert_eq!(
                (fs::read(&target).unwrap(), attributes(&target)),
                before,
                "{name}, hard link: {hard}"
            );
        }
    }
}

/// The attributes of a file, without its number of links, which a removal of the link in the store changes.
fn attributes(path: &Path) -> (u32, u32, u32, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode(), metadata.uid(), metadata.gid(), metadata.mtime_nsec())
}

#[test]
fn store_of_another_user_serves_images_but_no_roots() {
    let store = ForeignStore::new();
    let mount = store.program.mount();
    let listed = store.program.json(&["images"]);
    assert_eq!(listed[0]["tags"][0], "one");
    assert_eq!(fs::read_to_string(mount.path("lab/text:one/file")).unwrap(), "x");
    for arguments in [&["root", "create", "lab/text:one"][..], &["run", "lab/text:one", "--", "/file"]] {
        let error = store.program.fails(arguments);
        let path = store.program.store().display().to_string();
        assert!(error.contains(&format!("{path} is not trusted: it belongs to user {OWNER}")), "{error}");
    }
    mount.stop();
    store.program.ok(&["rm", "lab/text:one"]);
    store.program.ok(&["gc"]);
}

#[test]
fn link_to_a_store_is_followed_only_if_root_or_the_user_has_made_it() {
    let program = Program::new();
    load(&program, &image("one", layers("f file x")));
    let moved = program.dir().join("moved");
    fs::rename(program.store(), &moved).unwrap();
    symlink("moved", program.store()).unwrap();
    assert_eq!(program.json(&["images"])[0]["tags"][0], "one");
    lchown(program.store(), Some(OWNER), Some(OWNER)).unwrap();
    let error = program.fails(&["images"]);
    assert!(error.contains(&format!("it is a link, and it belongs to user {OWNER}")), "{error}");
    // A slash at the end does not hide the link.
    let with_slash = format!("{}/", program.store().display());
    let error = program.fails(&["images", "--store", &with_slash]);
    assert!(error.contains("it is a link"), "{error}");
}
