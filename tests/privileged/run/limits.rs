//! Limits: a program that exceeds one gets the status from isolate, and an unsupported limit is refused.

use std::process::Command;

use serde_json::{Value, json};

use super::{Entry, Runner};

#[track_caller]
fn assert_fields(verdict: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(&verdict[key], value, "{key} of {verdict}");
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn program_that_exceeds_a_limit_gets_the_status_from_isolate() {
    let (mut runner, isolates) = Runner::with_isolate(166);
    let (image, python) = (runner.pull("small"), runner.pull("python"));
    for isolate in isolates {
        runner.isolate = Some(isolate);
        let timed_out = [("status", json!("TO")), ("killed", json!(true)), ("errors", json!([]))];
        let verdict = runner.verdict(
            &image,
            &["--time", "0.2", "--meta", "meta"],
            &["sh", "-c", "while :; do :; done"],
        );
        assert_fields(&verdict, &timed_out);
        assert_eq!(verdict["message"], "Time limit exceeded");
        assert!(verdict["time_s"].as_f64().unwrap() >= 0.2, "{verdict}");
        assert!(runner.read("meta").contains("status:TO\n"));
        let verdict = runner.verdict(&image, &["--wall-time", "0.2"], &["busybox", "sleep", "100"]);
        assert_fields(&verdict, &timed_out);
        assert_eq!(verdict["message"], "Time limit exceeded (wall clock)");

        let big = ["-c", "x = bytearray(500 << 20)"];
        let verdict = runner.verdict(&python, &["--mem", "200000"], &["python3", big[0], big[1]]);
        assert_fields(&verdict, &[("status", json!("RE")), ("exit_code", json!(1))]);
        let fill = ["busybox", "dd", "if=/dev/zero", "of=big", "bs=1024", "count=100"];
        let verdict = runner.verdict(&image, &["--fsize", "10"], &fill);
        assert_fields(&verdict, &[("status", json!("SG")), ("exit_signal", json!(25))]);
        runner.verdict(&image, &["--fsize", "100"], &fill);
        let forks = ["sh", "-c", "busybox true; busybox true"];
        assert_eq!(runner.verdict(&image, &[], &forks)["status"], "RE");
        assert_eq!(runner.verdict(&image, &["--processes=2"], &forks)["status"], "OK");
        assert_eq!(runner.verdict(&image, &["--processes"], &forks)["status"], "OK");
        assert_eq!(runner.ok(&image, &["--stack", "4096"], &["sh", "-c", "ulimit -s"]), "4096\n");
        runner.assert_clean();
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn control_group_limits_are_enforced_or_refused_if_unavailable() {
    let (mut runner, isolates) = Runner::with_isolate(188);
    let python = runner.pull("python");
    let forks = "import os; os.fork(); x = bytearray(100 << 20)";
    for isolate in isolates {
        let cg = isolate.cg;
        runner.isolate = Some(isolate);
        let options = ["--cg", "--cg-mem", "50000", "--processes=5"];
        if cg {
            let verdict = runner.verdict(&python, &options, &["python3", "-c", forks]);
            assert_eq!(verdict["status"], "SG", "{verdict}");
            assert_eq!(verdict["exit_signal"], 9, "{verdict}");
            assert!(verdict["cg_mem_kib"].as_u64().unwrap() > 40_000, "{verdict}");
            let verdict = runner.verdict(&python, &["--cg", "--time", "5"], &["python3", "-c", "print(1)"]);
            assert!(verdict["cg_mem_kib"].is_u64(), "{verdict}");
            runner.assert_clean();
        } else {
            runner.assert_refused(&python, &options, &["python3", "-c", forks], &["isolate --init", "roup"]);
        }
        runner.assert_refused(&python, &["--cg-mem", "50000"], &["python3"], &["`--cg-mem` needs `--cg`"]);
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn option_unsupported_by_isolate_is_an_error_that_names_its_version() {
    let (mut runner, isolates) = Runner::with_isolate(210);
    let image = runner.pull("small");
    for isolate in isolates {
        let (is_2, version) = (isolate.is_2(), isolate.version.clone());
        let usage = Command::new(&isolate.program).arg("--help").output().unwrap();
        let supported =
            String::from_utf8_lossy(&[usage.stdout, usage.stderr].concat()).contains("--syscalls");
        runner.isolate = Some(isolate);
        if supported {
            runner.ok(&image, &["--syscalls", "0"], &["cat", "/etc/motd"]);
        } else if is_2 {
            // Release 2.6 and later sources print the same version, but only the latter support the option. So the program
            // passes it on, and isolate refuses it.
            let result = runner.run(&image, &["--syscalls", "0"], &["cat", "/etc/motd"]);
            assert!(result.code == Some(2) && result.err.contains("--syscalls"), "{result:?}");
            runner.assert_clean();
        } else {
            let parts = ["`--syscalls`", &version, "is not supported by isolate"];
            runner.assert_refused(&image, &["--syscalls", "0"], &["cat", "/etc/motd"], &parts);
        }
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn full_upper_is_reported_as_an_error_of_the_program() {
    let (mut runner, isolates) = Runner::with_isolate(232);
    let image = runner.make("scratch", &[Entry::Directory("scratch", 0o1777)], &json!({}));
    for isolate in isolates {
        runner.isolate = Some(isolate);
        for engine in support::engines::SHARING {
            runner.engine = engine;
            full_upper_fails_the_program(&runner, &image);
        }
    }
    runner.mount.stop();
}

/// A program that writes more than the size of the upper fails with ENOSPC.
pub(super) fn full_upper_fails_the_program(runner: &Runner, image: &str) {
    let fill = ["busybox", "dd", "if=/dev/zero", "of=/scratch/big", "bs=4096", "count=1000"];
    let ran = runner.run(image, &["--upper", "tmpfs:1M"], &fill);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("No space left on device"), "{ran:?}");
    assert_eq!(runner.verdict(image, &["--upper", "tmpfs:1M"], &fill)["status"], "RE");
    assert_eq!(runner.verdict(image, &["--upper", "tmpfs:8M"], &fill)["status"], "OK");
    let ran = runner.run(image, &["--upper", "none"], &fill);
    assert!(ran.code == Some(1) && ran.err.contains("Read-only file system"), "{ran:?}");
    runner.assert_clean();
}
