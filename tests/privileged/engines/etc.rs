//! The names of the user and of hosts that a root has in `/etc` in addition to its image.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use support::engines::WITH_UPPERS;
use support::program::Program;
use support::text::{image, layers, load};
use support::trees::{attributes, snapshot, xattrs};

const USER: &str = "box:x:4242:4243:box:/box:/bin/sh\n";
const GROUP: &str = "box:x:4243:\n";
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

fn create(program: &Program, image: &str, options: &[&str]) -> PathBuf {
    program.ok(&[&["root", "create", image][..], options].concat()).into()
}

fn remove(program: &Program, root: &Path) {
    program.ok(&["root", "remove", root.file_name().unwrap().to_str().unwrap()]);
}

/// The content of a file, `-` if it does not exist.
fn content(root: &Path, path: &str) -> String {
    match fs::read_to_string(root.join(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => "-".to_owned(),
        result => result.unwrap_or_else(|error| panic!("{path}: {error}")),
    }
}

/// The entries of a root, without the directories of the skeleton.
fn image_entries(root: &Path) -> Vec<String> {
    let skeleton = ["box", "dev", "proc", "sys", "tmp"].map(|name| format!("{name} "));
    let is_image =
        |line: &String| !skeleton.iter().any(|name| line.trim_start_matches('/').starts_with(name));
    snapshot(root).into_iter().filter(is_image).collect()
}

#[test]
fn roots_name_their_user_and_localhost_in_every_engine() {
    let program = Program::new();
    let text = "f etc/passwd root:x:0:0::/root:/bin/sh\\n uid=5 mode=640 mtime=7
        f etc/group root:x:0:
        d etc uid=3 gid=4 mode=751 mtime=1234.5 xattr.user.of=image
        f etc/motd hello
        ---
        f etc/issue above";
    let name = load(&program, &image("names", layers(text)));
    let mount = program.mount();
    let directory = |etc: &Path| {
        let metadata = fs::metadata(etc).unwrap();
        (
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            xattrs(etc),
        )
    };
    for (engine, upper) in WITH_UPPERS {
        let options = ["--engine", engine, "--upper", upper];
        let root = create(&program, &name, &[&options[..], &["--user", "4242:4243"]].concat());
        let plain = create(&program, &name, &[&options[..], &["--no-inject"]].concat());
        let expected = [
            ("etc/passwd", format!("root:x:0:0::/root:/bin/sh\n{USER}")),
            ("etc/group", format!("root:x:0:\n{GROUP}")),
            ("etc/hosts", LOCALHOST.to_owned()),
            ("etc/motd", "hello".to_owned()),
            ("etc/issue", "above".to_owned()),
            ("etc/resolv.conf", "-".to_owned()),
        ];
        for (path, expected) in &expected {
            assert_eq!(content(&root, path), *expected, "{engine} {upper}: {path}");
        }
        let of_image = fs::metadata(plain.join("etc/passwd")).unwrap();
        let of_root = fs::metadata(root.join("etc/passwd")).unwrap();
        let kept = |file: &fs::Metadata| (file.mode(), file.uid(), file.mtime());
        assert_eq!(kept(&of_root), kept(&of_image), "{engine} {upper}");
        assert_eq!(directory(&root.join("etc")), directory(&plain.join("etc")), "{engine} {upper}");
        assert_eq!(attributes(&fs::metadata(&root).unwrap()), attributes(&fs::metadata(&plain).unwrap()));
        assert_eq!(content(&plain, "etc/passwd"), "root:x:0:0::/root:/bin/sh\n", "{engine} {upper}");
        assert_eq!(content(&plain, "etc/hosts"), "-", "{engine} {upper}");
        if upper != "none" {
            // The files behave like all others, and the upper has only what is changed.
            fs::write(root.join("etc/hosts"), "changed").unwrap();
            fs::rename(root.join("etc/group"), root.join("etc/group.old")).unwrap();
            fs::rename(root.join("etc"), root.join("old")).unwrap();
            assert_eq!(content(&root, "old/hosts"), "changed");
            assert_eq!(content(&root, "old/group.old"), format!("root:x:0:\n{GROUP}"));
            assert_eq!(content(&root, "old/passwd"), format!("root:x:0:0::/root:/bin/sh\n{USER}"));
        }
        if upper == "dir" {
            let homes = program.store().join("rcx-imagefs/roots");
            let upper = homes.join(root.file_name().unwrap()).join("upper");
            assert!(!upper.join("old/passwd").exists() && upper.join("old/hosts").exists());
            assert_eq!(
                fs::read_dir(homes.join(plain.file_name().unwrap()).join("upper")).unwrap().count(),
                0
            );
        }
        remove(&program, &root);
        remove(&program, &plain);
    }
    mount.stop();
}

/// The tag of an image, its layers, and the content that a root has at paths.
type OddImage = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Images whose `/etc` is not what it usually is.
const ODD_IMAGES: [OddImage; 12] = [
    ("bare", "f file", &[("etc/passwd", USER), ("etc/group", GROUP), ("etc/hosts", LOCALHOST)]),
    (
        "linked-directory",
        "d usr/share/conf mode=711\n f usr/share/conf/group staff:x:4243:me\n l etc /usr/../usr/share/conf",
        &[
            ("usr/share/conf/passwd", USER),
            ("usr/share/conf/group", "staff:x:4243:me"),
            ("usr/share/conf/hosts", LOCALHOST),
        ],
    ),
    (
        "linked-file",
        "f usr/lib/passwd a:x:1:1::/:\n l etc/passwd ../../../../usr/lib/passwd\n l etc/hosts /nowhere\n l etc/group group",
        &[
            ("etc/passwd", "a:x:1:1::/:\nbox:x:4242:4243:box:/box:/bin/sh\n"),
            ("usr/lib/passwd", "a:x:1:1::/:"),
            ("etc/hosts", LOCALHOST),
            ("etc/group", GROUP),
        ],
    ),
    // Links that would lead to files of the host.
    (
        "outside",
        "l etc/passwd /root/rcx-canary\n l etc/hosts ../../../../../../../root/rcx-canary",
        &[("etc/passwd", USER), ("etc/hosts", LOCALHOST)],
    ),
    ("file", "f etc text", &[("etc", "text")]),
    ("dangling", "l etc /nowhere", &[("nowhere", "-"), ("etc", "-")]),
    ("circle", "l etc usr\n l usr etc", &[]),
    ("root", "l etc /", &[("passwd", "-"), ("hosts", "-")]),
    (
        "hidden",
        "f box/etc/passwd text\n l etc box/etc",
        &[("box/etc/passwd", "text"), ("box/etc/hosts", "-")],
    ),
    (
        "special",
        "d etc/passwd\n f etc/passwd/inside text\n p etc/group\n c etc/hosts 1:5",
        &[("etc/passwd/inside", "text")],
    ),
    // The layer below has files that the layer above hides.
    (
        "whiteouts",
        "f etc/passwd a:x:4242:1::/:\n f etc/hosts 127.0.0.1\\x20localhost\n---\nw etc/passwd\n f etc/group b:x:1:\n---\no etc",
        &[("etc/passwd", USER), ("etc/group", GROUP), ("etc/hosts", LOCALHOST)],
    ),
    (
        "complete",
        "f etc/passwd a:x:4242:1::/:\n f etc/group b:x:4243:\n f etc/hosts 127.0.0.1\\x20localhost",
        &[("etc/passwd", "a:x:4242:1::/:"), ("etc/group", "b:x:4243:"), ("etc/hosts", "127.0.0.1 localhost")],
    ),
];

#[test]
fn odd_etc_of_an_image_gets_names_or_stays_as_it_is() {
    let program = Program::new();
    let loaded: Vec<String> =
        ODD_IMAGES.iter().map(|(tag, text, _)| load(&program, &image(tag, layers(text)))).collect();
    let mount = program.mount();
    for (name, (tag, _, expected)) in loaded.iter().zip(ODD_IMAGES) {
        for (engine, upper) in WITH_UPPERS {
            let options = ["--engine", engine, "--upper", upper];
            let root = create(&program, name, &[&options[..], &["--user", "4242:4243"]].concat());
            for (path, expected) in expected {
                assert_eq!(content(&root, path), *expected, "{tag} with {engine} and {upper}: {path}");
            }
            if matches!(tag, "file" | "circle" | "root" | "hidden" | "dangling" | "special" | "complete") {
                let plain = create(&program, name, &[&options[..], &["--no-inject"]].concat());
                assert_eq!(image_entries(&root), image_entries(&plain), "{tag} with {engine} and {upper}");
                remove(&program, &plain);
            }
            remove(&program, &root);
        }
    }
    mount.stop();
}

#[test]
fn large_attributes_of_etc_leave_it_as_it_is() {
    let program = Program::new();
    let value = "v".repeat(3000);
    let text = format!("d etc xattr.user.large={value}\n f etc/motd hello");
    let name = load(&program, &image("attributes", layers(&text)));
    let mount = program.mount();
    for upper in ["none", "dir", "tmpfs:1m"] {
        let root = create(&program, &name, &["--upper", upper, "--user", "4242:4243"]);
        assert_eq!(content(&root, "etc/hosts"), "-");
        assert_eq!(xattrs(&root.join("etc")).len(), 1);
        remove(&program, &root);
    }
    mount.stop();
}

#[test]
fn large_files_of_etc_are_merged_up_to_a_limit() {
    let program = Program::new();
    let line = "someone:x:7:7::/:\\n";
    let text = |lines: usize| format!("f etc/passwd {}", line.repeat(lines));
    let large = load(&program, &image("large", layers(&text(40_000))));
    let too_large = load(&program, &image("too-large", layers(&text(70_000))));
    let mount = program.mount();
    for (engine, upper) in WITH_UPPERS {
        let length = |name: &str| {
            let root = create(&program, name, &["--engine", engine, "--upper", upper, "--user", "4242:4243"]);
            let length = fs::read(root.join("etc/passwd")).unwrap().len();
            assert_eq!(content(&root, "etc/hosts"), LOCALHOST);
            remove(&program, &root);
            length
        };
        assert_eq!(length(&large), 40_000 * 18 + USER.len(), "{engine} {upper}");
        assert_eq!(length(&too_large), 70_000 * 18, "{engine} {upper}");
    }
    mount.stop();
}
