//! Runs under bubblewrap, which Debian has: the same but for limits, which are refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::{Entry, Runner, hostile, isolate, killed, limits};

#[test]
fn bubblewrap_runs_programs_of_real_images() {
    let mut runner = Runner::new(364, "bwrap");
    let image = runner.pull("app");
    for engine in ["fuse", "overlay2"] {
        runner.engine = engine;
        isolate::real_programs_run(&runner, &image);
    }
    isolate::configuration_is_honoured(&runner);
    isolate::program_starts_where_it_can_be(&runner);
    isolate::programs_are_searched_for_in_the_image(&runner);
    let small = runner.pull("small");
    isolate::result_is_told(&runner, &small);
    runner.mount.stop();
}

#[test]
fn bubblewrap_reveals_nothing_of_the_host() {
    let mut runner = Runner::new(386, "bwrap");
    let image = runner.pull("small");
    for engine in ["fuse", "overlay2"] {
        runner.engine = engine;
        hostile::places_in_the_image_lead_nowhere(&runner);
    }
    runner.engine = "fuse";
    hostile::attempts_find_nothing(&runner, support::escape::about_the_sandbox());
    hostile::rules_stay_in_the_image(&runner);
    hostile::image_without_a_shell_runs(&runner);
    hostile::traps_in_the_box_are_not_stepped_into(&runner, &image);
    let scratch = runner.make("scratch", &[Entry::Directory("scratch", 0o1777)], &json!({}));
    limits::is_full(&runner, &scratch);
    // No rights, no other processes, no network but its own loopback.
    let look = "busybox id -u; busybox grep CapEff /proc/self/status; busybox ls /sys; busybox ls -d /proc/[0-9]* | busybox wc -l; \
        busybox ip -o link | busybox wc -l";
    let seen = runner.ok(&image, &[], &["sh", "-c", look]);
    let seen: Vec<&str> = seen.lines().map(str::trim).collect();
    assert_eq!(seen[..2], ["60999", "CapEff:\t0000000000000000"], "{seen:?}");
    assert!(seen[2].parse::<u32>().unwrap() <= 5, "processes: {seen:?}");
    assert_eq!(seen[3], "1", "links: {seen:?}");
    runner.mount.stop();
}

#[test]
fn limits_are_refused_with_bubblewrap() {
    let runner = Runner::new(408, "bwrap");
    let image = runner.pull("small");
    for option in
        ["--time=1", "--wall-time=1", "--mem=1000", "--cg", "--processes=5", "--fsize=5", "--stack=5"]
    {
        let name = option.split('=').next().unwrap();
        let said = [&format!("`{name}`"), "bubblewrap enforces no limits"];
        runner.refused(&image, &[option], &["cat", "/etc/motd"], &said);
    }
    runner.refused(&image, &["--box-id=5"], &["cat"], &["the boxes are isolate's"]);
    runner.mount.stop();
}

#[test]
fn bubblewrap_leaves_nothing_behind() {
    let mut runner = Runner::new(430, "bwrap");
    let image = runner.pull("small");
    killed::told_to_end(&runner, &image);
    killed::killed_while_running(&runner, &image);
    for engine in ["fuse", "overlay2"] {
        runner.engine = engine;
        killed::hundred_in_a_row(&runner, &image, &[]);
        killed::half_of_sixteen_killed(&runner, &image, &[]);
    }
    runner.mount.stop();
}

#[test]
fn run_falls_back_to_bubblewrap_with_a_notice_if_isolate_is_missing() {
    let mut runner = Runner::new(452, "auto");
    let image = runner.pull("small");
    let programs = runner.program.dir().join("programs");
    fs::create_dir(&programs).unwrap();
    let run = |runner: &Runner, options: &[&str]| {
        let mut command = runner.command(&image, options, &["cat", "/etc/motd"]);
        command.env("PATH", &programs).output().unwrap()
    };
    let error = support::program::failure(&run(&runner, &[]), &["run"]);
    assert!(error.contains("neither `isolate` nor `bwrap` is on the PATH"), "{error}");
    let found = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    symlink(found.expect("bubblewrap is installed"), programs.join("bwrap")).unwrap();
    let output = run(&runner, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"a small image\n", "{said}");
    assert!(said.contains("note: bubblewrap isolates the program, but enforces no limits"), "{said}");
    let error = support::program::failure(&run(&runner, &["--time", "1"]), &["run"]);
    assert!(error.contains("bubblewrap enforces no limits"), "{error}");
    runner.sandbox = "isolate";
    let error = support::program::failure(&run(&runner, &[]), &["run"]);
    assert!(error.contains("`isolate` is not on the PATH"), "{error}");
    runner.nothing_is_left();
    runner.mount.stop();
}
