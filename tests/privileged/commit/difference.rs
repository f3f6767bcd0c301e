//! What a commit writes, and what `diff` lists.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::{CommitFixture, shell};

/// Lines of `diff` for a root.
fn diff(fixture: &CommitFixture, id: &str) -> Vec<String> {
    let listed = fixture.program.ok(&["diff", id]);
    assert_eq!(listed, fixture.program.ok(&["root", "diff", id]));
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn only_what_differs_is_written_with_whiteouts_first() {
    let fixture = CommitFixture::new();
    for (id, upper) in [("disk", "dir"), ("memory", "tmpfs:8m")] {
        let root = fixture.create("lab/base:1", id, "erofs", upper);
        let before = fs::metadata(&root).unwrap().mtime();
        shell(
            &root,
            "rm -r gone && rm dir/a && echo x > dir/sub/new && chmod 600 replaced && chmod 500 replaced && chmod 644 replaced
             mkdir fresh && echo 1 > fresh/f && rm -r fresh
             mkdir -p new/dir && cat dir/b > /dev/null && echo 4 > moved/f && printf 4 > moved/f && touch -d @100 moved/f",
        );
        shell(&root, &format!("touch -d @{before} ."));
        let expected =
            ["C /dir", "D /dir/a", "C /dir/sub", "A /dir/sub/new", "D /gone", "A /new", "A /new/dir"];
        assert_eq!(diff(&fixture, id), expected, "{upper}");
        let image = fixture.commit(id, "lab/new:1", &[]);
        let members = ["dir/.wh.a", ".wh.gone", "dir/", "dir/sub/", "dir/sub/new", "new/", "new/dir/"];
        assert_eq!(fixture.members(&image), members, "{upper}");
        fixture.remove(id);
    }
}

#[test]
fn directories_and_files_that_every_root_has_are_not_written() {
    let fixture = CommitFixture::with_base("d etc\nf etc/passwd root:x:0:0::/:/bin/sh\n");
    for (id, upper) in [("disk", "dir"), ("memory", "tmpfs:8m")] {
        let arguments =
            ["root", "create", "lab/base:1", "--id", id, "--upper", upper, "--user", "60007:60008"];
        let root = std::path::PathBuf::from(fixture.program.ok(&arguments));
        assert!(fs::read_to_string(root.join("etc/hosts")).unwrap().contains("localhost"));
        assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().contains("60007"));
        // Written and removed again; a file that is opened for writing is copied to the upper.
        shell(
            &root,
            "echo 1 > tmp/1 && rm tmp/1 && mkdir box/d && rmdir box/d && : >> etc/hosts && : >> etc/passwd",
        );
        assert_eq!(diff(&fixture, id), Vec::<String>::new(), "{upper}");
        let json = fixture.program.json(&["root", "commit", id, "lab/same:1"]);
        assert_eq!((&json["layer"], &json["layer_size"]), (&json!(null), &json!(0)));
        // Once it has a line of its own, the file is one of the image.
        shell(&root, "echo 10.0.0.1 db >> etc/hosts && echo 2 > tmp/2");
        assert_eq!(diff(&fixture, id), ["C /etc", "A /etc/hosts", "C /tmp", "A /tmp/2"], "{upper}");
        fixture.remove(id);
    }
}

#[test]
fn directory_of_the_image_keeps_its_attributes_where_the_root_has_its_own() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    shell(&root, "echo 1 > tmp/1; mkdir box/made");
    let image = fixture.commit("it", "lab/new:1", &[]);
    let mounted = fixture.mount.path(&image);
    assert_eq!(fs::metadata(mounted.join("tmp")).unwrap().mode() & 0o7777, 0o777);
    // The root has a directory in place of the link. With a file in it, the image has it too.
    assert!(fs::symlink_metadata(mounted.join("box")).unwrap().is_dir());
    assert!(mounted.join("box/made").is_dir() && mounted.join("tmp/kept").exists());
}

#[test]
fn empty_difference_adds_no_layer_but_an_entry_of_the_history() {
    let fixture = CommitFixture::new();
    let (base, old) = fixture.base();
    for (id, upper) in [("disk", "dir"), ("memory", "tmpfs:8m"), ("none", "none")] {
        fixture.create("lab/base:1", id, "fuse", upper);
        let image = fixture.commit(id, "lab/same:1", &["--message", "nothing"]);
        let (manifest, config) = fixture.documents(&image);
        assert_eq!(manifest["layers"], base["layers"]);
        assert_eq!(config["rootfs"], old["rootfs"]);
        let last = config["history"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["empty_layer"], &last["comment"]), (&json!(true), &json!("nothing")));
        assert_eq!(config["created"], old["created"]);
        fixture.remove(id);
    }
}

#[test]
fn sockets_are_left_out_with_a_warning_and_overlay_attributes_without_one() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "rm replaced");
    // The names stay when the sockets are closed.
    ["socket", "replaced"].iter().for_each(|name| drop(UnixListener::bind(root.join(name)).unwrap()));
    shell(&root, "setfattr -n user.overlay.opaque -v y dir; setfattr -n user.kept -v y dir");
    let output = fixture.program.run(&["root", "commit", "it", "lab/new:1"]);
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{warnings}");
    assert!(
        warnings.contains("/socket is a socket") && warnings.contains("/replaced is a socket"),
        "{warnings}"
    );
    let mounted = fixture.mount.path(String::from_utf8(output.stdout).unwrap().trim());
    assert!(!mounted.join("socket").exists() && !mounted.join("replaced").exists());
    let names: Vec<_> = support::trees::xattrs(&mounted.join("dir")).into_keys().collect();
    assert_eq!(names, ["user.kept"]);
}

#[test]
fn links_and_times_count_in_the_difference_of_a_root() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "overlay2", "dir");
    shell(
        &root,
        "cp -p link-a x && mv x link-a && touch -d @7 replaced && chown 5 fifo && touch -d @400 fifo",
    );
    let listed = fixture.program.json(&["diff", "it"]);
    let parts = |path: &str| {
        let found = listed.as_array().unwrap().iter().find(|one| one["path"] == path);
        found.map(|one| one["parts"].clone())
    };
    assert_eq!(parts("/link-a"), Some(json!(["links"])));
    assert_eq!(parts("/link-b"), None);
    assert_eq!(parts("/replaced"), Some(json!(["time"])));
    assert_eq!(parts("/fifo"), Some(json!(["owner"])));
}

#[test]
fn owners_are_mapped_and_times_are_clamped_only_where_something_differs() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "tmpfs:8m");
    shell(&root, "echo 1 > a; chown 60007:60008 a; echo 2 > b; chown 60009:60007 b; echo 3 > same-size");
    let mut command = fixture.program.command(&["root", "commit", "it", "lab/new:1"]);
    command.args(["--map-owner", "60007=0", "--map-owner", "60008=5", "--map-owner", "7=8"]);
    let output = command.env("SOURCE_DATE_EPOCH", "450").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mounted = fixture.mount.path(String::from_utf8(output.stdout).unwrap().trim());
    let stat = |name: &str| fs::metadata(mounted.join(name)).unwrap();
    assert_eq!((stat("a").uid(), stat("a").gid()), (0, 5));
    assert_eq!((stat("b").uid(), stat("b").gid()), (60009, 0));
    assert_eq!((stat("a").mtime(), stat("same-size").mtime()), (450, 450));
    // Untouched files of the image keep their owner and their time.
    assert_eq!((stat("dir").uid(), stat("replaced").mtime()), (7, 500));
}
