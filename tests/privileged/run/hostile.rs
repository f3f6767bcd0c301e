//! Images that are made to lead out to the host, and programs that leave traps behind.

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

/// What stands where the sandbox mounts things cannot lead it anywhere else.
pub(super) fn places_in_the_image_lead_nowhere(runner: &Runner) {
    let canary = Canary::new();
    let places = ["box", "dev", "proc", "tmp", "sys", "etc"];
    let links: Vec<Entry<'_>> = places.iter().map(|place| Entry::Link(place, canary.path())).collect();
    let up = format!("../../../../../../../..{}", canary.path());
    let up: Vec<Entry<'_>> = places.iter().map(|place| Entry::Link(place, &up)).collect();
    let files: Vec<Entry<'_>> = places.iter().map(|place| Entry::File(place, "a file")).collect();
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
        runner.nothing_is_left();
    }
}

/// Rules for directories of the host are put in the image, whatever links are on the way.
pub(super) fn rules_stay_in_the_image(runner: &Runner) {
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
    // It would be there and not be seen.
    runner.refused(&image, &["--dir", &rule("tmp/sub", "")], &["cat", "/etc/motd"], &["/tmp"]);
    runner.refused(&image, &["--dir", &rule("taken", "")], &["cat", "/etc/motd"], &["taken"]);
    // Read-only unless it is said.
    run_chmod(&shown, "0777");
    let write = ["sh", "-c", "echo written >/data/new"];
    assert_eq!(runner.verdict(&image, &["--dir", &rule("data", "")], &write)["status"], "RE");
    assert!(!shown.join("new").exists());
    runner.ok(&image, &["--dir", &rule("data", ":rw")], &write);
    assert_eq!(runner.read("shown/new"), "written\n");
    fs::remove_dir_all(&shown).unwrap();
    let absent = "data=/nonexistent/directory";
    runner.refused(&image, &["--dir", absent], &["cat", "/etc/motd"], &["/nonexistent/directory"]);
    runner.ok(&image, &["--dir", &format!("{absent}:maybe")], &["cat", "/etc/motd"]);
    runner.nothing_is_left();
}

/// What a program leaves in the box is copied as what it is, or not at all.
pub(super) fn traps_in_the_box_are_not_stepped_into(runner: &Runner, image: &str) {
    let canary = Canary::new();
    let traps = format!(
        "busybox ln -s {0}/secret link; busybox ln -s {0} dir; busybox mkfifo fifo; busybox mkdir tree; \
         busybox ln -s {0}/secret tree/link; echo good >tree/good",
        canary.path()
    );
    let mut options = Vec::new();
    if runner.sandbox == "isolate" {
        options.push("--processes");
    }
    for (name, whole) in [("link", true), ("dir/secret", true), ("fifo", true), ("tree", false)] {
        let copy = format!("{name}=copied");
        let options = [&options[..], &["--copy-out", &copy]].concat();
        let ran = runner.run(image, &options, &["sh", "-c", &traps]);
        let copied = runner.program.dir().join("copied");
        if whole {
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
        runner.nothing_is_left();
    }
    // Where the copy would go, there is something already: what a link there leads to is not written to.
    let aim = runner.program.dir().join("aim");
    std::os::unix::fs::symlink(Path::new(canary.path()).join("secret"), &aim).unwrap();
    runner.ok(image, &["--copy-out", "new=aim"], &["sh", "-c", "echo new >new"]);
    assert_eq!(fs::read_to_string(&aim).unwrap(), "new\n");
    canary.assert_untouched("the run");
    fs::remove_file(aim).unwrap();
    fs::remove_dir_all(runner.program.dir().join("copied")).unwrap();
}

/// Programs in the images of all attempts find nothing of the host, however they look for it and write.
pub(super) fn attempts_find_nothing<'a>(runner: &Runner, attempts: impl Iterator<Item = &'a Attempt>) {
    let canaries = [Canary::in_directory(runner.program.dir()), Canary::new()];
    let aim = Aim { near: canaries[0].name(), far: canaries[1].path() };
    let mut options = vec!["--stderr-to-stdout"];
    if runner.sandbox == "isolate" {
        options.extend(["--processes", "--wall-time", "60"]);
    }
    // With a canary handed to it, the same script finds and changes what it can.
    let given = Canary::new();
    let image = text::image("given", [vec![text::small()], text::layers("d mnt \n l out /mnt")].concat());
    let image = text::load(&runner.program, &image);
    let rule = format!("mnt={}:rw", given.path());
    let ran = runner.run(&image, &[&options[..], &["--dir", &rule]].concat(), &["sh", "-c", LOOK_AROUND]);
    assert!(ran.out.contains(SECRET) && ran.out.ends_with("looked around\n"), "{runner:?}: {ran:?}");
    assert!(Path::new(given.path()).join("planted").exists(), "{runner:?}: {ran:?}");

    for attempt in attempts {
        let image = text::load(&runner.program, &attempt.image_with_programs(aim));
        let ran = runner.run(&image, &options, &["sh", "-c", LOOK_AROUND]);
        assert!(ran.out.ends_with("looked around\n"), "{} in {runner:?}: {ran:?}", attempt.name);
        assert!(!ran.out.contains(SECRET), "{} in {runner:?} finds the host: {ran:?}", attempt.name);
        for canary in &canaries {
            canary.assert_untouched(attempt.name);
        }
        runner.nothing_is_left();
    }
}

/// An image of one program, without a shell.
pub(super) fn image_without_a_shell_runs(runner: &Runner) {
    let image = runner.make("shell-less", &[Entry::Gone("bin/.wh.sh")], &json!({}));
    assert_eq!(runner.ok(&image, &[], &["busybox", "echo", "no shell"]), "no shell\n");
    runner.refused(&image, &[], &[], &["`/bin/sh`", "no such file in the image"]);
    runner.refused(&image, &[], &["sh"], &["`sh`", "not found in any directory of PATH"]);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn image_with_links_out_of_it_reveals_nothing_of_the_host() {
    let (mut runner, isolates) = Runner::with_isolate(254);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        for engine in ["fuse", "overlay2"] {
            runner.engine = engine;
            places_in_the_image_lead_nowhere(&runner);
        }
        rules_stay_in_the_image(&runner);
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
        attempts_find_nothing(&runner, escape::kept());
        runner.engine = "overlay2";
        attempts_find_nothing(&runner, escape::about_the_sandbox());
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
        traps_in_the_box_are_not_stepped_into(&runner, &image);
    }
    runner.mount.stop();
}
