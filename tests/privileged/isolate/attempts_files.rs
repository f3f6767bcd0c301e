//! Attacks by a hostile caller of the set-uid program: paths and races.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::attempts::{PRINT_IDS, compile, write_script};
use super::host::{CALLER, Host, SandboxBox, describe, failure_message, stdout_of, tar};

fn arguments(rule: &str) -> Vec<String> {
    [&format!("--dir=.={rule}"), "--run", "--", "x"].map(str::to_owned).to_vec()
}

/// Makes a file that only root can read or write.
fn secret(host: &Host) -> PathBuf {
    let path = host.program.dir().join("secret");
    fs::write(&path, "secret\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn image_path_with_dot_dot_is_refused() {
    let host = Host::with_script("exit 9");
    let mount = host.program.dir().join("images");
    let mount = mount.display();
    for climbing in ["..", "../own", "x/../../../etc", "lab/..", "./../own"] {
        let message = host.fails(&mut host.isolate(), &arguments(&format!("{mount}/{climbing}")));
        assert!(message.contains("must not contain `..`"), "{message}");
    }
    for climbing in ["../own", "lab/../../own:1", "..", "x/.."] {
        let named = [&format!("--env=RCX_IMAGEFS_IMAGE={climbing}"), "--run", "--", "x"].map(str::to_owned);
        let message = host.fails(&mut host.isolate(), &named);
        assert!(message.contains("not of the form"), "{message}");
    }
    // A link in the image that leads out of it.
    for inside in ["etc/../../..", "proc/self/root", "."] {
        host.fails(&mut host.isolate(), &arguments(&format!("{}/x/{inside}", host.image)));
    }
}

#[test]
fn caller_cannot_read_the_store_around_the_modes_of_the_image() {
    let host = Host::with_script("ls -l /proc/self/fd");
    let store = host.program.store();
    let mut command = host.command_as(CALLER, "find");
    let found = command.arg(store).args(["-mindepth", "1"]).output().unwrap();
    assert!(!found.status.success() && found.stdout.is_empty(), "{}", describe(&found));
    // The stand-in reads the store with the rights of root, and leaves no descriptor of it open.
    let output = host.isolate().args(arguments(&host.image)).output().unwrap();
    let descriptors = stdout_of(&output);
    assert!(
        descriptors.contains(" 0 -> ") && !descriptors.contains(store.to_str().unwrap()),
        "{descriptors}"
    );
    host.assert_clean();
}

#[test]
fn link_in_an_image_is_not_followed_out_of_the_mount() {
    let out = tar(|tar| {
        for (name, target) in [("out", "/"), ("up", "../../../../../../.."), ("own", "/tmp")] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
    });
    let host = Host::with_script_and_layer("exit 9", &out);
    for name in ["out", "up", "own", "out/etc", "up/etc", "etc", "bin"] {
        let message = host.fails(&mut host.isolate(), &arguments(&format!("{}/{name}", host.image)));
        assert!(message.contains("not an image"), "{name}: {message}");
    }
}

#[test]
fn meta_file_is_written_only_with_the_rights_of_the_caller() {
    let host = Host::with_script("exit 9");
    let secret = secret(&host);
    let link = host.caller_dir.join("link");
    symlink(&secret, &link).unwrap();
    let closed = host.program.dir().join("closed");
    fs::create_dir(&closed).unwrap();
    let dangling = host.caller_dir.join("dangling");
    symlink(closed.join("new"), &dangling).unwrap();
    for meta in
        [&secret, &link, &closed.join("new"), &dangling, &host.run_dir().join("x"), &host.homes().join("x")]
    {
        let mut command = host.isolate();
        command.arg(format!("--meta={}", meta.display())).args(arguments(&format!("{}x", host.image)));
        let message = failure_message(&command.output().unwrap());
        assert!(message.contains("meta file") && message.contains("ermission denied"), "{message}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    assert_eq!(fs::read_dir(closed).unwrap().count(), 0);
    // Files of the caller are written, also through a link.
    let own = host.caller_dir.join("own-meta");
    fs::write(&own, "old\n").unwrap();
    chown(&own, Some(CALLER), None).unwrap();
    symlink(&own, host.caller_dir.join("to-own")).unwrap();
    let mut command = host.isolate();
    command.arg(format!("--meta={}", host.caller_dir.join("to-own").display()));
    failure_message(&command.args(arguments(&format!("{}x", host.image))).output().unwrap());
    assert!(fs::read_to_string(own).unwrap().starts_with("status:XX\n"));
    host.assert_clean();
}

#[test]
fn link_swapped_during_the_call_gives_no_access() {
    let host = Host::with_script("printf '%s\\n' \"$@\"; id -u");
    let secret = secret(&host);
    let (own, link, spare) =
        (host.caller_dir.join("file"), host.caller_dir.join("link"), host.caller_dir.join("spare"));
    fs::write(&own, "").unwrap();
    chown(&own, Some(CALLER), None).unwrap();
    symlink(&own, &link).unwrap();
    let rule = host.caller_dir.join("rule");
    symlink(&host.image, &rule).unwrap();
    let swap = |link: &Path, to: &Path| {
        let _ = fs::remove_file(&spare);
        symlink(to, &spare).unwrap();
        fs::rename(&spare, link).unwrap();
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap(&link, &secret);
                swap(&rule, Path::new("/root"));
                swap(&link, &own);
                swap(&rule, Path::new(&host.image));
            }
        });
        let mut written = 0;
        for _ in 0..60 {
            let mut command = host.isolate();
            command.arg(format!("--meta={}", link.display())).args(arguments(&format!("{}x", host.image)));
            let output = command.output().unwrap();
            written += usize::from(!describe(&output).contains("meta file"));
            assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
            // A rule that reaches the mount through a link selects no image, whatever the link names at the time.
            let unchanged = arguments(rule.to_str().unwrap());
            let output = host.isolate().args(&unchanged).output().unwrap();
            assert_eq!(stdout_of(&output), format!("{}\n{CALLER}\n", unchanged.join("\n")));
        }
        done.store(true, Ordering::Relaxed);
        assert!(written > 0, "no call ever opened the file of the caller");
    });
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    assert!(fs::read_to_string(&own).unwrap().starts_with("status:XX\n"));
    host.assert_clean();
}

