//! Failures of the stand-in itself are reported the way isolate reports its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::host::{Host, SandboxBox, failure_message};
use support::images::run;

fn in_image(host: &Host) -> Vec<String> {
    [&format!("--dir=.={}", host.image), "--run", "--", "/bin/sh"].map(str::to_owned).to_vec()
}

#[track_caller]
fn assert_fails(host: &Host, arguments: &[String], words: &[&str]) {
    let message = host.fails(&mut host.isolate(), arguments);
    for word in words {
        assert!(message.contains(word), "the message should contain {word:?}: {message}");
    }
}

/// Makes a host whose isolate must not be called.
fn host() -> Host {
    Host::with_script("echo called >&2; exit 9")
}

#[test]
fn missing_daemon_is_reported_on_stderr_and_in_the_meta_file() {
    let mut host = host();
    host.mount.take().unwrap().stop();
    let by_name =
        vec![format!("--env=RCX_IMAGEFS_IMAGE={}", host.reference), "--run".into(), "--".into(), "x".into()];
    assert_fails(&host, &by_name, &["no daemon serves the store", "rcx-imagefs mount"]);
    // The last mountpoint is still known: the program must not run on the host.
    for flags in ["", ":rw", ":maybe"] {
        let mut by_rule = in_image(&host);
        by_rule[0].push_str(flags);
        assert_fails(&host, &by_rule, &["no daemon serves the store"]);
    }
    let by_command = vec!["--run".into(), "--".into(), format!("{}/bin/sh", host.image)];
    assert_fails(&host, &by_command, &["no daemon serves the store"]);
    // With a configured mountpoint, the path alone identifies the image.
    host.configure(&format!("mountpoint = '{}'\n", host.program.dir().join("images").display()));
    assert_fails(&host, &in_image(&host), &["no daemon serves the store"]);
}

#[test]
fn dead_mount_is_reported_on_stderr_and_in_the_meta_file() {
    let mut host = host();
    host.configure(&format!("mountpoint = '{}'\n", host.program.dir().join("images").display()));
    host.mount.as_mut().unwrap().server().signal("KILL");
    host.mount.as_mut().unwrap().server().wait();
    assert_fails(&host, &in_image(&host), &["no daemon serves the store"]);
    run("umount", &["--lazy", host.program.dir().join("images").to_str().unwrap()]);
    assert_fails(&host, &in_image(&host), &["no daemon serves the store"]);
}

#[test]
fn missing_image_is_reported_on_stderr_and_in_the_meta_file() {
    let host = host();
    let mount = host.program.dir().join("images");
    let rule = |name: &str| {
        vec![format!("--dir=.={}/{name}", mount.display()), "--run".into(), "--".into(), "x".into()]
    };
    assert_fails(&host, &rule("lab/none@sha256-00"), &["lab/none@sha256-00", "is not in the mount"]);
    assert_fails(&host, &rule(""), &["not an image"]);
    let registry = host.name.split('/').next().unwrap().replace(':', "-");
    assert_fails(&host, &rule(&registry), &["not an image"]);
    let below = host.image.strip_prefix(mount.to_str().unwrap()).unwrap();
    assert_fails(&host, &rule(&format!("{}/etc", &below[1..])), &["not an image"]);
    let named = vec!["--env=RCX_IMAGEFS_IMAGE=lab/none:2".into(), "--run".into(), "--".into(), "x".into()];
    assert_fails(&host, &named, &["lab/none:2"]);
    for bad in ["../x", "a//b", "/etc", "x\ny"] {
        let named = vec![format!("--env=RCX_IMAGEFS_IMAGE={bad}"), "--run".into(), "--".into(), "x".into()];
        assert_fails(&host, &named, &["not of the form NAME[:TAG][@DIGEST]"]);
    }
}

