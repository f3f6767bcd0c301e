//! A worker sees the same as with isolate itself, except for the root.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::host::{
    CALLER, Host, Isolate, SandboxBox, all_isolates, describe, failure_message, isolate_on_path, stdout_of,
};
use support::running::RunningProcess;

/// The arguments that a worker passes to isolate, in its order. `rule` is one more `--dir` option.
fn worker_arguments(
    isolate: &Isolate,
    sandbox: &SandboxBox,
    meta: &Path,
    rule: Option<&str>,
    command: &[&str],
) -> Vec<String> {
    let id = format!("--box-id={}", sandbox.id);
    let limits = ["--time=5", "--wall-time=10", "--extra-time=1", "--stack=65536", "--fsize=10240"];
    let mut arguments = Vec::new();
    match isolate.cg {
        true => arguments.extend(["--cg", "--cg-timing", &id, "--cg-mem=131072"]),
        false => arguments.extend([id.as_str(), "--mem=4000000"]),
    }
    arguments.extend(limits);
    arguments.extend(["--stdout=out.txt", "--stderr=err.txt", "--chdir=../box", "--processes=10"]);
    arguments.extend(["--share-net", "--dir=/etc", "--env=PATH=/usr/bin:/bin", "--env=OF_JOB=job"]);
    arguments.extend(rule);
    arguments.push("--dir=etc/alternatives=/etc/alternatives:maybe");
    let meta = format!("--meta={}", meta.display());
    arguments.extend([meta.as_str(), "--run", "--"]);
    arguments.extend(command);
    arguments.into_iter().map(str::to_owned).collect()
}

fn keys(meta: &Path) -> Vec<String> {
    let text = fs::read_to_string(meta).unwrap();
    let mut keys: Vec<_> = text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect();
    keys.sort();
    keys
}

#[test]
#[ignore = "needs isolate on PATH"]
fn meta_file_has_the_same_keys_with_and_without_an_image() {
    let scripts = ["echo done > made; exit 0", "exit 3", "kill -SEGV $$", "while :; do :; done"];
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let meta = host.caller_dir.join("meta.log");
        let rule = format!("--dir=.={}", host.image);
        for script in scripts {
            let results = [None, Some(rule.as_str())].map(|rule| {
                let sandbox = SandboxBox::new(&isolate);
                let manage_box = |mode: &str| {
                    let output = host.isolate().args(sandbox.options()).arg(mode).output().unwrap();
                    stdout_of(&output)
                };
                manage_box("--cleanup");
                let dir = manage_box("--init");
                assert_eq!(Path::new(dir.trim()).join("box"), sandbox.dir);
                fs::write(sandbox.dir.join("data"), "data").unwrap();
                let command = ["/bin/sh", "-c", &format!("cat data; {script}")];
                let mut arguments = worker_arguments(&isolate, &sandbox, &meta, rule, &command);
                if script.starts_with("while") {
                    arguments
                        .iter_mut()
                        .filter(|argument| *argument == "--time=5")
                        .for_each(|argument| "--time=0.1".clone_into(argument));
                }
                let output = host.isolate().args(arguments).output().unwrap();
                let out = fs::read_to_string(sandbox.dir.join("out.txt")).unwrap();
                assert_eq!(out, "data", "{}", describe(&output));
                assert_eq!(sandbox.dir.join("made").exists(), script.contains("made"));
                let result = (output.status.code(), keys(&meta));
                manage_box("--cleanup");
                assert!(!sandbox.dir.exists());
                result
            });
            assert_eq!(results[0], results[1], "{}: {script}", isolate.path.display());
            host.assert_clean();
        }
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn image_is_selected_by_rule_by_variable_and_by_box() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let id = sandbox.id;
        let motd = |options: &[&str]| {
            let mut command = host.isolate();
            command.args(sandbox.options()).arg("--processes=9").args(options);
            command.args(["--run", "--", "/bin/sh", "-c", "cat /etc/motd 2>&1; echo $RCX_IMAGEFS_IMAGE"]);
            String::from_utf8_lossy(&command.output().unwrap().stdout).trim_end().to_owned()
        };
        let image = "a small image";
        let (reference, name) = (&host.reference, &host.name);
        assert_ne!(motd(&[]), image);
        assert_eq!(motd(&[&format!("--dir=.={}", host.image)]), image);
        assert_eq!(motd(&["-d", &format!("./=/{}//", host.image)]), image);
        assert_eq!(motd(&[&format!("--env=RCX_IMAGEFS_IMAGE={reference}")]), image);
        assert_eq!(motd(&[&format!("-ERCX_IMAGEFS_IMAGE={name}")]), image);
        for (boxes, expected) in [
            (format!("{id} = '{reference}'"), true),
            (format!("\"{}-{}\" = '{name}'", id - 1, id + 1), true),
            (format!("default = '{reference}'"), true),
            (format!("default = '{reference}'\n{id} = ''"), false),
            (format!("{} = '{reference}'", id + 1), false),
        ] {
            host.configure(&format!("[isolate.images]\n{boxes}\n"));
            assert_eq!(motd(&[]) == image, expected, "{boxes}");
            // An empty variable turns off the image that is configured for the box.
            assert_ne!(motd(&["--env=RCX_IMAGEFS_IMAGE="]), image, "{boxes}");
        }
        host.assert_clean();
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn variables_of_the_caller_override_and_the_path_of_the_image_finds_the_program() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let mut command = host.isolate();
        command.args(sandbox.options()).arg(format!("--dir=.={}", host.image));
        command.args([
            "--env=OF_IMAGE=job",
            "--env=OF_JOB=job",
            "--env=PATH=/job",
            "--run",
            "--",
            "sh",
            "-c",
            "/bin/busybox env",
        ]);
        let mut lines: Vec<_> = stdout_of(&command.output().unwrap()).lines().map(str::to_owned).collect();
        lines.sort();
        lines.retain(|line| line.starts_with("OF_") || line.starts_with("PATH="));
        assert_eq!(lines, ["OF_IMAGE=job", "OF_JOB=job", "PATH=/bin:/opt/of-image"]);
    }
}