#[test]
fn mount_points_are_made_inside_the_image_whatever_its_links_say() {
    // Not in `/tmp`: the box has its own.
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).unwrap();
    let text = target.to_str().unwrap().to_owned();
    let layer = tar(|tar| {
        let links = [
            ("absolute", text.clone()),
            ("climbing", format!("../../../../../../../..{text}")),
            ("loop", "loop".to_owned()),
            // isolate mounts over these targets, so the links resolve differently once the box runs.
            ("magic", "/proc/self/root/etc".to_owned()),
            ("covered", "/dev".to_owned()),
        ];
        for (name, to) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, to).unwrap();
        }
    });
    let host = Host::with_script_and_layer("printf '%s\\n' \"$@\" | grep from", &layer);
    for name in ["absolute", "climbing"] {
        let mut command = host.isolate();
        command.args([&format!("--dir={name}/made=/from:rw")]).args(arguments(&host.image));
        let out = stdout_of(&command.output().unwrap());
        assert_eq!(out, format!("--dir=.{text}/made=/from:rw\n"), "{name}");
    }
    for name in ["loop/x", "magic/x", "covered/x", "etc/motd", "etc/motd/x"] {
        let arguments = [vec![format!("--dir={name}=/from")], arguments(&host.image)].concat();
        let message = host.fails(&mut host.isolate(), &arguments);
        assert!(message.contains(name.split("/x").next().unwrap()), "{message}");
    }
    host.assert_clean();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "a directory was made on the host");
    assert!(!Path::new("/etc/x").exists());
}

#[test]
fn directory_rule_with_dot_dot_is_refused() {
    let host = Host::with_script("exit 9");
    for rule in [
        "../x=/tmp",
        "a/../../x=/tmp",
        "..=/tmp",
        "tmp/..=/etc",
        "./..=/tmp",
        "x/..:tmp",
        "/../x=/tmp",
        "a/..=/",
    ] {
        let arguments = [vec![format!("--dir={rule}")], arguments(&host.image)].concat();
        let message = host.fails(&mut host.isolate(), &arguments);
        assert!(message.contains("not a path in the box"), "{rule}: {message}");
    }
    for rule in ["=/tmp", "/=/tmp", "a=/tmp:suid", "a=proc:fs:tmp"] {
        let arguments = [vec![format!("--dir={rule}")], arguments(&host.image)].concat();
        host.fails(&mut host.isolate(), &arguments);
    }
}

#[test]
#[ignore = "needs isolate on PATH"]
fn maybe_rule_does_not_reveal_files_that_only_root_can_see() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let closed = host.program.dir().join("closed");
    fs::create_dir_all(closed.join("below")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    // `maybe` does not reveal whether the directory exists.
    let outputs = ["below", "nothing"].map(|name| {
        let rule = format!("--dir=x={}:maybe", closed.join(name).display());
        host.run(&sandbox, &[&rule], "ls -d /x 2>&1; true")
    });
    assert_eq!(outputs[0], outputs[1]);
    host.assert_clean();
}

