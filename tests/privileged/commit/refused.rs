//! Roots and arguments that cannot be committed.

use std::fs;
use std::process::{Command, Stdio};

use super::{CommitFixture, shell};

#[test]
fn root_in_use_is_refused_and_names_the_process() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    let mut user = Command::new("sleep").arg("100").current_dir(&root).spawn().unwrap();
    let error = fixture.program.fails(&["root", "commit", "it", "lab/new:1"]);
    assert!(error.contains(&format!("root it is in use by process {} (sleep)", user.id())), "{error}");
    // Reading the difference disturbs nobody.
    fixture.program.ok(&["diff", "it"]);
    user.kill().unwrap();
    user.wait().unwrap();
    // A filesystem below the root uses it as well.
    let below = root.join("dir");
    support::images::run("mount", &["-t", "tmpfs", "test", below.to_str().unwrap()]);
    let error = fixture.program.fails(&["root", "commit", "it", "lab/new:1"]);
    assert!(error.contains("root it is in use"), "{error}");
    support::images::run("umount", &[below.to_str().unwrap()]);
    fixture.commit("it", "lab/new:1", &[]);
    // The check has left the root mounted.
    fixture.commit("it", "lab/new:1", &[]);
    fixture.remove("it");
}

#[test]
fn root_is_not_removed_while_it_is_committed() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, "head -c 6000000 /dev/urandom > big");
    let mut command = fixture.program.command(&["root", "commit", "it", "lab/new:1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let store = fixture.program.store().join("rcx-imagefs/tmp");
    support::child::wait_until("the layer is being written", || {
        fs::read_dir(&store).is_ok_and(|mut files| files.next().is_some())
            || child.try_wait().unwrap().is_some()
    });
    let removed = fixture.program.run(&["root", "remove", "it"]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let image = String::from_utf8(output.stdout).unwrap();
    assert_eq!(fs::metadata(fixture.mount.path(image.trim()).join("big")).unwrap().len(), 6_000_000);
}

#[test]
fn files_that_a_layer_cannot_have_are_refused_by_name() {
    let fixture = CommitFixture::with_base(&format!("f {} x\n", "n".repeat(253)));
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    let images = fixture.program.ok(&["images"]);
    for (make, undo, words) in [
        ("mkdir d && echo 1 > d/.wh.x", "rm -r d", "cannot commit /d/.wh.x"),
        ("mkdir .wh..wh..opq", "rmdir .wh..wh..opq", "cannot commit /.wh..wh..opq"),
        (
            "echo 1 > f && setfattr -n user.a=b -v 1 f",
            "rm f",
            "the name of its extended attribute `user.a=b`",
        ),
    ] {
        shell(&root, make);
        let error = fixture.program.fails(&["root", "commit", "it", "lab/new:1"]);
        assert!(error.contains(words) && error.contains("commit root it as lab/new:1"), "{error}");
        shell(&root, undo);
    }
    shell(&root, "rm n*");
    let error = fixture.program.fails(&["root", "commit", "it", "lab/new:1"]);
    assert!(error.contains("cannot commit the deletion of /nnn"), "{error}");
    assert_eq!(fixture.program.ok(&["images"]), images);
    assert_eq!(fs::read_dir(fixture.program.store().join("rcx-imagefs/tmp")).unwrap().count(), 0);
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let fixture = CommitFixture::new();
    fixture.create("lab/base:1", "it", "erofs", "dir");
    let images = fixture.program.ok(&["images"]);
    let digest = format!("lab/new@sha256:{}", "0".repeat(64));
    for (arguments, word) in [
        (&["nothing", "lab/new:1"][..], "there is no root nothing"),
        (&["it", &digest], "has a digest"),
        (&["it", "Lab/New"], "Lab/New"),
        (&["it", "lab/new:1", "--change", "RUN make"], "instruction `RUN` is not supported"),
        (&["it", "lab/new:1", "--change", "ENV A"], "`A` in `ENV A`"),
        (&["it", "lab/new:1", "--map-owner", "root=0"], "`root=0`"),
        (&["../it", "lab/new:1"], "../it"),
    ] {
        let error = fixture.program.fails(&[&["root", "commit"], arguments].concat());
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
    let mut command = fixture.program.command(&["root", "commit", "it", "lab/new:1"]);
    let output = command.env("SOURCE_DATE_EPOCH", "yesterday").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("SOURCE_DATE_EPOCH is `yesterday`"));
    for (arguments, words) in [
        (&["diff", "lab/base:1"][..], ["`lab/base:1` is not the ID of a root", "name both"]),
        (&["diff", "base"], ["there is no root base", "name both"]),
        (&["diff", "--times", "it"], ["--times", "OTHER-REF"]),
    ] {
        let error = fixture.program.fails(arguments);
        assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
    }
    assert_eq!(fixture.program.ok(&["images"]), images);
}

#[test]
fn root_that_is_not_mounted_and_root_without_its_daemon_are_refused() {
    let fixture = CommitFixture::new();
    for (id, engine) in [("left", "erofs"), ("dead", "fuse")] {
        fixture.create("lab/base:1", id, engine, "dir");
    }
    support::images::run("umount", &[fixture.program.dir().join("run/roots/left").to_str().unwrap()]);
    let error = fixture.program.fails(&["root", "commit", "left", "lab/new:1"]);
    assert!(error.contains("root left is not mounted"), "{error}");
    let mut fixture = fixture;
    fixture.mount.server().signal("KILL");
    fixture.mount.server().wait();
    let error = fixture.program.fails(&["root", "commit", "dead", "lab/new:1"]);
    assert!(error.contains("cannot read root dead: the daemon that served its image has ended"), "{error}");
}