/// Whether isolate prints its configuration.
fn prints_users(isolate: &Isolate) -> bool {
    let mut command = Command::new(&isolate.path);
    let output =
        command.args(["--verbose", "--verbose", "--box-id=2147483647", "--cleanup"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("Config: ")
}

#[test]
#[ignore = "needs isolate on PATH"]
fn image_root_reveals_nothing_of_the_host() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let rules = ["--dir=/etc", "--dir=etc/alternatives=/etc/alternatives:maybe", "--share-net"];
        let out = host.run(
            &sandbox,
            &rules,
            "ls -A / /etc; ls /proc/1/root/ 2>&1; cat /proc/self/mountinfo; cat /etc/passwd 2>&1 || true",
        );
        let etc = out.split("/etc:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let names: Vec<_> = etc.lines().take_while(|line| !line.is_empty()).collect();
        // isolate before version 2 does not print the users of its boxes, so they have no names.
        let expected: &[&str] = if prints_users(&isolate) {
            &["group", "hosts", "motd", "passwd", "resolv.conf"]
        } else {
            &["hosts", "motd", "resolv.conf"]
        };
        assert_eq!(&names[..expected.len()], expected, "{out}");
        assert_eq!(out.contains("\nbox:x:"), prints_users(&isolate), "{out}");
        assert!(!out.contains("root:x:"), "{out}");
        let top: Vec<_> = out.split("\n\n").next().unwrap().lines().skip(1).collect();
        assert_eq!(top, ["bin", "box", "dev", "etc", "proc", "sys", "tmp"], "{out}");
        for host_path in [host.program.dir(), host.isolate.path.as_path()] {
            assert!(!out.contains(host_path.to_str().unwrap()), "{}: {out}", host_path.display());
        }
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn writes_go_only_to_the_upper() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        // The user of the box has no rights in the image and can write only to world-writable directories.
        let script = "echo x > /tmp/x && echo y > /box/y && cat /etc/motd && \
            { echo spoiled > /etc/motd || mkdir /new; } 2>/dev/null; cat /etc/motd; sleep 0.1";
        let out = host.run(&sandbox, &[], script);
        assert_eq!(out, "a small image\na small image\n");
        assert_eq!(fs::read_to_string(sandbox.dir.join("y")).unwrap(), "y\n");
        host.assert_clean();
        assert_eq!(
            host.program.ok(&["verify", "--deep"]).lines().last().unwrap().split(": ").last(),
            Some("0 problems")
        );
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn mount_points_for_more_rules_are_made_in_the_upper() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let data = host.caller_dir.join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "of the job\n").unwrap();
        let rules = [
            format!("--dir=deep/down/data={}", data.display()),
            "--dir=nowhere=/nonexistent:maybe".to_owned(),
            "--dir=scratch:tmp".to_owned(),
        ];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let script =
            "cat /deep/down/data/file; ls -d /nowhere 2>/dev/null; echo > /scratch/x && echo scratch";
        assert_eq!(host.run(&sandbox, &rules, script), "of the job\nscratch\n");
        host.assert_clean();
    }
}

/// Prints everything that a process inherits, except what differs in every process.
const PRINT_INHERITED: &str = r#"printf '%s\n' "$#" "$@"
pwd; umask; id; ulimit -a; ulimit -Ha
tr '\0' '\n' </proc/$$/environ | sort
while read -r line; do
    case $line in Uid*|Gid*|Groups*|NoNew*|Cap*|SigIgn*|SigBlk*) echo "$line" ;; esac
