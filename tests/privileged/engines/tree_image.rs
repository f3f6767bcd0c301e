//! Tree images on the real kernel, at the limits of the format. The conformance suite and the random images have the rest.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use rcx_imagefs::erofs::TreeImage;
use rcx_imagefs::index::Layer;
use rcx_imagefs::roots::enter_private_namespace;
use rcx_imagefs::tree::merge;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use support::disk;
use support::engine_dump::TreeMount;
use support::layers::{EntryKind, Line, Merged, merge_lines, open, parse};

/// Mounts the merged layers.
fn mounted(merged: &Merged, dir: &Path) -> TreeMount {
    enter_private_namespace().expect("this test needs root");
    let layers: Vec<_> = merged.layers.iter().collect();
    TreeMount::new(&merged.tree, &layers, dir)
}

/// Merges layers, mounts them, and asserts that the kernel shows what the tree says.
#[track_caller]
fn assert_shown(layers: &[Vec<Line>]) {
    let merged = merge_lines(layers).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(&merged, dir.path());
    let shown = disk::dump(mounted.path(), i64::MAX).unwrap();
    let odd = shown.lines().find(|line| line.starts_with('?') || line.contains(" nlink="));
    assert_eq!(odd, None);
    assert!(parse(&shown) == parse(&merged.dump()), "shown\n{shown}\nexpected\n{}", merged.dump());
}

/// Writes the files of a directory as a tar with GNU tar's form of sparse files, and indexes it.
fn sparse_layer(dir: &Path, names: &[&str]) -> Layer<Vec<u8>> {
    let tar = dir.join("layer.tar");
    let status = Command::new("tar")
        .args(["--sparse", "--format=pax", "-C"])
        .arg(dir)
        .arg("-cf")
        .arg(&tar)
        .args(names)
        .status()
        .unwrap();
    assert!(status.success());
    let blob = fs::read(&tar).unwrap();
    fs::remove_file(&tar).unwrap();
    open(blob).unwrap()
}

fn sparse_file(path: &Path, size: u64, writes: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in writes {
        file.write_all_at(bytes, *at).unwrap();
    }
}

fn merged(layers: Vec<Layer<Vec<u8>>>) -> Merged {
    let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
    let tree = merge(&indexes).unwrap();
    Merged { layers, tree }
}

#[test]
fn attributes_at_their_limits_are_shown() {
    let mut lines = parse(
        "d dir mode=7777 uid=4294967294 gid=65536 mtime=-1.500000000\n\
         f file content uid=65535 gid=65535 mtime=253402300799.999999999\n\
         f old mtime=-62135596800\nf a\nh b a\nh c a\nf set mode=6755\n\
         c console 5:1 mode=600\nc wide 511:1048575\nb disk 4095:255 uid=1\np pipe mode=1644\nl link file uid=7\nd empty",
    )
    .remove(0);
    for length in [1, 255] {
        lines.push(Line::new(&vec![0xff; length], EntryKind::File(b"not UTF-8".to_vec())));
    }
    // Lengths around those that fit beside an inode, with and without a whole block in front.
    for length in [31, 255, 416, 417, 447, 448, 449, 479, 480, 481, 511, 512, 513, 1023, 1024, 1025, 4095] {
        let name = format!("link{length}");
        lines.push(Line::new(name.as_bytes(), EntryKind::Symlink(vec![b'x'; length])));
    }
    assert_shown(&[lines]);
}

#[test]
fn directories_of_every_length_around_a_block_are_shown() {
    let mut lines = Vec::new();
    for count in 1..70 {
        for file in 0..count {
            let path = format!("d{count}/{}", "n".repeat(1 + file));
            lines.push(Line::new(path.as_bytes(), EntryKind::Fifo));
        }
    }
    // Names that sort before `.`, between `.` and `..`, and after both.
    for name in ["!", "-", ".-", ".!", "...", "..-", ".a", "/"] {
        lines.push(Line::new(format!("odd/{name}x").as_bytes(), EntryKind::Directory));
    }
    assert_shown(&[lines]);
}

