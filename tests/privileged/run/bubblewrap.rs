//! Runs with bubblewrap work as with isolate, except that limits are refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::{Entry, Runner, hostile, isolate, killed, limits};

#[test]
fn bubblewrap_runs_programs_of_real_images() {
    let mut runner = Runner::new(364, "bwrap");
    let image = runner.pull("app");
    for engine in support::engines::SHARING {
        runner.engine = engine;
        isolate::real_programs_run(&runner, &image);
    }
    isolate::image_configuration_is_applied(&runner);
    isolate::working_directory_falls_back_to_the_box(&runner);
    isolate::programs_are_looked_up_in_the_image(&runner);
    let small = runner.pull("small");
    isolate::result_is_reported(&runner, &small);
    runner.mount.stop();
}

#[test]
fn bubblewrap_reveals_nothing_of_the_host() {
    let mut runner = Runner::new(386, "bwrap");
    let image = runner.pull("small");
    for engine in support::engines::SHARING {
        runner.engine = engine;
        hostile::links_at_mount_points_reach_nothing(&runner);
    }
    runner.engine = "fuse";
    hostile::attempts_reach_nothing_of_the_host(&runner, support::escape::about_the_sandbox());
    hostile::rules_mount_inside_the_image(&runner);
    hostile::image_without_a_shell_runs(&runner);
    hostile::copy_out_follows_no_link(&runner, &image);
    hostile::descriptors_of_the_caller_are_closed(&runner, &image);
    let scratch = runner.make("scratch", &[Entry::Directory("scratch", 0o1777)], &json!({}));
    limits::full_upper_fails_the_program(&runner, &scratch);
    // The program has no capabilities, sees no other processes and has no network except its own loopback.
    let script = "busybox id -u; busybox grep CapEff /proc/self/status; busybox ls /sys; busybox ls -d /proc/[0-9]* | busybox wc -l; \
        busybox ip -o link | busybox wc -l";
    let seen = runner.ok(&image, &[], &["sh", "-c", script]);
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
        let parts = [&format!("`{name}`"), "bubblewrap enforces no limits"];
        runner.assert_refused(&image, &[option], &["cat", "/etc/motd"], &parts);
    }
    runner.assert_refused(&image, &["--box-id=5"], &["cat"], &["only isolate has numbered boxes"]);
    runner.mount.stop();
}

#[test]
fn bubblewrap_leaves_nothing_behind() {
    let mut runner = Runner::new(430, "bwrap");
    let image = runner.pull("small");
    killed::interrupted_run_leaves_nothing(&runner, &image);
    killed::killed_run_is_cleaned_up_by_the_next(&runner, &image);
    for engine in support::engines::SHARING {
        runner.engine = engine;
        killed::run_one_hundred_in_a_row(&runner, &image, &[]);
        killed::run_sixteen_and_kill_half(&runner, &image, &[]);
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
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"a small image\n", "{errors}");
    assert!(errors.contains("note: bubblewrap isolates the program, but enforces no limits"), "{errors}");
    let error = support::program::failure(&run(&runner, &["--time", "1"]), &["run"]);
    assert!(error.contains("bubblewrap enforces no limits"), "{error}");
    runner.sandbox = "isolate";
    let error = support::program::failure(&run(&runner, &[]), &["run"]);
    assert!(error.contains("`isolate` is not on the PATH"), "{error}");
    runner.assert_clean();
    runner.mount.stop();
}

#[test]
fn user_of_the_image_chooses_no_user_of_the_host_unless_configured() {
    let runner = Runner::new(56, "bwrap");
    let image = runner.make("of-a-user", &[], &json!({ "User": "1001" }));
    let user = |runner: &Runner| runner.ok(&image, &[], &["busybox", "id", "-u"]);
    assert_eq!(user(&runner), "60999\n");
    let config = runner.program.dir().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}bwrap-image-user = true\n")).unwrap();
    assert_eq!(user(&runner), "1001\n");
    fs::write(&config, format!("{text}bwrap-user = '1002:5'\n")).unwrap();
    assert_eq!(user(&runner), "1002\n");
    runner.mount.stop();
}
