//! Attacks by a hostile caller of the set-uid program: environment, arguments, descriptors and resource limits.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::host::{CALLER, Host, OTHER, SandboxBox, describe, failure_message, stdout_of};
use support::child::wait_until;
use support::images::run;
use support::running::RunningProcess;

/// A script that stands for isolate and prints its user IDs and capabilities.
pub(super) const PRINT_IDS: &str = "grep -E '^(Uid|CapPrm|CapEff)' /proc/$$/status";

/// The output of [`PRINT_IDS`] run as the caller without any privileges.
pub(super) fn caller_without_rights() -> String {
    let none = "0".repeat(16);
    format!("Uid:\t{CALLER}\t{CALLER}\t{CALLER}\t{CALLER}\nCapPrm:\t{none}\nCapEff:\t{none}\n")
}

/// Writes an executable shell script.
pub(super) fn write_script(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Compiles a C program with the compiler options `options`.
pub(super) fn compile(dir: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let (file, path) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&file, source).unwrap();
    let arguments = [&["-o", path.to_str().unwrap(), file.to_str().unwrap()], options].concat();
    run("gcc", &arguments);
    path
}

#[test]
#[ignore = "needs isolate on PATH"]
fn path_variable_of_the_caller_does_not_select_isolate() {
    let host = Host::new();
    // Also if the configuration does not name an isolate.
    for config in [format!("[isolate]\npath = '{}'\n", host.isolate.path.display()), String::new()] {
        host.configure_all(&config);
        let mark = host.caller_dir.join("called");
        write_script(&host.caller_dir.join("isolate"), &format!("id -u >> {}", mark.display()));
        let mut command = host.shell("PATH=$PWD:$PATH exec \"$0\" \"$@\"");
        let output = command
            .args([&format!("--dir=.={}", host.image), "--box-id=900", "--run", "--", "x"])
            .output()
            .unwrap();
        assert!(!mark.exists(), "{}", describe(&output));
        // Control: a plain shell does find the program through `PATH`.
        stdout_of(&host.command_as(CALLER, "sh").args(["-c", "PATH=$PWD:$PATH isolate"]).output().unwrap());
        fs::remove_file(&mark).unwrap();
    }
}

#[test]
fn preloaded_library_of_the_caller_is_not_loaded() {
    let host = Host::with_script("exit 0");
    let record = host.caller_dir.join("record");
    let source = format!(
        "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void record(void) {{\n\
         FILE *f = fopen(\"{}\", \"a\"); if (f) {{ fprintf(f, \"%d\\n\", (int)geteuid()); fclose(f); }} }}\n",
        record.display()
    );
    let library = compile(&host.caller_dir, "library.so", &source, &["-shared", "-fPIC"]);
    let uids = || -> Vec<String> {
        fs::read_to_string(&record).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let load = "LD_PRELOAD=$1 LD_LIBRARY_PATH=$PWD LD_AUDIT=$1 GLIBC_TUNABLES=glibc.malloc.check=3 exec \"$2\" --init";
    for name in ["true", host.shim.to_str().unwrap()] {
        let mut command = host.shell(load);
        command.arg(&library).arg(name).output().unwrap();
    }
    // Programs without set-uid load the library as the caller; the stand-in does not.
    assert!(!uids().is_empty() && uids().iter().all(|uid| *uid == CALLER.to_string()), "{:?}", uids());
}

#[test]
#[ignore = "needs isolate on PATH"]
fn environment_of_the_caller_changes_no_setting() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let config = host.caller_dir.join("config.toml");
    fs::write(&config, format!("[isolate]\npath = '{}'\n", host.caller_dir.join("isolate").display()))
        .unwrap();
    let variables = [
        ("RCX_IMAGEFS_STORE", host.caller_dir.as_os_str()),
        ("RCX_IMAGEFS_RUN", host.caller_dir.as_os_str()),
        ("RCX_IMAGEFS_CONFIG", config.as_os_str()),
        ("RCX_IMAGEFS_IMAGE", "lab/other".as_ref()),
        ("RUST_LOG", "trace".as_ref()),
        ("RUST_BACKTRACE", "full".as_ref()),
        ("RUST_MIN_STACK", "18446744073709551615".as_ref()),
        ("HOME", host.caller_dir.as_os_str()),
        ("TMPDIR", host.caller_dir.as_os_str()),
        ("TZ", "/etc/shadow".as_ref()),
        ("NO_COLOR", "1".as_ref()),
        ("MALLOC_TRACE", host.caller_dir.as_os_str()),
    ];
    let mut command = host.isolate();
    command.args(host.run_arguments(&sandbox, &[], "cat /etc/motd; env")).envs(variables);
    let output = command.output().unwrap();
    assert_eq!(stdout_of(&output).lines().next(), Some("a small image"), "{}", describe(&output));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("OK (") && error.lines().count() == 1, "{error}");
    let mut names: Vec<_> =
        fs::read_dir(&host.caller_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.toml"]);
    // A failing call prints exactly one line.
    let mut command = host.isolate();
    command.envs(variables).args([&format!("--dir=.={}x", host.image), "--run", "--", "x"]);
    failure_message(&command.output().unwrap());
}