done </proc/self/status
for fd in /proc/$$/fd/*; do echo "${fd##*/} $(readlink "$fd" | sed 's/:\[.*//')"; done
exit 7"#;

#[test]
fn call_without_an_image_is_passed_to_isolate_unchanged() {
    let host = Host::with_script(PRINT_INHERITED);
    let unusual = "--dir=.=/srv\n--env=A=b c --run -- x --dir=.=/images/y";
    let calls = [
        "--init",
        "--cleanup",
        "--version",
        "--box-id=3 --init",
        "--box-id=3 --meta=/nonexistent/meta --env=A=1 -p --run -- /bin/echo --init",
        "--no-such-option --run -- a",
        "--run -- a",
        "--dir=.=relative --dir=a=b=c:rw --run -- a",
        unusual,
        "",
    ];
    for call in calls {
        let results = [&host.isolate.path, &host.shim].map(|program| {
            let limited = ["--nofile=300:400", "--stack=1000000:2000000", "--", "sh", "-c"];
            let mut command = host.command_as(CALLER, "prlimit");
            command.args(limited).arg("umask 027; exec \"$0\" \"$@\" 5</dev/null 7>/dev/null").arg(program);
            command.args(call.split(' ').filter(|word| !word.is_empty()));
            command.env("A", "b").env("NOT_UTF8", "\u{fffd}").env("RUST_LOG", "trace");
            command.output().unwrap()
        });
        if call != "--version" {
            assert_eq!(results[0].status.code(), Some(7), "{}", describe(&results[0]));
        }
        let [bare, ours] = results.map(|output| describe(&output));
        let bare = bare.replace(host.isolate.path.to_str().unwrap(), "isolate");
        let ours = ours.replace(host.isolate.path.to_str().unwrap(), "isolate");
        assert_eq!(bare, ours, "{call}");
    }
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn guardian_keeps_no_pipe_of_the_caller_open() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    // A background process in the box ends with isolate. So do the pipes that it inherited.
    let script = "sleep 1000 & echo out; echo err >&2";
    let mut command = host.shell("exec 9>&1; exec \"$0\" \"$@\"");
    command.args(host.run_arguments(&sandbox, &[], script));
    let output = command.output().unwrap();
    assert_eq!(stdout_of(&output), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("err\n"));

    let arguments = host.run_arguments(&sandbox, &[], "sleep 1000");
    let mut child = RunningProcess::start(host.shell("exec 9>&1; exec \"$0\" \"$@\"").args(arguments));
    support::child::wait_until("the program runs", || !sandbox.processes().is_empty());
    let (mut out, mut content) = (child.0.stdout.take().unwrap(), Vec::new());
    child.kill();
    std::io::Read::read_to_end(&mut out, &mut content).unwrap();
    host.assert_clean();
}

#[test]
fn root_without_set_uid_uses_the_configured_isolate_too() {
    let mut host = Host::with_script("printf '%s\\n' \"$@\"; id -u");
    let config = host.config();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
    command.arg("--config").arg(&config).args(["isolate-shim", "--box-id=3", "--run", "--", "/bin/true"]);
    assert_eq!(stdout_of(&command.output().unwrap()), "--box-id=3\n--run\n--\n/bin/true\n0\n");
    // A caller that is neither root nor runs a set-uid copy cannot use an image.
    let mut command = host.command_as(CALLER, env!("CARGO_BIN_EXE_rcx-imagefs"));
    command.arg("--config").arg(&config).args([
        "isolate-shim",
        &format!("--dir=.={}", host.image),
        "--run",
        "--",
        "x",
    ]);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("neither run by root nor set-uid"), "{error}");
    // The store is private, so this copy learns from the daemon that a call is for no image.
    let plain = |host: &Host| {
        let mut command = host.command_as(CALLER, env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--config").arg(&config).args(["isolate-shim", "--box-id=3", "--run", "--", "/bin/true"]);
        command.output().unwrap()
    };
    assert_eq!(stdout_of(&plain(&host)), format!("--box-id=3\n--run\n--\n/bin/true\n{CALLER}\n"));
    host.mount.take().unwrap().stop();
    let output = plain(&host);
    let error = String::from_utf8_lossy(&output.stderr);
    let private = "is private: it belongs to user 0 and has mode 0700";
    assert!(output.status.code() == Some(2) && error.contains(private), "{error}");
}

#[test]
#[ignore = "needs isolate on PATH"]
fn isolate_is_found_in_the_default_directories_if_none_is_configured() {
    let host = Host::new();
    host.configure_all("");
    let output = host.isolate().arg("--version").output().unwrap();
    let default_paths = ["/usr/local/bin", "/usr/bin"].map(|dir| Path::new(dir).join("isolate"));
    if default_paths.contains(&isolate_on_path().path) {
        assert!(stdout_of(&output).contains("isolat"));
    } else {
        assert!(failure_message(&output).contains("there is no isolate at"));
    }
}
