//! Images that are chosen by the path of the command, and commands that stay on the host.

use std::fs;

use super::attempts::compile;
use super::host::{Host, SandboxBox, all_isolates, stdout_of};

/// A host whose isolate prints its arguments.
fn host() -> Host {
    Host::with_script("printf '%s\\n' \"$@\"")
}

/// Calls the stand-in with `options`, and returns the arguments of isolate.
#[track_caller]
fn called(host: &Host, options: &[&str], command: &[&str]) -> String {
    let arguments = [options, &["--run", "--"], command].concat();
    stdout_of(&host.isolate().args(arguments).output().unwrap())
}

#[track_caller]
fn refused(host: &Host, options: &[&str], command: &str) -> String {
    let arguments = [options, &["--run", "--", command]].concat();
    host.fails(&mut host.isolate(), &arguments.into_iter().map(str::to_owned).collect::<Vec<_>>())
}

/// Whether isolate was called for a root.
fn has_root(called: &str) -> bool {
    called.contains("--no-default-dirs\n")
}

/// A program that makes a pseudo-terminal, writes to it and prints its name.
const OPEN_TERMINAL: &str = r#"
#include <pty.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    int master, slave;
    char name[64] = "", byte = 0;
    if (openpty(&master, &slave, name, NULL, NULL) != 0) { perror("openpty"); return 1; }
    if (write(slave, "x", 1) != 1 || read(master, &byte, 1) != 1) { perror("write"); return 1; }
    printf("%s %c\n", name, byte);
    return 0;
}
"#;

#[test]
#[ignore = "needs isolate on PATH"]
fn program_in_an_image_can_open_a_terminal_of_its_own() {
    for isolate in all_isolates() {
        let host = Host::with_isolate(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        let program = compile(&host.caller_dir, "terminal", OPEN_TERMINAL, &["-static", "-lutil"]);
        fs::copy(program, sandbox.dir.join("terminal")).unwrap();
        for _ in 0..2 {
            assert_eq!(host.run(&sandbox, &[], "/box/terminal; ls /dev/pts"), "/dev/pts/0 x\nptmx\n");
        }
        host.assert_clean();
    }
}

#[test]
fn command_in_the_mount_selects_its_image() {
    let host = host();
    let mount = host.program.dir().join("images").display().to_string();
    let names = [host.image.clone(), format!("{mount}/{}", host.name), format!("{mount}/{}", host.reference)];
    for image in &names {
        let out = called(&host, &[], &[&format!("{image}/bin/sh"), "-c", "x"]);
        assert!(has_root(&out) && out.ends_with("--\n/bin/sh\n-c\nx\n"), "{image}: {out}");
    }
    let command = format!("{}/bin/sh", host.image);
    // It decides before the table of boxes, and an empty variable before it.
    host.configure("[isolate.images]\ndefault = 'lab/none:1'\n");
    assert!(has_root(&called(&host, &[], &[&command])));
    assert!(!has_root(&called(&host, &["--env=RCX_IMAGEFS_IMAGE="], &[&command])));
    // A rule or a variable may name the same image. The rule then says whether the root is writable.
    let (rule, variable) =
        (format!("--dir=/={}:rw", host.image), format!("--env=RCX_IMAGEFS_IMAGE={}", host.reference));
    for option in [rule, variable] {
        let out = called(&host, &[&option], &[&command]);
        assert!(has_root(&out) && out.ends_with("--\n/bin/sh\n"), "{out}");
        assert_eq!(out.contains("root:rw\n"), option.ends_with(":rw"), "{out}");
    }
    assert!(refused(&host, &["--env=RCX_IMAGEFS_IMAGE=lab/none:1"], &command).contains("lab/none:1"));
    host.assert_clean();
}

#[test]
fn command_in_the_mount_cannot_leave_its_image() {
    let host = host();
    let mount = host.program.dir().join("images").display().to_string();
    let image = &host.image;
    for (command, words) in [
        (format!("{image}/../../../../../bin/sh"), "must not contain `..`"),
        (format!("{mount}/../bin/isolate"), "must not contain `..`"),
        (format!("{image}/bin/nothing"), "no such file in the image"),
        (format!("{image}/etc/motd"), "not executable"),
        (image.clone(), "is a directory"),
        (mount.clone(), "is not an image"),
        (format!("{mount}/lab/none/bin/sh"), "is not in the mount"),
    ] {
        let message = refused(&host, &[], &command);
        assert!(message.contains(words), "{command}: {message}");
    }
    host.assert_clean();
}

#[test]
fn host_commands_stay_on_the_host() {
    let host = host();
    let table = format!("[isolate.images]\ndefault = '{}'\n", host.reference);
    host.configure(&format!("host-commands = ['/usr/bin/recodex-*', '/bin/sh']\n{table}"));
    for command in ["/usr/bin/recodex-judge", "/bin/sh"] {
        assert_eq!(called(&host, &[], &[command]), format!("--run\n--\n{command}\n"));
        // A rule and the variable of the job decide first.
        let variable = format!("--env=RCX_IMAGEFS_IMAGE={}", host.reference);
        if command == "/bin/sh" {
            assert!(has_root(&called(&host, &[&variable], &[command])));
            assert!(has_root(&called(&host, &[], &[&format!("{}{command}", host.image)])));
        }
    }
    for command in ["/bin/busybox", "recodex-judge", "/box/recodex-judge"] {
        assert!(has_root(&called(&host, &[], &[command])), "{command}");
    }
    for command in ["/usr/bin/recodex-/../../bin/nothing", "/usr/bin/./recodex-judge"] {
        assert!(refused(&host, &[], command).contains("no such file in the image"), "{command}");
    }
    host.assert_clean();
}

#[test]
fn first_rule_and_first_variable_count() {
    let host = host();
    let rule = format!("--dir=.={}:rw", host.image);
    let out = called(&host, &[&rule, "--dir=.=/srv", "--dir=./=/images/none"], &["/bin/sh"]);
    assert!(has_root(&out) && !out.contains("/srv") && out.contains("root:rw\n"), "{out}");
    let variable = format!("--env=RCX_IMAGEFS_IMAGE={}", host.reference);
    let out = called(&host, &[&variable, "--env=RCX_IMAGEFS_IMAGE=lab/none:1"], &["/bin/sh"]);
    assert!(has_root(&out) && !out.contains("lab/none"), "{out}");
    assert!(
        refused(&host, &["--env=RCX_IMAGEFS_IMAGE=lab/none:1", &variable], "/bin/sh").contains("lab/none:1")
    );
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn command_in_the_mount_runs_in_its_image() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let shell = format!("{}/bin/sh", host.image);
    let mut options = sandbox.options();
    options.extend(["--processes=9", "--env=HOME=/box", "--run", "--", &shell, "-c"].map(str::to_owned));
    let script = "cat /etc/motd; echo $0 $HOME";
    let output = host.isolate().args(options).arg(script).output().unwrap();
    assert_eq!(stdout_of(&output), "a small image\n/bin/sh /box\n");
    host.assert_clean();
}