#[test]
fn without_an_image_isolate_runs_with_the_rights_of_the_caller() {
    let host = Host::with_script(PRINT_IDS);
    let secret = host.program.dir().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    // A path outside the mount, a path that only shares its prefix and a link into it do not select an image.
    let link = host.caller_dir.join("link");
    std::os::unix::fs::symlink(&host.image, &link).unwrap();
    let same_prefix = format!("{}x/image", host.program.dir().join("images").display());
    for outside in [secret.to_str().unwrap(), "/", link.to_str().unwrap(), &same_prefix, "images"] {
        let output =
            host.isolate().args([&format!("--dir=.={outside}"), "--run", "--", "x"]).output().unwrap();
        assert_eq!(stdout_of(&output), caller_without_rights(), "{outside}");
        assert_eq!(host.stand_ins(), Vec::<u32>::new());
    }
    // isolate has no more rights in an image.
    let output =
        host.isolate().args([&format!("--dir=.={}", host.image), "--run", "--", "x"]).output().unwrap();
    assert_eq!(stdout_of(&output), caller_without_rights());
    host.assert_clean();
}

#[test]
fn set_uid_copy_refuses_all_other_commands() {
    let host = Host::with_script("printf 'isolate %s\\n' \"$1\"");
    let copy = host.program.dir().join("bin/rcx-imagefs");
    fs::copy(env!("CARGO_BIN_EXE_rcx-imagefs"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).unwrap();
    let store = host.program.store().to_str().unwrap();
    for arguments in [
        vec!["gc"],
        vec!["--store", store, "rm", &host.name],
        vec!["root", "create", &host.name],
        vec!["run", &host.name, "--", "x"],
        vec!["isolate-shim", "--run"],
        vec!["man", host.caller_dir.to_str().unwrap()],
    ] {
        let message = failure_message(&host.command_as(CALLER, &copy).args(&arguments).output().unwrap());
        assert!(message.contains("only stands in for isolate"), "{message}");
        // Under the name `isolate` they are arguments for isolate.
        let output = host.isolate().args(&arguments).output().unwrap();
        assert_eq!(stdout_of(&output), format!("isolate {}\n", arguments[0]));
    }
    // The caller controls `argv[0]`. Only the name of the stand-in passes the arguments to isolate.
    for name in ["rcx-imagefs", "", "isolate/", "/isolate/.."] {
        let mut command = host.command_as(CALLER, "bash");
        command.args(["-c", "exec -a \"$0\" \"$@\"", name]).arg(&copy).arg("gc");
        let output = command.output().unwrap();
        match name {
            "isolate/" => assert_eq!(stdout_of(&output), "isolate gc\n"),
            _ => assert!(failure_message(&output).contains("only stands in for isolate"), "{name}"),
        }
    }
    let none =
        "#include <unistd.h>\nint main(int c, char **v) { char *n[] = {0}; return execve(v[1], n, n); }\n";
    let none = compile(&host.caller_dir, "none", none, &[]);
    failure_message(&host.command_as(CALLER, none).arg(&copy).output().unwrap());
}

#[test]
#[ignore = "needs isolate on PATH"]
fn closed_standard_descriptors_are_harmless() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let meta = host.caller_dir.join("meta");
    let option = format!("--meta={}", meta.display());
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let mut command = host.shell(&format!("exec \"$0\" \"$@\" {closed}"));
        command.args(host.run_arguments(&sandbox, &[&option], "cat /etc/motd > /box/made"));
        let output = command.output().unwrap();
        let written = fs::read_to_string(&meta).unwrap();
        assert!(
            output.status.success() && written.contains("exitcode:0"),
            "{closed}: {}{written}",
            describe(&output)
        );
        assert_eq!(fs::read_to_string(sandbox.dir.join("made")).unwrap(), "a small image\n");
        fs::remove_file(&meta).unwrap();
        fs::remove_file(sandbox.dir.join("made")).unwrap();
        host.assert_clean();

        let mut command = host.shell(&format!("exec \"$0\" \"$@\" {closed}"));
        command.args([&option, &format!("--dir=.={}x", host.image), "--run", "--", "x"]);
        assert_eq!(command.output().unwrap().status.code(), Some(2), "{closed}");
        let written = fs::read_to_string(&meta).unwrap();
        assert!(
            written.starts_with("status:XX\nmessage:rcx-imagefs: ") && written.lines().count() == 2,
            "{written}"
        );
        fs::remove_file(&meta).unwrap();
    }
}