#[test]
fn xattrs_are_shown_whether_shared_or_beside_the_inode() {
    let mut lines = Vec::new();
    for file in 0..6_u8 {
        let mut line = Line::new(&[b'a' + file], EntryKind::File(vec![file]));
        line.xattrs.push(("security.capability".to_owned(), {
            let mut value = vec![1, 0, 0, 2];
            value.extend_from_slice(&[0; 16]);
            value
        }));
        line.xattrs.push(("trusted.own".to_owned(), vec![file; 5]));
        line.xattrs.push(("user.empty".to_owned(), Vec::new()));
        if file % 2 == 0 {
            line.xattrs.push((format!("user.{}", "n".repeat(250)), vec![b'v'; 600]));
            line.xattrs.push(("user.long".to_owned(), vec![file; 60_000]));
        }
        line.xattrs.sort();
        lines.push(line);
    }
    let mut many = Line::new(b"many", EntryKind::Directory);
    let mut again = Line::new(b"again", EntryKind::Directory);
    // More than an inode can share, in lists that fit into the kernel's limit of 64 KiB.
    for number in 0..300 {
        many.xattrs.push((format!("user.{number:03}"), format!("value {number}").into_bytes()));
    }
    again.xattrs.clone_from(&many.xattrs);
    assert_shown(&[vec![many, again], lines]);
}

