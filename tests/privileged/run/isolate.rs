//! Programs of real images work, and the configuration of the image applies: environment, directory, command, PATH.

use std::process::Stdio;

use serde_json::json;

use super::{Entry, Runner, on_host};

/// The compiler, interpreter and shell of a real image work.
pub(super) fn real_programs_run(runner: &Runner, image: &str) {
    let source =
        runner.file("main.c", "#include <stdio.h>\nint main(void) { puts(\"compiled\"); return 0; }\n");
    let (copy_in, copy_out) = (format!("{source}=src/main.c"), "src/main=compiled");
    let mut options = vec!["--copy-in", &copy_in, "--copy-out", copy_out];
    if runner.sandbox == "isolate" {
        options.push("--processes");
    }
    runner.ok(image, &options, &["gcc", "-o", "src/main", "src/main.c"]);
    assert_eq!(on_host(&runner.program.dir().join("compiled")).stdout, b"compiled\n");
    let numpy = "import numpy; print(numpy.arange(10).sum())";
    assert_eq!(runner.ok(image, &[], &["python3", "-c", numpy]), "45\n");
    let terminal = "import os; master, slave = os.openpty(); os.write(slave, b'x'); \
        print(os.read(master, 1), os.ttyname(slave), os.listdir('/dev/pts'))";
    let seen = runner.ok(image, &[], &["python3", "-c", terminal]);
    assert!(seen.starts_with("b'x' /dev/pts/0 ") && !seen.contains("'1'"), "{seen}");
    // The default command of the image is its interpreter.
    let script = runner.file("script.py", "print(6 * 7)\n");
    assert_eq!(runner.ok(image, &["--copy-in", &script, "--stdin", "script.py"], &[]), "42\n");
    let shell = "echo $((6 * 7)) >box.txt; read line <box.txt; echo $line; echo $0";
    assert_eq!(runner.ok(image, &[], &["/bin/sh", "-c", shell]), "42\n/bin/sh\n");
    runner.assert_clean();
}

/// The program sees the environment, directory and command from the configuration of the image.
pub(super) fn image_configuration_is_applied(runner: &Runner) {
    let config = json!({
        "Env": ["PATH=/opt/tools:/bin", "FROM_IMAGE=image", "BOTH=image", "GONE=image"],
        "WorkingDir": "/srv/work",
        "Entrypoint": ["tool", "entry"],
        "Cmd": ["cmd"],
    });
    let tool = "#!/bin/sh\necho \"$@\"; pwd; echo $FROM_IMAGE $BOTH $GONE $MORE\n";
    let entries = [
        Entry::Directory("srv/work", 0o755),
        Entry::File("opt/tools/tool", tool),
        Entry::File("opt/file", ""),
    ];
    let image = runner.make("configured", &entries, &config);
    assert_eq!(runner.ok(&image, &[], &[]), "entry cmd\n/srv/work\nimage image image\n");
    let options = ["--env", "BOTH=call", "--env", "MORE=more", "--env", "GONE=", "--chdir", "/box"];
    assert_eq!(runner.ok(&image, &options, &["word"]), "entry word\n/box\nimage call more\n");
    assert_eq!(runner.ok(&image, &["--entrypoint", "tool"], &[]).lines().next(), Some(""));
    assert_eq!(runner.ok(&image, &["--entrypoint", ""], &["cat", "/etc/motd"]), "a small image\n");
    // `--env PATH` replaces the PATH of the image, also for the lookup of the program.
    runner.assert_refused(
        &image,
        &["--env", "PATH=/bin"],
        &[],
        &["`tool`", "not found in any directory of PATH"],
    );
    // PATH directories that the sandbox mounts over are skipped; the search continues with the next.
    assert_eq!(
        runner.ok(&image, &["--env", "PATH=/tmp:/proc/no:/bin", "--entrypoint", ""], &["cat", "/etc/motd"]),
        "a small image\n"
    );
    runner.assert_clean();
}

/// The program starts in the working directory of the image, which is made if possible. Otherwise it starts in the box.
pub(super) fn working_directory_falls_back_to_the_box(runner: &Runner) {
    for (configured, actual, read_only) in [
        ("/made/new", "/made/new", "/box"),
        ("/box/new", "/box/new", "/box/new"),
        ("made", "/made", "/box"),
        ("/tmp", "/tmp", "/tmp"),
        // Hidden by the mount of the sandbox on `/tmp`.
        ("/tmp/new", "/box", "/box"),
        ("/link/new", "/box", "/box"),
        ("/private", "/box", "/box"),
    ] {
        let entries = [Entry::Directory("private", 0o700), Entry::Link("link", "/tmp")];
        let name = format!("starts{}", configured.replace('/', "-"));
        let image = runner.make(&name, &entries, &json!({ "WorkingDir": configured }));
        assert_eq!(runner.ok(&image, &[], &["sh", "-c", "pwd"]), format!("{actual}\n"), "{configured}");
        let pwd = runner.ok(&image, &["--upper", "none"], &["sh", "-c", "pwd"]);
        assert_eq!(pwd, format!("{read_only}\n"), "{configured}");
        if actual.starts_with("/box") {
            runner.ok(&image, &[], &["sh", "-c", "echo >written"]);
        }
    }
    let image = runner.make("starts", &[], &json!({}));
    let expected = ["cannot start the program in /box/nowhere: No such file"];
    runner.assert_refused(&image, &["--chdir", "nowhere"], &["cat", "/etc/motd"], &expected);
    runner.assert_refused(&image, &["--chdir", "/etc/motd"], &["cat"], &["/etc/motd: Not a directory"]);
    assert_eq!(runner.ok(&image, &["--chdir", "/etc"], &["cat", "motd"]), "a small image\n");
    runner.assert_clean();
}

