//! Sequential, concurrent, interrupted and killed runs leave nothing behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Runner;
use support::child::wait_until;

/// Starts a run of a program that does not end and waits until the program is running.
pub(super) fn start(runner: &Runner, image: &str, options: &[&str], name: &str) -> Child {
    let options = [options, &["--env", super::MARK]].concat();
    let mut command = runner.command(image, &options, &["busybox", "sleep", "1000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the program runs", || runner.processes().iter().any(|(_, command)| command == name));
    child
}

/// A deterministic source of pseudo-random numbers (xorshift).
struct PseudoRandom(u64);

impl PseudoRandom {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(super) fn run_one_hundred_in_a_row(runner: &Runner, image: &str, options: &[&str]) {
    let uppers = ["dir", "tmpfs:4M", "none"];
    for number in 0..100 {
        let options = [options, &["--upper", uppers[number % uppers.len()]]].concat();
        let text = number.to_string();
        let out = runner.ok(image, &options, &["busybox", "echo", &text]);
        assert_eq!(out.trim_end(), text);
    }
    runner.assert_clean();
}

/// Starts sixteen concurrent runs, four times. Kills every second run at a random moment of its usual duration.
pub(super) fn run_sixteen_and_kill_half(runner: &Runner, image: &str, options: &[&str]) {
    let mut numbers = PseudoRandom(0x5eed);
    let begin = Instant::now();
    runner.ok(image, options, &["busybox", "echo", "first"]);
    // Sixteen runs share the processors, so each takes longer than one run alone.
    let duration = u64::try_from(begin.elapsed().as_micros()).unwrap() * 12;
    for _ in 0..4 {
        let mut kills: Vec<(Duration, usize)> =
            (0..8).map(|index| (Duration::from_micros(numbers.below(duration)), 2 * index)).collect();
        kills.sort();
        let begin = Instant::now();
        let mut children: Vec<Child> = (0..16)
            .map(|number| {
                let text = number.to_string();
                let mut command = runner.command(image, options, &["busybox", "echo", &text]);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for (moment, index) in kills {
            // The test needs the kill at this random moment, so there is no condition to wait for.
            thread::sleep((begin + moment).saturating_duration_since(Instant::now()));
            children[index].kill().unwrap();
        }
        for (number, child) in children.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            if number % 2 == 1 {
                let (out, err) =
                    (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                assert!(output.status.success(), "{runner:?}: {err}");
                assert_eq!(out, format!("{number}\n"), "{runner:?}: {err}");
            }
        }
    }
    assert_eq!(runner.ok(image, options, &["busybox", "echo", "last"]), "last\n");
    runner.sweep_until_clean();
}

/// A run that gets a termination signal ends its program and removes all traces of the run.
pub(super) fn interrupted_run_leaves_nothing(runner: &Runner, image: &str) {
    for (signal, number) in [("HUP", 1), ("INT", 2), ("QUIT", 3), ("TERM", 15)] {
        let child = start(runner, image, &["--json", "--meta", "meta"], "busybox");
        support::images::run("kill", &[&format!("-{signal}"), &child.id().to_string()]);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let verdict: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{runner:?}: {error}: {text}{errors}"));
        let message = format!("interrupted by signal {number}");
        assert_eq!(verdict["status"], "XX", "{runner:?}: {verdict}");
        assert_eq!(verdict["interrupted"], true, "{runner:?}: {verdict}");
        assert_eq!(verdict["code"], "interrupted", "{runner:?}: {verdict}");
        assert_eq!(verdict["message"], message, "{runner:?}: {verdict}");
        assert_eq!(output.status.code(), Some(128 + number));
        assert_eq!(runner.read("meta"), format!("status:XX\nmessage:{message}\n"));
        runner.assert_clean();
    }
}

/// A killed run leaves at most files, and the next run removes them.
pub(super) fn killed_run_is_cleaned_up_by_the_next(runner: &Runner, image: &str) {
    for upper in ["dir", "tmpfs:4M"] {
        let mut child = start(runner, image, &["--upper", upper], "busybox");
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the processes of the run are gone", || runner.processes().is_empty());
        let mounts = runner.traces().into_iter().filter(|trace| trace.contains(" overlay "));
        assert_eq!(mounts.collect::<Vec<_>>(), Vec::<String>::new());
        // The kernel may take a moment to release the root.
        wait_until("the next run removes the files of the killed run", || {
            assert_eq!(runner.ok(image, &[], &["busybox", "echo", "next"]), "next\n");
            runner.traces().is_empty()
        });
    }
}

/// A box belongs to its run although the run directory is cleaned, as by systemd when a service stops. `made` is the directory
/// of the first box. The runs need no daemon: the cleaning removes its socket.
pub(super) fn used_box_survives_the_removal_of_the_run_directory(runner: &Runner, image: &str, made: &Path) {
    let mut child = start(runner, image, &[], "busybox");
    for entry in fs::read_dir(runner.program.dir().join("run")).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            // The daemon still serves it.
            _ if entry.path() == runner.mount.layers() => {}
            kind if kind.is_dir() => fs::remove_dir_all(entry.path()).unwrap(),
            _ => fs::remove_file(entry.path()).unwrap(),
        }
    }
    assert_eq!(runner.ok(image, &[], &["busybox", "echo", "other"]), "other\n", "another box is free");
    runner.program.ok(&["root", "sweep"]);
    assert!(made.exists(), "{runner:?}: the box is still there");
    if runner.isolate.is_some() {
        let ran = runner.run(image, &["--box-id", &runner.first_box.to_string()], &["busybox", "true"]);
        assert_eq!(ran.code, Some(2), "{runner:?}: {ran:?}");
        assert!(ran.err.contains("is in use by another run"), "{runner:?}: {ran:?}");
    }
    assert!(made.exists() && runner.processes().iter().any(|(_, command)| command == "busybox"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn box_of_isolate_is_not_taken_while_it_is_used_although_the_run_directory_was_cleaned() {
    let (mut runner, isolates) = Runner::with_isolate(22);
    runner.engine = "overlay2";
    let image = runner.pull("small");
    for isolate in isolates {
        let (id, program) = (runner.first_box.to_string(), isolate.program.clone());
        let directory = isolate.boxes.join(&id);
        runner.isolate = Some(isolate);
        used_box_survives_the_removal_of_the_run_directory(&runner, &image, &directory.join("box"));
        // No record of the box is left, so only isolate knows that it was in use.
        wait_until("isolate has left the box", || {
            let cleanup = Command::new(&program).args([&format!("--box-id={id}"), "--cleanup"]).output();
            cleanup.unwrap().status.success()
        });
        runner.sweep_until_clean();
    }
    runner.mount.stop();
}

#[test]
fn box_of_bubblewrap_is_not_removed_while_it_is_used_although_the_run_directory_was_cleaned() {
    let mut runner = Runner::new(0, "bwrap");
    runner.engine = "overlay2";
    let image = runner.pull("small");
    let directory = runner.program.store().join("rcx-imagefs/boxes/0");
    used_box_survives_the_removal_of_the_run_directory(&runner, &image, &directory);
    runner.sweep_until_clean();
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn one_hundred_runs_in_a_row_leave_nothing() {
    let (mut runner, isolates) = Runner::with_isolate(298);
    let image = runner.pull("small");
    for isolate in isolates {
        let options: &[&str] = if isolate.cg { &["--cg"] } else { &[] };
        runner.isolate = Some(isolate);
        for engine in support::engines::SHARING {
            runner.engine = engine;
            run_one_hundred_in_a_row(&runner, &image, options);
        }
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn sixteen_concurrent_runs_with_half_killed_leave_nothing() {
    let (mut runner, isolates) = Runner::with_isolate(320);
    let image = runner.pull("small");
    for isolate in isolates {
        let options: &[&str] = if isolate.cg { &["--cg"] } else { &[] };
        runner.isolate = Some(isolate);
        for engine in support::engines::SHARING {
            runner.engine = engine;
            run_sixteen_and_kill_half(&runner, &image, options);
        }
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn interrupted_or_killed_run_leaves_nothing() {
    let (mut runner, isolates) = Runner::with_isolate(342);
    let image = runner.pull("small");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        interrupted_run_leaves_nothing(&runner, &image);
        killed_run_is_cleaned_up_by_the_next(&runner, &image);
    }
    runner.mount.stop();
}
