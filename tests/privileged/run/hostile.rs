//! Images whose links point to the host, and programs that leave malicious files behind.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Entry, Runner};
use support::canary::{Canary, SECRET};
use support::escape::{self, Aim, Attempt, LOOK_AROUND};
use support::text;

fn run_chmod(path: &Path, mode: &str) {
    support::images::run("chmod", &[mode, path.to_str().unwrap()]);
}

/// Links and files at the mount points of the sandbox cannot redirect its mounts.
pub(super) fn links_at_mount_points_reach_nothing(runner: &Runner) {
    let canary = Canary::new();
    let mount_points = ["box", "dev", "proc", "tmp", "sys", "etc"];
    let links: Vec<Entry<'_>> = mount_points.iter().map(|path| Entry::Link(path, canary.path())).collect();
    let up = format!("../../../../../../../..{}", canary.path());
    let up: Vec<Entry<'_>> = mount_points.iter().map(|path| Entry::Link(path, &up)).collect();
    let files: Vec<Entry<'_>> = mount_points.iter().map(|path| Entry::File(path, "a file")).collect();
    let script = "echo planted >/box/planted; busybox cat /box/planted; echo x >/dev/null; busybox cat /etc/secret; \
        busybox ls /box /etc/ /tmp; echo x >/tmp/x; echo x >/etc/planted; busybox cat /proc/self/comm; \
        busybox cat /etc/hostname";
    for (name, entries) in [("links", links), ("ups", up), ("files", files)] {
        let image = runner.make(name, &entries, &json!({}));
        let mut options = vec!["--copy-out", "planted"];
        if runner.sandbox == "isolate" {
            options.push("--processes");
        }
        let ran = runner.run(&image, &options, &["sh", "-c", script]);
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(ran.out.contains("planted\n") && ran.out.contains("busybox\n"), "{name}: {ran:?}");
        assert!(!ran.out.contains(SECRET) && !ran.out.contains("secret"), "{name}: {ran:?}");
        assert_eq!(runner.read("planted"), "planted\n");
        canary.assert_untouched("the run");
        runner.assert_clean();
    }
}

/// `--dir` rules mount inside the image, whatever links are on the path.
pub(super) fn rules_mount_inside_the_image(runner: &Runner) {
    let canary = Canary::new();
    runner.file("shown/file", "shown");
    let shown = runner.program.dir().join("shown");
    let deep = format!("{}/deep", canary.path());
    let entries = [
        Entry::Directory("data", 0o755),
        Entry::Link("mnt", "/data"),
        Entry::Link("out", canary.path()),
        Entry::Link("deep", &deep),
        Entry::File("taken", "a file"),
    ];
    let image = runner.make("rules", &entries, &json!({}));
    let rule = |place: &str, flags: &str| format!("{place}={}{flags}", shown.display());
    let cat = |place: &str| ["cat".to_owned(), format!("/{place}/file")];
    for (place, also) in [("mnt", "data"), ("mnt/new", "data/new"), ("out/sub", "out/sub"), ("deep", "deep")]
    {
        for place_seen in [place, also] {
            let [program, file] = cat(place_seen);
            let out = runner.ok(&image, &["--dir", &rule(place, "")], &[&program, &file]);
            assert_eq!(out, "shown", "{place} at {place_seen}");
        }
        canary.assert_untouched("the run");
    }
    // A mount below `/tmp` would be hidden by the sandbox.
    runner.assert_refused(&image, &["--dir", &rule("tmp/sub", "")], &["cat", "/etc/motd"], &["/tmp"]);
    runner.assert_refused(&image, &["--dir", &rule("taken", "")], &["cat", "/etc/motd"], &["taken"]);
    // Rules are read-only by default.
    run_chmod(&shown, "0777");
    let write = ["sh", "-c", "echo written >/data/new"];
    assert_eq!(runner.verdict(&image, &["--dir", &rule("data", "")], &write)["status"], "RE");
    assert!(!shown.join("new").exists());
    runner.ok(&image, &["--dir", &rule("data", ":rw")], &write);
    assert_eq!(runner.read("shown/new"), "written\n");
    fs::remove_dir_all(&shown).unwrap();
    let absent = "data=/nonexistent/directory";
    runner.assert_refused(&image, &["--dir", absent], &["cat", "/etc/motd"], &["/nonexistent/directory"]);
    runner.ok(&image, &["--dir", &format!("{absent}:maybe")], &["cat", "/etc/motd"]);
    runner.assert_clean();
}