#[test]
fn user_namespace_of_the_caller_gives_no_rights() {
    let host = Host::with_script(PRINT_IDS);
    // Root of a user namespace can mount over the configuration and the mountpoint, but has no rights outside it.
    let (etc, images) = (host.caller_dir.join("etc"), host.program.dir().join("images"));
    fs::create_dir(&etc).unwrap();
    let mark = host.caller_dir.join("called");
    write_script(
        &host.caller_dir.join("evil"),
        &format!("cat {} > {} 2>&1; id -u", host.program.dir().join("secret").display(), mark.display()),
    );
    fs::write(host.program.dir().join("secret"), "secret").unwrap();
    fs::set_permissions(host.program.dir().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(
        etc.join("config.toml"),
        format!("[isolate]\npath = '{}'\n", host.caller_dir.join("evil").display()),
    )
    .unwrap();
    let script = format!(
        "mount --bind {} /etc/rcx-imagefs && mount --bind {} {} && exec \"$0\" --dir=.={}/x --run -- x",
        etc.display(),
        host.caller_dir.display(),
        images.display(),
        images.display()
    );
    let mut command = host.command_as(CALLER, "unshare");
    let output = command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(&host.shim)
        .output()
        .unwrap();
    let printed = fs::read_to_string(&mark).unwrap_or_default();
    // If users can create such namespaces, the named program runs, but only with the rights of the caller.
    let refused = !output.status.success() && printed.is_empty();
    assert!(refused || printed.contains("Permission denied"), "{printed}: {}", describe(&output));
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn set_uid_programs_and_devices_of_the_image_give_no_rights() {
    let scratch = tempfile::tempdir().unwrap();
    let source = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d\\n\", (int)geteuid()); return 0; }\n";
    let who = fs::read(compile(scratch.path(), "who", source, &["-static"])).unwrap();
    let layer = tar(|tar| {
        let mut header = tar::Header::new_gnu();
        header.set_size(who.len() as u64);
        header.set_mode(0o6755);
        tar.append_data(&mut header, "bin/rights", &*who).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(1).unwrap();
        header.set_device_minor(5).unwrap();
        header.set_size(0);
        header.set_mode(0o666);
        tar.append_data(&mut header, "nodes/zero", std::io::empty()).unwrap();
    });
    for isolate in super::host::all_isolates() {
        let host = Host::with(isolate.clone(), &layer);
        let sandbox = SandboxBox::new(&isolate);
        let uid = sandbox.uid;
        let script = "stat -c '%a %F %t' /bin/rights /nodes/zero; rights; head -c1 /nodes/zero >/dev/null 2>&1; echo $?; \
            head -c1 /dev/zero >/dev/null; echo $?";
        for flags in ["rw:dev", "dev"] {
            let rule = format!("--dir=.={}:{flags}", host.image);
            let out = host.run(&sandbox, &[&rule], script);
            assert_eq!(
                out,
                format!("6755 regular file 0\n666 character special file 1\n{uid}\n1\n0\n"),
                "{flags}"
            );
        }
        // Control: outside the mount, the program does gain rights.
        let free = host.program.dir().join("who");
        fs::write(&free, &who).unwrap();
        fs::set_permissions(&free, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_eq!(stdout_of(&host.command_as(CALLER, &free).output().unwrap()), "0\n");
        let in_mount = Path::new(&host.image).join("bin/rights");
        assert_eq!(stdout_of(&host.command_as(CALLER, in_mount).output().unwrap()), format!("{CALLER}\n"));
        host.assert_clean();
    }
}

#[test]
fn directory_that_is_not_our_mount_is_refused() {
    let host = Host::with_script("exit 9");
    // The state after the daemon has exited, if the caller owned the mountpoint, or even the directory above it.
    let (fake, owned) = (host.program.dir().join("fake"), host.caller_dir.join("images"));
    for (path, expected) in [(&fake, "is not a mount of rcx-imagefs"), (&owned, "is not trusted")] {
        fs::create_dir_all(path.join("lab/x@sha256-00/etc")).unwrap();
        chown(path, Some(CALLER), Some(CALLER)).unwrap();
        host.configure(&format!("mountpoint = '{}'\n", path.display()));
        let rule = format!("--dir=.={}/lab/x@sha256-00", path.display());
        let arguments = [&rule, "--run", "--", "x"].map(str::to_owned);
        let message = host.fails(&mut host.isolate(), &arguments);
        let named = if path == &fake { path } else { &host.caller_dir };
        assert!(message.contains(named.to_str().unwrap()) && message.contains(expected), "{message}");
    }
    // A directory inside the mount is not the mountpoint either.
    let inside = host.mount.as_ref().unwrap().path(host.image.rsplit_once('/').unwrap().0);
    host.configure(&format!("mountpoint = '{}'\n", inside.display()));
    let rule = format!("--dir=.={}", host.image);
    host.fails(&mut host.isolate(), &[rule, "--run".into(), "--".into(), "x".into()]);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn missing_and_unreadable_working_directories_are_harmless() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let arguments = host.run_arguments(&sandbox, &[], "cat /etc/motd; pwd; cd ..; pwd");
    for enter in [
        "mkdir gone && cd gone && rmdir ../gone",
        "mkdir closed && cd closed && chmod 0 .",
        &format!("cd {}/etc", host.image),
        "cd /proc/self/fd",
        "cd /",
        "umask 777",
    ] {
        let mut command = host.shell(&format!("{enter}; exec \"$0\" \"$@\""));
        let output = command.args(&arguments).output().unwrap();
        assert_eq!(stdout_of(&output), "a small image\n/box\n/\n", "{enter}: {}", describe(&output));
        host.assert_clean();
    }
}