#[test]
fn missing_old_or_wrong_isolate_is_reported() {
    let mut host = host();
    let script = |host: &Host, text: &str| {
        fs::write(&host.isolate.path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&host.isolate.path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script(&host, "echo 'The process isolator 1.2'");
    assert_fails(&host, &in_image(&host), &["version 1.2", "is too old"]);
    script(&host, "echo something else");
    assert_fails(&host, &in_image(&host), &["is not isolate"]);
    script(&host, "exit 1");
    assert_fails(&host, &in_image(&host), &["is not isolate"]);
    fs::write(&host.isolate.path, [0x7f, 0, 1, 2]).unwrap();
    assert_fails(&host, &in_image(&host), &["isolate"]);
    fs::remove_file(&host.isolate.path).unwrap();
    assert_fails(&host, &in_image(&host), &["there is no isolate at", "[isolate]"]);
    host.isolate.path.clone_from(&host.shim);
    host.configure("");
    assert_fails(&host, &in_image(&host), &["is this program itself"]);
}

#[test]
fn invalid_configuration_is_reported() {
    let host = host();
    for (text, words) in [
        ("[isolate]\nno-such = 1\n", ["config.toml", "no-such"]),
        ("[isolate]\nupper = 'disk'\n", ["config.toml", "disk"]),
        ("[isolate.images]\n'9-1' = 'x'\n", ["config.toml", "9-1"]),
        ("[", ["config.toml", "line 3"]),
    ] {
        host.configure_all(text);
        assert_fails(&host, &in_image(&host), &words);
        // Also without an image option: the configuration might have assigned an image to the box.
        assert_fails(&host, &["--run".into(), "--".into(), "x".into()], &words);
    }
}

#[test]
fn unwritable_meta_file_is_reported_on_stderr() {
    let host = host();
    let mut command = host.isolate();
    command.arg("--meta=/nonexistent/meta").args(in_image(&host)[..1].iter().map(|rule| format!("{rule}x")));
    let message = failure_message(&command.args(["--run", "--", "x"]).output().unwrap());
    assert!(message.contains("meta file /nonexistent/meta"), "{message}");
    // As in isolate, `-` means standard output.
    let mut command = host.isolate();
    let output =
        command.args(["--meta=-", &format!("--dir=.={}x", host.image), "--run", "--", "x"]).output().unwrap();
    let meta = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code() == Some(2) && meta.starts_with("status:XX\nmessage:rcx-imagefs: "),
        "{meta}"
    );
}

#[test]
fn upper_that_cannot_be_created_is_reported_and_leaves_nothing() {
    let host = host();
    let file = host.program.dir().join("file");
    fs::write(&file, "").unwrap();
    let (store, run_dir) = (host.program.store(), host.run_dir());
    let text = format!(
        "store = '{}'\nrun-dir = '{}'\n[root]\nupper-dir = '{}'\n[isolate]\npath = '{}'\n",
        store.display(),
        run_dir.display(),
        file.join("x").display(),
        host.isolate.path.display()
    );
    fs::write(host.config(), text).unwrap();
    let mut arguments = in_image(&host);
    arguments[0].push_str(":rw");
    assert_fails(&host, &arguments, &[file.to_str().unwrap()]);
}

#[test]
fn program_that_the_image_does_not_have_is_an_error_of_the_call() {
    let host = Host::with_script("printf '%s\\n' \"$@\"");
    let call = |options: &[&str], word: &str| -> Vec<String> {
        let rule = format!("--dir=.={}", host.image);
        let options = options.iter().copied().chain([rule.as_str(), "--run", "--", word]);
        options.map(str::to_owned).collect()
    };
    for (options, word, fault) in [
        (&[][..], "/bin/nothing", "no such file in the image"),
        (&[], "/etc/motd", "not executable"),
        (&[], "/bin", "is a directory"),
        (&[], "/etc/motd/x", "no such file in the image"),
        (&["--chdir=/etc"], "./motd", "not executable"),
        (&["--chdir=/etc"], "nothing", "not found in any directory of PATH"),
    ] {
        assert_fails(&host, &call(options, word), &[&format!("program `{word}`"), fault, "lab/image@sha256"]);
    }
    // Only isolate knows the files of the box and of other directories that it mounts.
    for word in ["/box/a.out", "./a.out", "a.out", "../box/a.out", "/tmp/x", "/proc/self/exe", "/bin/sh"] {
        let output = host.isolate().args(call(&[], word)).output().unwrap();
        assert!(super::host::stdout_of(&output).ends_with(&format!("--\n{word}\n")), "{word}");
    }
    host.assert_clean();
}

/// Runs the remaining arguments in a mount namespace whose `/dev/log` is the socket `$1`.
const WITH_LOG: &str = r#"log=$1 && shift && mount -t tmpfs -o mode=755 rcx-test-dev /dev && mknod -m 666 /dev/null c 1 3 &&
    mkdir /dev/shm /dev/pts && touch /dev/log && mount --bind "$log" /dev/log && exec "$@""#;

/// Makes the socket of a system log that every user can write to.
fn system_log(host: &Host) -> (UnixDatagram, PathBuf) {
    let socket = host.program.dir().join("log");
    let log = UnixDatagram::bind(&socket).unwrap();
    log.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    (log, socket)
}

/// Returns the next line of a system log.
fn next_line(log: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = log.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// A call whose system log is at `socket`.
fn call_with_log(host: &Host, socket: &Path) -> Command {
    let call = host.isolate();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", WITH_LOG, "sh"]).arg(socket);
    command.arg(call.get_program()).args(call.get_args());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir(&host.caller_dir);
    command
}

#[test]
#[ignore = "needs isolate on PATH"]
fn system_log_says_what_a_cold_run_read_and_waited_for_and_nothing_of_a_warm_one() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let (log, socket) = system_log(&host);
    let run = |script: &str| {
        let mut call = call_with_log(&host, &socket);
        let output = call.args(host.run_arguments(&sandbox, &[], script)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run("cat /etc/motd");
    let line = next_line(&log);
    let (head, text) = line.split_once("]: ").unwrap();
    assert!(head.starts_with("<14>rcx-imagefs-isolate["), "{line}");
    let start = format!("box {}, image {}: read ", sandbox.id, host.name);
    let numbers = text.strip_prefix(&start).unwrap_or_else(|| panic!("{line}"));
    let words: Vec<&str> = numbers.split(' ').collect();
    let [bytes, "bytes", "from", "the", "daemon", "and", "waited", wait, "ms", "for", "them"] = words[..]
    else {
        panic!("{line}")
    };
    assert!(bytes.parse::<u64>().unwrap() > 0 && wait.parse::<u64>().unwrap() > 0, "{line}");
    log.set_nonblocking(true).unwrap();
    // Another test may drop the caches of the kernel meanwhile.
    let mut lines = Vec::new();
    let is_silent = (0..10).any(|_| {
        run("cat /etc/motd");
        let mut buffer = [0; 4096];
        let line =
            log.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
        line.map(|line| lines.push(line)).is_err()
    });
    assert!(is_silent, "every warm run has read something: {lines:#?}");
    host.assert_clean();
}

#[test]
fn failure_is_written_to_the_system_log() {
    let host = host();
    let (log, socket) = system_log(&host);
    let logged = |arguments: &[&str]| {
        let output = call_with_log(&host, &socket).args(arguments).output().unwrap();
        (failure_message(&output), next_line(&log))
    };
    for (option, image) in
        [("--env=RCX_IMAGEFS_IMAGE=lab/none:2", "lab/none:2"), ("--box-id=7", "lab/table:1")]
    {
        host.configure("[isolate.images]\n7 = 'lab/table:1'\n");
        let (message, line) = logged(&["--box-id=7", option, "--run", "--", "/bin/sh\n"]);
        let (head, text) = line.split_once("]: ").unwrap();
        assert!(head.starts_with("<11>rcx-imagefs-isolate["), "{line}");
        let reason = message.strip_prefix("rcx-imagefs: ").unwrap();
        assert_eq!(text, format!("box 7, image {image}: {reason}"));
    }
    host.configure("no-such-key = 1\n");
    let (_, line) = logged(&["--run", "--", "x"]);
    assert!(line.contains("]: box 0: ") && line.contains("no-such-key") && !line.contains('\n'), "{line}");
}