/// Starts a run in the image that does not end by itself. Returns it and its guardian.
fn start_run(host: &Host, sandbox: &SandboxBox, script: &str) -> (RunningProcess, u32) {
    let mut command = host.command_as(CALLER, "bash");
    command.args(["-c", script]).arg(&host.shim).args(host.run_arguments(sandbox, &[], "sleep 1000"));
    let mut child = RunningProcess::start(&mut command);
    wait_until("the program runs", || {
        if child.0.try_wait().unwrap().is_some() {
            let mut error = String::new();
            child.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            panic!("the run ended early: {error}");
        }
        !sandbox.processes().is_empty()
    });
    let [guardian] = host.guardians()[..] else { panic!("expected one guardian: {:?}", host.guardians()) };
    (child, guardian)
}

fn end_run(host: &Host, mut child: RunningProcess) {
    child.kill();
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn guardian_inherits_no_descriptor_directory_or_session() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let script = "exec 3</etc/passwd 4>own.txt 9<. 200>/dev/full || exit; exec \"$0\" \"$@\"";
    let (child, guardian) = start_run(&host, &sandbox, &format!("ulimit -Sn 300; {script}"));
    let proc = PathBuf::from(format!("/proc/{guardian}"));
    let mut others = Vec::new();
    for fd in fs::read_dir(proc.join("fd")).unwrap() {
        let link = match fs::read_link(fd.unwrap().path()) {
            // The guardian closes the files by which it changes its control groups.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            link => link.unwrap(),
        };
        let link = link.to_str().unwrap();
        let own = ["/dev/null", "anon_inode:", "pipe:"].iter().any(|kind| link.starts_with(kind));
        let of_store =
            [host.program.store(), &host.run_dir()].iter().any(|dir| link.starts_with(dir.to_str().unwrap()));
        // The guardian locks the box, and may be moving to its control group.
        let of_box = link == sandbox.dir.to_str().unwrap() || link.ends_with("/cgroup.procs");
        if !own && !of_store && !of_box {
            others.push(link.to_owned());
        }
    }
    assert_eq!(others, Vec::<String>::new());
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0\n") && status.contains("Groups:\t \n"), "{status}");
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, guardian.to_string());
    end_run(&host, child);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn descriptors_of_the_caller_do_not_reach_the_program() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let secret = host.program.dir().join("secret");
    fs::write(&secret, "secret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let script = "cat <&8; echo written >&9; for fd in /proc/$$/fd/*; do case $fd in */[0-3]) ;; *) echo open $fd;; esac; done; \
        echo end";
    let mut command = host.isolate();
    command.args(host.run_arguments(&sandbox, &[], script));
    let output = support::child::with_open_file(&command, &secret).output().unwrap();
    assert_eq!(stdout_of(&output), "end\n");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn caller_cannot_kill_stop_or_trace_the_guardian() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let (child, guardian) = start_run(&host, &sandbox, "exec \"$0\" \"$@\"");
    for signal in ["KILL", "STOP", "TERM", "CONT", "SEGV"] {
        let output = host
            .command_as(CALLER, "/bin/kill")
            .args(["-s", signal, &guardian.to_string()])
            .output()
            .unwrap();
        assert!(describe(&output).contains("not permitted"), "{signal}: {}", describe(&output));
    }
    for file in ["environ", "mem", "fd", "maps", "root"] {
        let path = format!("/proc/{guardian}/{file}");
        let output = host.command_as(CALLER, "ls").args(["-L", &path]).output().unwrap();
        let read = host.command_as(CALLER, "head").args(["-c1", &path]).output().unwrap();
        assert!(!output.status.success() || !read.status.success(), "{file}: {}", describe(&read));
    }
    // The guardian is still alive after all attempts.
    assert_eq!(host.guardians(), [guardian]);
    end_run(&host, child);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn low_resource_limits_are_harmless() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let arguments = host.run_arguments(&sandbox, &[], "cat /etc/motd; echo > /tmp/x");
    let mut worked = Vec::new();
    for limit in [
        "--fsize=0:",
        "--fsize=200000:",
        "--nofile=30:",
        "--nofile=0",
        "--nofile=1",
        "--nofile=3",
        "--nofile=4",
        "--nofile=5",
        "--nofile=6",
        "--nofile=8",
        "--nofile=12",
        "--nofile=20",
        "--fsize=0",
        "--fsize=1",
        "--nproc=0",
        "--nproc=1",
        "--stack=65536",
        "--data=1000000",
        "--as=30000000",
        "--as=60000000",
        "--as=100000000",
        "--memlock=0",
        "--core=0",
        "--locks=0",
        "--sigpending=0",
        "--msgqueue=0",
        "--rttime=1",
        "--nice=0",
    ] {
        let output = host
            .command_as(CALLER, "prlimit")
            .args([limit, "--"])
            .arg(&host.shim)
            .args(&arguments)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        // isolate runs with the caller's limits again and may fail to write its own files after the run.
        let complete = out == "a small image\n";
        assert!(complete || out.is_empty() && !output.status.success(), "{limit}: {}", describe(&output));
        if output.status.success() {
            worked.push(limit);
        }
        wait_until("the box is empty", || sandbox.processes().is_empty());
        host.assert_clean();
    }
    for harmless in ["--fsize=200000:", "--nofile=30:", "--core=0", "--memlock=0"] {
        assert!(
            worked.contains(&harmless),
            "the run should succeed with {harmless}; it succeeded only with {worked:?}"
        );
    }
}