/// The program and its links are looked up in the image, not on the host.
pub(super) fn programs_are_looked_up_in_the_image(runner: &Runner) {
    let entries = [
        // An absolute target that exists in the image but not on the host.
        Entry::Link("bin/linked", "/opt/real"),
        Entry::Link("bin/nowhere", "/usr/bin/env"),
        Entry::Link("bin/circle", "/bin/circle"),
        Entry::File("opt/real", "#!/bin/sh\necho of the image\n"),
        Entry::Directory("bin/directory", 0o755),
        Entry::File("opt/script", "#!/usr/bin/absent -x\n"),
        Entry::File("opt/windows", "#!/bin/sh\r\necho\r\n"),
        Entry::File("opt/nested", "#!/opt/script\n"),
        Entry::File("opt/plain", "#!/etc/motd\n"),
        Entry::File("opt/links", "#!/bin/linked\n"),
    ];
    let image = runner.make("programs", &entries, &json!({}));
    assert_eq!(runner.ok(&image, &[], &["linked"]), "of the image\n");
    assert_eq!(runner.ok(&image, &[], &["/bin/linked"]), "of the image\n");
    let missing = "no such file in the image";
    for (program, reason) in [
        ("mount", "not found in any directory of PATH"),
        ("nowhere", "not found in any directory of PATH"),
        ("directory", "not found in any directory of PATH"),
        ("/usr/bin/env", missing),
        ("/bin/nowhere", missing),
        ("/bin/directory", "is a directory"),
        ("/bin/circle", "oo many"),
        ("/etc/motd", "not executable"),
        ("./absent", missing),
        ("/opt/script", "its interpreter `/usr/bin/absent`: no such file in the image"),
        ("/opt/windows", "its interpreter `/bin/sh\\r`: no such file in the image"),
        ("/opt/windows", "line ends of Windows"),
        ("/opt/nested", "its interpreter `/opt/script`: its interpreter `/usr/bin/absent`: no such file"),
        ("/opt/plain", "its interpreter `/etc/motd`: not executable"),
    ] {
        runner.assert_refused(&image, &[], &[program], &[program, reason]);
    }
    assert_eq!(runner.ok(&image, &[], &["/opt/links"]), "of the image\n");
    // A program of the host needs its loader, which this image does not have.
    let copied = ["--copy-in", "/bin/true"];
    let parts = [
        "program `./true`: its loader `/lib64/ld-linux",
        "no such file in the image",
        "built for another system",
    ];
    runner.assert_refused(&image, &copied, &["./true"], &parts);
    // Such a program in a directory of PATH is not skipped.
    let path = ["--env", "PATH=/opt:/bin"];
    runner.assert_refused(&image, &path, &["script"], &["`script`: its interpreter `/usr/bin/absent`"]);
}

/// A program that failed and could start no other program gets a hint at `--processes`.
fn processes_are_hinted_at(runner: &Runner, image: &str) {
    let script = ["sh", "-c", "busybox true; busybox true || exit 7"];
    let hint = "use `--processes`";
    if runner.sandbox != "isolate" {
        assert!(!runner.run(image, &[], &["sh", "-c", "exit 7"]).err.contains(hint));
        return;
    }
    let ran = runner.run(image, &[], &script);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("can't fork") && ran.err.contains(hint), "{ran:?}");
    assert!(runner.verdict(image, &[], &script)["hint"].as_str().unwrap().contains(hint));
    for options in [&["--processes=5"][..], &["--processes"], &["--silent"]] {
        let ran = runner.run(image, options, &["sh", "-c", "exit 7"]);
        assert!(ran.code == Some(1) && !ran.err.contains(hint), "{ran:?}");
    }
    let ran = runner.run(image, &[], &["sh", "-c", "exit 0"]);
    assert!(!ran.err.contains(hint), "{ran:?}");
    assert_eq!(runner.verdict(image, &["--processes"], &script)["hint"], json!(null));
}