#[test]
fn acls_are_enforced() {
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    };
    let none = u32::MAX;
    let mut line = Line::new(b"secret", EntryKind::File(b"x".to_vec()));
    let value = acl(&[(1, 6, none), (2, 0, 1234), (4, 4, none), (16, 4, none), (32, 4, none)]);
    line.xattrs.push(("system.posix_acl_access".to_owned(), value));
    let merged = merge_lines(&[vec![line]]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::chmod(dir.path(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let mounted = mounted(&merged, dir.path());
    let readable_by = |uid: &str| {
        let file = mounted.path().join("secret");
        Command::new("setpriv")
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "cat"])
            .arg(file)
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(!readable_by("1234"), "the ACL denies this user");
    assert!(readable_by("1235"), "the mode lets others read");
}

#[test]
fn sparse_files_show_their_holes_and_segments() {
    let source = tempfile::tempdir().unwrap();
    let noise: Vec<u8> =
        (0..100_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    sparse_file(&source.path().join("a"), 10 << 20, &[(4096, &noise), (9 << 20, b"end")]);
    sparse_file(&source.path().join("b"), (5 << 20) + 1, &[(0, b"start"), (5 << 20, b"!")]);
    sparse_file(&source.path().join("hole"), (3 << 40) + 5, &[]);
    sparse_file(&source.path().join("small"), 700, &[(0, &[7; 700])]);
    let merged = merged(vec![sparse_layer(source.path(), &["a", "b", "hole", "small"])]);
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(&merged, dir.path());
    for name in ["a", "b", "small"] {
        let shown = fs::read(mounted.path().join(name)).unwrap();
        assert!(shown == fs::read(source.path().join(name)).unwrap(), "{name}");
    }
    // A copy of the file, as an overlay makes it, does not fill its holes.
    let seek = |name: &str, from| rustix::fs::seek(File::open(mounted.path().join(name)).unwrap(), from);
    assert_eq!(seek("a", SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek("a", SeekFrom::Data(0)), Ok(4096));
    let (end, next) = (4096 + 4 * 100_000_u64, 9_u64 << 20);
    assert!((end..end + 4096).contains(&seek("a", SeekFrom::Hole(4096)).unwrap()));
    assert!((next - 4096..=next).contains(&seek("a", SeekFrom::Data(2 << 20)).unwrap()));
    assert_eq!(seek("hole", SeekFrom::Data(0)), Err(Errno::NXIO));
    let hole = File::open(mounted.path().join("hole")).unwrap();
    assert_eq!(hole.metadata().unwrap().len(), (3 << 40) + 5);
    let mut bytes = [1; 10];
    assert_eq!(hole.read_at(&mut bytes, 3 << 40).unwrap(), 5);
    assert_eq!(bytes[..5], [0; 5]);
    // The plain layer has the holes too.
    let plain = fs::metadata(dir.path().join("0")).unwrap();
    assert!(plain.blocks() * 512 < 4 << 20, "{} blocks", plain.blocks());
}

/// Two layers of 1.5 TiB do not fit into 32-bit block addresses together: the files of the second name their device.
#[test]
fn layers_beyond_the_common_addresses_are_shown() {
    const SIZE: u64 = 3 << 39;
    let layer = |name: &str, text: &[u8]| {
        let source = tempfile::tempdir().unwrap();
        sparse_file(&source.path().join(name), SIZE, &[(0, text), (SIZE - 4096, text)]);
        fs::write(source.path().join(format!("{name}.small")), text).unwrap();
        sparse_layer(source.path(), &[name, &format!("{name}.small")])
    };
    let merged = merged(vec![layer("a", b"first"), layer("b", b"second"), layer("c", b"third")]);
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(&merged, dir.path());
    for (name, text) in [("a", &b"first"[..]), ("b", b"second"), ("c", b"third")] {
        assert_eq!(fs::read(mounted.path().join(format!("{name}.small"))).unwrap(), text);
        let file = File::open(mounted.path().join(name)).unwrap();
        for offset in [0, SIZE - 4096] {
            let mut bytes = vec![0; text.len()];
            file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(bytes, text, "{name} at {offset}");
        }
        let mut bytes = [1; 100];
        file.read_exact_at(&mut bytes, SIZE / 2).unwrap();
        assert_eq!(bytes, [0; 100]);
    }
}

#[test]
fn large_directory_is_listed_and_searched() {
    const COUNT: usize = 40_000;
    let lines = (0..COUNT)
        .map(|number| Line::new(format!("many/file-{number:07}").as_bytes(), EntryKind::Fifo))
        .collect();
    let merged = merge_lines(&[lines]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(&merged, dir.path());
    let many = mounted.path().join("many");
    assert_eq!(fs::read_dir(&many).unwrap().count(), COUNT);
    for number in (0..COUNT).step_by(997) {
        assert!(fs::symlink_metadata(many.join(format!("file-{number:07}"))).is_ok(), "{number}");
    }
    assert!(fs::symlink_metadata(many.join("file-0000000x")).is_err());
}

#[test]
fn image_of_many_layers_is_shown() {
    let layers: Vec<_> = (0..1000)
        .map(|number| {
            vec![Line::new(format!("f{number}").as_bytes(), EntryKind::File(vec![b'x'; 1 + number]))]
        })
        .collect();
    assert_shown(&layers);
}

#[test]
fn image_is_a_function_of_the_tree() {
    let text = "d a\nf a/file x xattr.user.a=1\nl link a mtime=5\n---\nf b y xattr.user.a=1";
    let write = || {
        let merged = merge_lines(&parse(text)).unwrap();
        let indexes: Vec<_> = merged.layers.iter().map(Layer::index).collect();
        let mut bytes = Vec::new();
        TreeImage::plan(&merged.tree, &indexes).unwrap().write([3; 16], &mut bytes).unwrap();
        bytes
    };
    assert!(write() == write());
}

#[test]
fn tree_that_the_format_cannot_express_is_refused_with_the_reason() {
    let refused = |layer: Layer<Vec<u8>>| {
        let merged = merged(vec![layer]);
        let indexes: Vec<_> = merged.layers.iter().map(Layer::index).collect();
        TreeImage::plan(&merged.tree, &indexes).unwrap_err().to_string()
    };
    let source = tempfile::tempdir().unwrap();
    sparse_file(&source.path().join("long"), 5 << 40, &[(0, b"x")]);
    let reason = refused(sparse_layer(source.path(), &["long"]));
    assert!(reason.contains("layer 1 takes 5497558"), "{reason}");

    let mut line = Line::new(b"f", EntryKind::File(Vec::new()));
    line.xattrs.push(("user.long".to_owned(), vec![0; 65_536]));
    let reason = refused(open(support::layers::tar(&[line])).unwrap());
    assert_eq!(reason, "extended attribute `user.long` has 65536 bytes, more than 65535");

    let mut line = Line::new(b"f", EntryKind::File(Vec::new()));
    for number in 0..300 {
        line.xattrs.push((format!("user.{number:03}"), vec![b'x'; 1000]));
    }
    let reason = refused(open(support::layers::tar(&[line])).unwrap());
    assert!(reason.ends_with("bytes, more than 262148"), "{reason}");
}