#[test]
fn resource_limits_of_the_caller_are_restored_for_isolate() {
    let host = Host::with_script("ulimit -n; ulimit -Hn; ulimit -f; umask; grep dumpable /proc/$$/status");
    for image in [String::new(), format!("--dir=.={}", host.image)] {
        let limits =
            ["--nofile=40:200", "--fsize=512000:2048000", "--", "sh", "-c", "umask 013; exec \"$0\" \"$@\""];
        let mut command = host.command_as(CALLER, "prlimit");
        command.args(limits).arg(&host.shim).args(["--run", "--", "x"].iter().copied());
        if !image.is_empty() {
            command = host.command_as(CALLER, "prlimit");
            command.args(limits).arg(&host.shim).args([&image, "--run", "--", "x"]);
        }
        let out = String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
        assert_eq!(out, "40\n200\n1000\n0013\n", "{image}");
    }
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn very_long_and_unusual_arguments_are_harmless() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let base = host.run_arguments(&sandbox, &[], "cat /etc/motd");
    let many: Vec<String> = (0..20_000).map(|number| format!("--env=V{number}={number}")).collect();
    let long = vec![format!("--env=LONG={}", "x".repeat(130_000))];
    // The mount points share their parents: some disks take milliseconds to remove a directory.
    let rules: Vec<String> =
        (0..300).map(|number| format!("--dir={}m{number}:tmp", "d/".repeat(50))).collect();
    let deep = vec![format!("--dir={}=/tmp", "d/".repeat(2500))];
    let control_characters: Vec<String> =
        ["--dir=\u{1}=/tmp", "--env=\n=\n", "--dir==", "--dir=", "--meta="].map(str::to_owned).to_vec();
    for extra in [many, long, rules, deep, control_characters] {
        let output = host.isolate().args(extra.iter().chain(&base)).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) => assert_eq!(out, "a small image\n"),
            Some(1 | 2) => assert_eq!(out, "", "{}", describe(&output)),
            _ => panic!("{}: {}", &extra[0][..20.min(extra[0].len())], describe(&output)),
        }
        host.assert_clean();
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn files_of_a_root_are_inaccessible_to_its_caller_and_to_others() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let (child, _) = start_run(&host, &sandbox, "exec \"$0\" \"$@\"");
    let home = fs::read_dir(host.homes())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("upper").exists());
    let home = home.expect("the run has a home directory");
    assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
    let root = format!("/proc/{}/root", child.0.id());
    for user in [CALLER, OTHER] {
        for path in [home.join("upper"), home.join("lock"), root.clone().into()] {
            let output =
                host.command_as(user, "ls").arg("-L").arg(&path).arg(path.join(".")).output().unwrap();
            assert!(
                describe(&output).contains("Permission denied"),
                "{user} {}: {}",
                path.display(),
                describe(&output)
            );
        }
    }
    // The root is mounted only in the namespace of the run.
    assert_eq!(fs::read_dir(host.run_dir().join("root")).unwrap().count(), 0);
    end_run(&host, child);
}
