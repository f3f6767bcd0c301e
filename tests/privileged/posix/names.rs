//! Length limits of names and paths, path resolution, directory listings, and stable inode numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::{MountedImage, open_path};
use support::program::Program;
use support::trees::list;
use support::{text, trees};

fn stat(path: &Path) -> rustix::io::Result<Stat> {
    rustix::fs::lstat(path)
}

fn ino(path: &Path) -> u64 {
    stat(path).unwrap_or_else(|errno| panic!("{}: {errno}", path.display())).st_ino
}

/// Pads the path `end` with `./` to `length` bytes.
fn padded(end: &str, length: usize) -> String {
    let padding = length - end.len();
    format!("{}{}{end}", "./".repeat(padding / 2), if padding % 2 == 1 { "/" } else { "" })
}

#[test]
fn name_of_255_bytes_is_found_and_256_bytes_is_enametoolong() {
    let program = Program::new();
    let (long, wide) = ("n".repeat(255), "\u{e4}".repeat(127));
    let layers = format!("f {long} long \n d {long}-dir \n f {wide}x wide")
        .replace("-dir", "")
        .replace("d nn", "d dd");
    let layers = layers.replace(&format!("d {long}"), &format!("d {}", "d".repeat(255)));
    let layers = format!("{layers} \n f {}/{long} inner", "e".repeat(255));
    let name = text::load(&program, &text::image("long", text::layers(&layers)));
    let mount = program.mount();
    let root = mount.path(&name);
    assert_eq!(fs::read_to_string(root.join(&long)).unwrap(), "long");
    assert_eq!(fs::read_to_string(root.join(format!("{wide}x"))).unwrap(), "wide");
    assert_eq!(fs::read_to_string(root.join("e".repeat(255)).join(&long)).unwrap(), "inner");
    let listed: BTreeSet<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(listed.contains(Path::new(&long).as_os_str()));
    for directory in [root.clone(), root.join("e".repeat(255)), mount.dir().to_owned(), mount.path("lab")] {
        for length in [256, 257, 1000, 1024, 1025, 4000] {
            let path = directory.join("n".repeat(length));
            assert_eq!(
                stat(&path).err(),
                Some(Errno::NAMETOOLONG),
                "{length} bytes in {}",
                directory.display()
            );
        }
        assert_eq!(stat(&directory.join("m".repeat(255))).err(), Some(Errno::NOENT));
    }
    mount.stop();
}

