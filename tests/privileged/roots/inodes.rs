//! Device and inode numbers of roots.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{RootsFixture, mount_of};
use support::trees;

/// The device and inode number of every file of a root.
fn numbers_of(root: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let number = |path: PathBuf| {
        let metadata = fs::symlink_metadata(root.join(&path)).unwrap();
        (path, (metadata.dev(), metadata.ino()))
    };
    trees::paths(root).into_iter().map(number).collect()
}

fn devices(numbers: &BTreeMap<PathBuf, (u64, u64)>) -> usize {
    numbers.values().map(|(device, _)| device).collect::<HashSet<_>>().len()
}

impl RootsFixture {
    fn create_with(&self, options: &[&str]) -> PathBuf {
        let arguments = [&["root", "create", &self.mounted.good, "--id", "it"], options].concat();
        self.program().ok(&arguments).into()
    }
}

#[test]
fn root_is_one_filesystem_with_stable_inode_numbers() {
    let fixture = RootsFixture::new();
    for engine in support::engines::SHARING {
        for upper in ["dir", "tmpfs:8M", "none"] {
            let root = fixture.create_with(&["--engine", engine, "--upper", upper]);
            if upper != "none" {
                // The directory is copied up. The number of a file that is copied up may change.
                fs::write(root.join("etc/new"), "").unwrap();
                fs::create_dir_all(root.join("new/inner")).unwrap();
                fs::write(root.join("new/inner/file"), "").unwrap();
            }
            let before = numbers_of(&root);
            assert_eq!(devices(&before), 1, "{engine}, {upper}");
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            assert_eq!(numbers_of(&root), before, "{engine}, {upper}");
            fixture.remove("it");
        }
    }
    fixture.finish();
}

#[test]
fn root_for_32_bit_programs_has_the_inode_numbers_of_its_layers() {
    let fixture = RootsFixture::new();
    let root = fixture.create_with(&["--upper", "tmpfs:8M", "--inodes", "32bit"]);
    assert!(!mount_of(&root).contains("xino=on"), "{}", mount_of(&root));
    assert!(devices(&numbers_of(&root)) > 1);
    fixture.remove("it");
    // As configured, unless the option says otherwise.
    let config = fixture.program().dir().join("config.toml");
    fs::write(&config, "[root]\ninodes = \"32bit\"\n").unwrap();
    let root = fixture.create_with(&["--upper", "tmpfs:8M"]);
    assert!(devices(&numbers_of(&root)) > 1);
    fixture.remove("it");
    let root = fixture.create_with(&["--upper", "tmpfs:8M", "--inodes", "64bit"]);
    assert!(mount_of(&root).contains("xino=on"), "{}", mount_of(&root));
    fixture.remove("it");
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--inodes", "16bit"]);
    assert!(error.contains("expected `64bit` or `32bit`"), "{error}");
    fixture.finish();
}
