//! Images that EROFS cannot express: roots get them from the mount, and who asks for EROFS learns the reason.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rcx_imagefs::image::Digest;
use support::blob::Blob;
use support::case::{Case, Expected};
use support::layers::{EntryKind, Line, tar};
use support::layout;
use support::program::Program;

const XATTR: &str = "user.long";

/// An image with a layer that has an ordinary file, beside what `lines` add.
fn image(name: &str, mut lines: Vec<Line>) -> Case {
    lines.push(Line::new(b"etc/motd", EntryKind::File(b"hello\n".to_vec())));
    let bytes = tar(&lines);
    let digest = Digest::of(&bytes);
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    let layer = Blob { digest, diff_id: digest, media_type, bytes };
    let expected = Expected::Tree(String::new());
    Case { name: name.to_owned(), rule: 0, description: String::new(), layers: vec![layer], expected }
}

fn sparse(name: &str, size: u64, segments: Vec<(u64, Vec<u8>)>) -> Vec<Line> {
    vec![Line::new(name.as_bytes(), EntryKind::Sparse(size, segments))]
}

#[test]
fn image_that_erofs_cannot_express_is_shown_by_fuse_and_named_with_the_reason() {
    const HUGE: u64 = u64::MAX >> 1;
    let mut long_xattr = Line::new(b"long", EntryKind::File(b"x".to_vec()));
    long_xattr.xattrs.push((XATTR.to_owned(), vec![b'v'; 65_536]));
    let mut many_xattrs = Line::new(b"many", EntryKind::File(Vec::new()));
    many_xattrs.xattrs.extend((0..300).map(|number| (format!("user.{number}"), vec![b'v'; 900])));
    let cases = [
        ("xattr", vec![long_xattr], "extended attribute `user.long` has 65536 bytes, more than 65535"),
        ("xattrs", vec![many_xattrs], "the extended attributes of a file take"),
        ("layer", sparse("huge", HUGE, vec![(HUGE - 1, b"!".to_vec())]), "the content of layer 1 takes"),
        ("hole", sparse("hole", HUGE, Vec::new()), "a file without content has 9223372036854775807 bytes"),
    ];
    let program = Program::new();
    let images: Vec<Case> = cases.iter().map(|(name, lines, _)| image(name, lines.clone())).collect();
    let layout = program.dir().join("layout");
    layout::write(&layout, &images);
    let loaded = program.run(&["load", "--name", "lab/hostile", layout.to_str().unwrap()]);
    let warnings = String::from_utf8_lossy(&loaded.stderr);
    assert!(loaded.status.success(), "{warnings}");
    assert!(cases.iter().all(|(_, _, reason)| warnings.contains(reason)), "{warnings}");
    let mount = program.mount();
    for (name, _, reason) in &cases {
        let reference = format!("lab/hostile:{name}");
        let create = ["root", "create", &reference, "--id", name];
        let refused = program.fails(&[&create[..], &["--engine", "erofs"]].concat());
        assert!(
            refused.contains("EROFS cannot express the image") && refused.contains(reason),
            "{name}: {refused}"
        );
        for options in [&[][..], &["--engine", "auto"]] {
            let output = program.run(&[&["--verbose"], &create[..], options].concat());
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && log.contains(reason), "{name} {options:?}: {log}");
            let root = program.dir().join("run/roots").join(name);
            assert_eq!(program.json(&["root", "list"])[0]["engine"], "fuse");
            assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello\n");
            assert_odd_file(&root);
            program.ok(&["root", "remove", name]);
        }
    }
    mount.stop();
}

/// Checks the file that EROFS cannot express.
fn assert_odd_file(root: &Path) {
    let file = |name: &str| Some(root.join(name)).filter(|path| path.exists());
    if let Some(path) = file("long") {
        let mut value = vec![0; 65_536];
        assert_eq!(rustix::fs::lgetxattr(&path, XATTR, &mut value[..]), Ok(65_536));
        assert!(value.iter().all(|byte| *byte == b'v'));
    } else if let Some(path) = file("huge") {
        let size = fs::metadata(&path).unwrap().size();
        let mut last = [0; 2];
        fs::File::open(&path).unwrap().read_exact_at(&mut last, size - 2).unwrap();
        assert_eq!((size, &last), (u64::MAX >> 1, b"\0!"));
    } else if let Some(path) = file("hole") {
        let mut bytes = [1; 4096];
        fs::File::open(&path).unwrap().read_exact_at(&mut bytes, 1 << 62).unwrap();
        assert_eq!(bytes, [0; 4096]);
    } else {
        assert!(file("many").is_some());
    }
}