/// `--copy-out` copies regular files and directories only and follows no link.
pub(super) fn copy_out_follows_no_link(runner: &Runner, image: &str) {
    let canary = Canary::new();
    let script = format!(
        "busybox ln -s {0}/secret link; busybox ln -s {0} dir; busybox mkfifo fifo; busybox mkdir tree; \
         busybox ln -s {0}/secret tree/link; echo good >tree/good",
        canary.path()
    );
    let mut options = Vec::new();
    if runner.sandbox == "isolate" {
        options.push("--processes");
    }
    for (name, refused) in [("link", true), ("dir/secret", true), ("fifo", true), ("tree", false)] {
        let copy = format!("{name}=copied");
        let options = [&options[..], &["--copy-out", &copy]].concat();
        let ran = runner.run(image, &options, &["sh", "-c", &script]);
        let copied = runner.program.dir().join("copied");
        if refused {
            assert_eq!(ran.code, Some(2), "{name}: {ran:?}");
            assert!(
                ran.err.contains("is missing after the run") || ran.err.contains("are copied"),
                "{ran:?}"
            );
            assert!(copied.symlink_metadata().is_err(), "{name}");
        } else {
            assert_eq!(super::names(&copied), ["good"], "{ran:?}");
        }
        canary.assert_untouched("the run");
        runner.assert_clean();
    }
    // An existing link at the target is replaced, not followed.
    let target = runner.program.dir().join("target");
    std::os::unix::fs::symlink(Path::new(canary.path()).join("secret"), &target).unwrap();
    runner.ok(image, &["--copy-out", "new=target"], &["sh", "-c", "echo new >new"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "new\n");
    canary.assert_untouched("the run");
    fs::remove_file(target).unwrap();
    fs::remove_dir_all(runner.program.dir().join("copied")).unwrap();
}

/// Descriptors that the caller of `run` has open do not reach the program.
pub(super) fn descriptors_of_the_caller_are_closed(runner: &Runner, image: &str) {
    let secret = runner.file("secret", SECRET);
    run_chmod(Path::new(&secret), "600");
    let script = "cat <&8; echo written >&9; for fd in /proc/$$/fd/*; do case $fd in */[0-3]) ;; *) echo open $fd;; esac; done; \
        echo end";
    let command = runner.command(
        image,
        &["--processes"][..usize::from(runner.sandbox == "isolate")],
        &["sh", "-c", script],
    );
    let output = support::child::with_open_file(&command, Path::new(&secret)).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, "end\n", "{runner:?}: {error}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET, "{runner:?}: {error}");
    runner.assert_clean();
}

/// A program in the image of each attempt that searches and writes everywhere reaches nothing of the host.
pub(super) fn attempts_reach_nothing_of_the_host<'a>(
    runner: &Runner,
    attempts: impl Iterator<Item = &'a Attempt>,
) {
    let canaries = [Canary::in_directory(runner.program.dir()), Canary::new()];
    let aim = Aim { near: canaries[0].name(), far: canaries[1].path() };
    let mut options = vec!["--stderr-to-stdout"];
    if runner.sandbox == "isolate" {
        options.extend(["--processes", "--wall-time", "60"]);
    }
    // Control: with a canary mounted into the box, the same script finds and changes it.
    let exposed = Canary::new();
    let image = text::image("exposed", [vec![text::small()], text::layers("d mnt \n l out /mnt")].concat());
    let image = text::load(&runner.program, &image);
    let rule = format!("mnt={}:rw", exposed.path());
    let ran = runner.run(&image, &[&options[..], &["--dir", &rule]].concat(), &["sh", "-c", LOOK_AROUND]);
    assert!(ran.out.contains(SECRET) && ran.out.ends_with("looked around\n"), "{runner:?}: {ran:?}");
    assert!(Path::new(exposed.path()).join("planted").exists(), "{runner:?}: {ran:?}");

    for attempt in attempts {
        let image = text::load(&runner.program, &attempt.image_with_programs(aim));
        let ran = runner.run(&image, &options, &["sh", "-c", LOOK_AROUND]);
        assert!(ran.out.ends_with("looked around\n"), "{} in {runner:?}: {ran:?}", attempt.name);
        assert!(
            !ran.out.contains(SECRET),
            "{} in {runner:?} reads a file of the host: {ran:?}",
            attempt.name
        );
        for canary in &canaries {
            canary.assert_untouched(attempt.name);
        }
        runner.assert_clean();
    }
}

/// An image without a shell runs its program.
pub(super) fn image_without_a_shell_runs(runner: &Runner) {
    let image = runner.make("shell-less", &[Entry::Empty("bin/.wh.sh")], &json!({}));
    assert_eq!(runner.ok(&image, &[], &["busybox", "echo", "no shell"]), "no shell\n");
    runner.assert_refused(&image, &[], &[], &["`/bin/sh`", "no such file in the image"]);
    runner.assert_refused(&image, &[], &["sh"], &["`sh`", "not found in any directory of PATH"]);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn image_with_links_out_of_it_reveals_nothing_of_the_host() {
    let (mut runner, isolates) = Runner::with_isolate(254);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        for engine in support::engines::SHARING {
            runner.engine = engine;
            links_at_mount_points_reach_nothing(&runner);
        }
        rules_mount_inside_the_image(&runner);
        image_without_a_shell_runs(&runner);
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn escape_attempts_in_an_image_reach_nothing_of_the_host() {
    let (mut runner, isolates) = Runner::with_isolate(474);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        runner.engine = "fuse";
        attempts_reach_nothing_of_the_host(&runner, escape::kept());
        runner.engine = "overlay2";
        attempts_reach_nothing_of_the_host(&runner, escape::about_the_sandbox());
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn links_planted_by_a_program_are_not_followed_during_cleanup() {
    let (mut runner, isolates) = Runner::with_isolate(276);
    let image = runner.pull("small");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        copy_out_follows_no_link(&runner, &image);
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn descriptors_of_the_caller_reach_no_program_under_isolate() {
    let (mut runner, isolates) = Runner::with_isolate(78);
    let image = runner.pull("small");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        descriptors_of_the_caller_are_closed(&runner, &image);
    }
    runner.mount.stop();
}
