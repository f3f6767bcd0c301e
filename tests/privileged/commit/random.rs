//! Random operations on a root: the image of it shows the same tree.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use support::trees::{self, attributes};

use super::CommitFixture;

/// Operations between two commits.
const OPERATIONS: usize = 40;
const ROUNDS: u64 = 12;

/// A pseudo-random number generator, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let position = self.below(from.len());
        &from[position]
    }
}

/// All paths of a root but those of busybox and of the skeleton.
fn paths(root: &Path) -> Vec<PathBuf> {
    let all = trees::paths(root).into_iter();
    let kept = |path: &PathBuf| {
        !["bin", "box", "dev", "etc", "proc", "sys", "tmp"].iter().any(|name| path.starts_with(name))
    };
    all.filter(kept).collect()
}

/// Makes one random change. One that the kernel refuses changes nothing.
fn change(root: &Path, numbers: &mut Numbers) {
    let all = paths(root);
    let directories: Vec<&PathBuf> =
        all.iter().filter(|path| root.join(path).symlink_metadata().unwrap().is_dir()).collect();
    let existing = root.join(numbers.choose(&all));
    let is_root = existing.as_os_str().len() <= root.as_os_str().len() + 1;
    let new = root.join(numbers.choose(&directories)).join(format!("n{}", numbers.below(6)));
    let content = format!("{}", numbers.below(3)).repeat(numbers.below(4));
    let is_file = existing.symlink_metadata().unwrap().is_file();
    match numbers.below(14) {
        0 => drop(fs::create_dir(&new)),
        1 | 2 => drop(fs::write(&new, content)),
        3 if is_file => drop(fs::write(&existing, content)),
        4 if !is_root => drop(fs::remove_file(&existing).or_else(|_| fs::remove_dir_all(&existing))),
        5..=7 if !is_root => drop(fs::rename(&existing, &new)),
        8 => drop(fs::hard_link(&existing, &new)),
        9 => drop(symlink("dir/a", &new)),
        10 if !existing.is_symlink() => {
            let mode = *numbers.choose(&[0o644, 0o755, 0o4711, 0o1777, 0o700]);
            drop(fs::set_permissions(&existing, fs::Permissions::from_mode(mode)));
        }
        11 => drop(std::os::unix::fs::lchown(
            &existing,
            Some(u32::try_from(numbers.below(3)).unwrap()),
            Some(3_000_000),
        )),
        // An upper does not get the extended attributes of the image's root directory.
        12 if !existing.is_symlink() && !is_root => {
            let name = *numbers.choose(&["user.a", "trusted.b", "security.capability"]);
            // Version 2, CAP_NET_RAW permitted (linux/capability.h).
            let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let value: &[u8] = if name == "security.capability" { &capability } else { content.as_bytes() };
            let _ = rustix::fs::setxattr(&existing, name, value, XattrFlags::empty());
        }
        // A directory takes the place of another file, or a file that of a directory.
        13 if !is_root => {
            let was_directory = existing.is_dir();
            drop(fs::remove_file(&existing).or_else(|_| fs::remove_dir_all(&existing)));
            drop(if was_directory { fs::write(&existing, content) } else { fs::create_dir(&existing) });
        }
        _ => {}
    }
}

/// Describes all files. Of the names of one file, each names the first. Overlayfs counts the names of an image's file wrongly when one
/// of them is changed, so the number does not count.
fn describe(root: &Path) -> Vec<String> {
    let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let line = |path: PathBuf| {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let attributes = attributes(&metadata).replace(&format!(" nlink {} ", metadata.nlink()), " ");
        let first = match metadata.is_dir() {
            true => path.clone(),
            false => first_names.entry((metadata.dev(), metadata.ino())).or_insert(path.clone()).clone(),
        };
        let content = match metadata.file_type() {
            kind if kind.is_file() => format!("{:?}", fs::read(&full).unwrap()),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&full).unwrap()),
            _ => String::new(),
        };
        format!("{path:?} = {first:?} {attributes} {:?} {content}", trees::xattrs(&full))
    };
    paths(root).into_iter().map(line).collect()
}

#[test]
fn image_equals_the_root_after_random_operations() {
    for (engine, upper) in [("erofs", "dir"), ("overlay2", "dir"), ("fuse", "tmpfs:16m")] {
        let fixture = CommitFixture::new();
        let mut image = "lab/base:1".to_owned();
        for round in 0..ROUNDS {
            let seed = 1000 + round;
            let root = fixture.create(&image, "it", engine, upper);
            let mut numbers = Numbers(seed);
            (0..OPERATIONS).for_each(|_| change(&root, &mut numbers));
            let expected = describe(&root);
            let listed = fixture.program.ok(&["diff", "it"]);
            let next = fixture.commit("it", &format!("lab/random:{round}"), &[]);
            let context = format!("{engine} {upper}, seed {seed}:\n{listed}\n");
            let new = fixture.create(&next, "new", engine, "dir");
            let found = describe(&new);
            let different: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
            let additional: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
            assert!(
                different.is_empty() && additional.is_empty(),
                "{context}expected {different:#?}\nfound {additional:#?}"
            );
            // The same from a look at the layers alone, without the upper: times and links do not count there.
            let by_images = fixture.program.ok(&["diff", &image, &next]);
            let missing: Vec<_> =
                by_images.lines().filter(|line| !listed.lines().any(|other| other == *line)).collect();
            assert!(missing.is_empty(), "{context}missing {missing:#?}");
            fixture.remove("new");
            fixture.remove("it");
            image = next;
        }
    }
}