/// The exit codes, messages, JSON and meta files of `run` agree with the result of the program.
pub(super) fn result_is_reported(runner: &Runner, image: &str) {
    let ran = runner.run(image, &[], &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), "out\n"), "{ran:?}");
    assert!(ran.err.contains("err\n") && ran.err.contains("Exited with error status 3"), "{ran:?}");
    processes_are_hinted_at(runner, image);

    let verdict = runner.verdict(image, &["--meta", "meta"], &["sh", "-c", "exit 3"]);
    assert_eq!((&verdict["status"], &verdict["exit_code"]), (&json!("RE"), &json!(3)), "{verdict}");
    assert_eq!(verdict["sandbox"], runner.sandbox);
    assert_eq!(verdict["image"], image);
    assert_eq!(verdict["message"], "Exited with error status 3");
    let id = verdict["box_id"].as_u64().unwrap();
    assert!((runner.first_box.into()..(runner.first_box + super::BOXES).into()).contains(&id), "{verdict}");
    let meta = runner.read("meta");
    for line in ["status:RE", "exitcode:3", "message:Exited with error status 3"] {
        assert!(meta.lines().any(|found| found == line), "{meta}");
    }
    for key in ["time:", "time-wall:", "max-rss:"] {
        assert!(meta.lines().any(|line| line.starts_with(key)), "{meta}");
    }
    for key in ["time_s", "wall_time_s", "max_rss_kib", "csw_voluntary", "csw_forced"] {
        assert!(verdict[key].is_number(), "{key}: {verdict}");
    }

    let verdict = runner.verdict(image, &[], &["sh", "-c", "kill -SEGV $$"]);
    assert_eq!((&verdict["status"], &verdict["exit_signal"]), (&json!("SG"), &json!(11)), "{verdict}");
    assert_eq!(verdict["message"], "Caught fatal signal 11");

    let verdict = runner.verdict(image, &["--meta", "meta"], &["sh", "-c", "exit 0"]);
    assert_eq!((&verdict["status"], &verdict["exit_code"]), (&json!("OK"), &json!(0)), "{verdict}");
    assert_eq!((&verdict["errors"], &verdict["message"]), (&json!([]), &json!(null)), "{verdict}");
    assert!(!runner.read("meta").contains("status:"));

    // A failure before the program starts.
    let ran = runner.run(image, &["--json", "--meta", "meta"], &["absent"]);
    let verdict: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &verdict["status"]), (Some(2), &json!("XX")), "{ran:?}");
    assert!(verdict["message"].as_str().unwrap().contains("`absent`"), "{verdict}");
    let meta = runner.read("meta");
    assert!(meta.starts_with("status:XX\nmessage:") && meta.contains("`absent`"), "{meta}");
    runner.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn compiler_interpreter_and_shell_of_a_real_image_run() {
    let (mut runner, isolates) = Runner::with_isolate(100);
    let image = runner.pull("app");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        for engine in support::engines::SHARING {
            runner.engine = engine;
            real_programs_run(&runner, &image);
        }
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn program_gets_environment_directory_and_command_from_the_image() {
    let (mut runner, isolates) = Runner::with_isolate(122);
    let image = runner.pull("small");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        image_configuration_is_applied(&runner);
        working_directory_falls_back_to_the_box(&runner);
        programs_are_looked_up_in_the_image(&runner);
        result_is_reported(&runner, &image);
    }
    runner.mount.stop();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn box_in_use_is_refused_and_left_unchanged() {
    let (mut runner, isolates) = Runner::with_isolate(144);
    let image = runner.pull("small");
    for isolate in isolates {
        runner.isolate = Some(isolate);
        let id = "150";
        let mut other = super::killed::start(&runner, &image, &["--box-id", id, "--json"], "busybox");
        let output = runner.command(&image, &["--box-id", id], &["cat", "/etc/motd"]).output().unwrap();
        let error = support::program::failure(&output, &["run"]);
        assert!(error.contains("box 150 is in use"), "{error}");
        let output = runner.command(&image, &["--box-id", id, "--wait=0.1"], &["cat"]).output().unwrap();
        assert!(support::program::failure(&output, &["run"]).contains("box 150 is in use"));
        let mut waiting =
            runner.command(&image, &["--box-id", id, "--wait", "--silent"], &["cat", "/etc/motd"]);
        let mut waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
        // Other boxes are still free.
        assert_eq!(runner.ok(&image, &[], &["cat", "/etc/motd"]), "a small image\n");
        assert!(waiting.try_wait().unwrap().is_none(), "the box is still in use");
        other.kill().unwrap();
        other.wait().unwrap();
        let output = waiting.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"a small image\n"[..]));
        // The box of the killed run can be used again at once.
        assert_eq!(runner.verdict(&image, &["--box-id", id], &["cat", "/etc/motd"])["box_id"], 150);
        runner.sweep_until_clean();
    }
    runner.mount.stop();
}