#[test]
fn path_of_4095_bytes_is_accepted_and_4096_bytes_is_enametoolong() {
    let image = MountedImage::new();
    let root = open_path(&image.root);
    let open = |path: &str| rustix::fs::openat(&root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    for end in ["file", "dir/inner", "link-to-dir/inner"] {
        assert!(open(&padded(end, 4095)).is_ok(), "{end}");
        assert_eq!(open(&padded(end, 4096)).err(), Some(Errno::NAMETOOLONG), "{end}");
    }
    assert_eq!(open(&padded("missing", 4095)).err(), Some(Errno::NOENT));
}

#[test]
fn tree_deeper_than_path_max_can_be_walked_step_by_step() {
    let program = Program::new();
    // 16 times 250 bytes: too long for a path together with the mountpoint.
    let deep = vec!["d".repeat(250); 16].join("/");
    let text =
        format!("f {deep}/file deep \n l link {} \n f {} short", "x/".repeat(2047), "y/".repeat(100) + "end");
    let name = text::load(&program, &text::image("deep", text::layers(&text)));
    let mount = program.mount();
    let root = mount.path(&name);
    let full_path = root.join(&deep).join("file");
    assert!(full_path.as_os_str().len() > 4095);
    assert_eq!(stat(&full_path).err(), Some(Errno::NAMETOOLONG));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let inside = rustix::fs::openat(open_path(&root), format!("{deep}/file"), flags, Mode::empty());
    assert_eq!(std::io::read_to_string(File::from(inside.unwrap())).unwrap(), "deep");
    let mut at = open_path(&root);
    let mut up = Vec::new();
    for name in deep.split('/') {
        up.push(rustix::fs::fstat(&at).unwrap().st_ino);
        at = rustix::fs::openat(&at, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    while let Some(ino) = up.pop() {
        at = rustix::fs::openat(&at, "..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(rustix::fs::fstat(&at).unwrap().st_ino, ino);
    }
    assert_eq!(fs::read_link(root.join("link")).unwrap().as_os_str().len(), 4094);
    assert_eq!(fs::read_to_string(root.join("y/".repeat(100) + "end")).unwrap(), "short");
}

#[test]
fn paths_resolve_as_on_tmpfs() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    for root in [&image.root, disk.path()] {
        for (path, target) in [
            ("file/", Err(Errno::NOTDIR)),
            ("file/.", Err(Errno::NOTDIR)),
            ("file/..", Err(Errno::NOTDIR)),
            ("missing/..", Err(Errno::NOENT)),
            ("dangling/", Err(Errno::NOENT)),
            ("link/", Err(Errno::NOTDIR)),
            ("loop/", Err(Errno::LOOP)),
            ("circle-a/x", Err(Errno::LOOP)),
            ("pipe/x", Err(Errno::NOTDIR)),
            ("loop", Ok("loop")),
            ("dir/", Ok("dir")),
            ("dir/.", Ok("dir")),
            ("dir//sub/../inner", Ok("dir/inner")),
            ("dir/sub/..", Ok("dir")),
            ("link-to-dir/", Ok("dir")),
            ("link-to-dir/..", Ok("")),
            ("link-to-dir/sub/..", Ok("dir")),
            ("dir/sub/../..", Ok("")),
        ] {
            let here = |path: &str| if path.is_empty() { root.to_path_buf() } else { root.join(path) };
            let expected = target.map(|path| ino(&here(path)));
            let found = stat(&here(path)).map(|stat| stat.st_ino);
            assert_eq!(found, expected, "{path:?} in {}", root.display());
        }
        for not_a_link in ["file", "dir", "pipe", "null"] {
            assert_eq!(
                rustix::fs::readlink(root.join(not_a_link), []).err(),
                Some(Errno::INVAL),
                "{not_a_link}"
            );
        }
    }
    image.mount.stop();
}

#[test]
fn dot_dot_resolves_correctly_from_inside_an_image_to_outside_the_mount() {
    let image = MountedImage::new();
    let digest = image.name.split_once('@').unwrap().1;
    let tag = image.mount.path("lab/text:posix");
    let dash = image.mount.path(&format!("lab/text@{}", digest.replace(':', "-")));
    let lab = image.mount.path("lab");
    // The parent of an image is the same whichever name was used to reach it.
    for root in [&image.root, &tag.join("."), &dash.join(".")] {
        assert_eq!(ino(&root.join("..")), ino(&lab), "{}", root.display());
        assert_eq!(ino(&root.join("dir/..")), ino(&root.join(".")));
        assert_eq!(ino(&root.join("dir/sub/../..")), ino(&image.root));
    }
    assert_eq!(ino(&lab.join("..")), ino(image.mount.dir()));
    assert_eq!(ino(&image.root.join("../..")), ino(image.mount.dir()));
    // The parent of the mount is the directory that contains the mountpoint.
    assert_eq!(ino(&image.mount.dir().join("..")), ino(image.program.dir()));
    // The same through descriptors, which are not resolved by path.
    let mut at = open_path(&image.path("dir/sub"));
    for expected in ["dir", "", "..", "../.."] {
        at = rustix::fs::openat(&at, "..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let here = if expected.is_empty() { image.root.clone() } else { image.root.join(expected) };
        assert_eq!(rustix::fs::fstat(&at).unwrap().st_ino, ino(&here), "{expected}");
    }
}

#[test]
fn readdir_reports_the_same_inode_and_type_as_stat() {
    let image = MountedImage::new();
    for directory in ["", "dir", "bin", "empty-dir"] {
        let directory = if directory.is_empty() { image.root.clone() } else { image.root.join(directory) };
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(File::open(&directory).unwrap()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_str().unwrap().to_owned();
            let stat = stat(&directory.join(&name)).unwrap();
            assert_eq!(entry.ino(), stat.st_ino, "{name} in {}", directory.display());
            assert_eq!(entry.file_type(), rustix::fs::FileType::from_raw_mode(stat.st_mode), "{name}");
            assert!(names.insert(name.clone()), "{name} is listed twice");
        }
        assert!(names.contains(".") && names.contains(".."), "{names:?}");
        let children = fs::read_dir(&directory)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(
            stat(&directory).unwrap().st_nlink,
            2 + children.count() as u64,
            "{}",
            directory.display()
        );
    }
    image.mount.stop();
}

#[test]
fn directory_offset_belongs_to_each_open_and_can_be_seeked_back_to() {
    let image = MountedImage::new();
    let (one, other) = (File::open(&image.root).unwrap(), File::open(&image.root).unwrap());
    let all = list(&one, 512);
    assert!(all.len() > 20);
    assert_eq!(list(&one, 512), [], "the descriptor is at the end");
    assert_eq!(list(&other, 512), all, "another descriptor is still at the start");
    // A duplicated descriptor shares the offset.
    let copy = one.try_clone().unwrap();
    rustix::fs::seek(&copy, SeekFrom::Start(0)).unwrap();
    assert_eq!(list(&one, 512), all);
    assert_eq!(list(&copy, 512), []);
    // From each entry, backwards and forwards.
    for at in (0..all.len()).rev().chain(0..all.len()) {
        rustix::fs::seek(&one, SeekFrom::Start(all[at].1)).unwrap();
        assert_eq!(rustix::fs::tell(&one), Ok(all[at].1));
        assert_eq!(list(&one, 512), all[at + 1..], "after {:?}", all[at].0);
    }
    // Offsets past the end list nothing, and offsets before the start are invalid.
    for far in [1 << 20, 1 << 40, i64::MAX as u64] {
        rustix::fs::seek(&one, SeekFrom::Start(far)).unwrap();
        assert_eq!(list(&one, 512), [], "at {far}");
    }
    assert_eq!(rustix::fs::seek(&one, SeekFrom::Current(i64::MIN)), Err(Errno::INVAL));
    rustix::fs::seek(&one, SeekFrom::Start(0)).unwrap();
    assert_eq!(list(&one, 512), all);
}

/// The stable attributes of every path: inode, link count, mtime, ctime and blocks. Asserts that all have one device.
fn stable_attributes(root: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64, u64)> {
    let device = fs::metadata(root).unwrap().dev();
    let attributes = trees::paths(root).into_iter().map(|path| {
        let meta = fs::symlink_metadata(root.join(&path)).unwrap();
        assert_eq!(meta.dev(), device, "{}", path.display());
        (path, (meta.ino(), meta.nlink(), meta.mtime(), meta.ctime(), meta.blocks()))
    });
    attributes.collect()
}

#[test]
fn inode_numbers_survive_dropped_caches_restarts_and_new_images() {
    let image = MountedImage::new();
    let first = stable_attributes(&image.root);
    let inodes: BTreeSet<_> = first.values().map(|attributes| attributes.0).collect();
    // `linked` and busybox have two names each.
    assert_eq!(inodes.len() + 2, first.len());
    assert_eq!(first[Path::new("linked")], first[Path::new("other-name")]);
    assert_eq!(first[Path::new("linked")].1, 2);
    for entry in fs::read_dir(&image.root).unwrap().map(Result::unwrap) {
        assert_eq!(first[Path::new(&entry.file_name())].0, entry.ino());
    }
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(stable_attributes(&image.root), first);
    let MountedImage { mount, program, name, root } = image;
    mount.stop();
    // After the restart, a new image is loaded and read first.
    let other = text::load(&program, &text::image("other", text::layers("f file hello \n d dir")));
    let mount = program.mount();
    assert_ne!(fs::metadata(mount.path(&other).join("dir")).unwrap().ino(), first[Path::new("dir")].0);
    assert_eq!(mount.path(&name), root);
    assert_eq!(stable_attributes(&root), first);
    mount.stop();
}
