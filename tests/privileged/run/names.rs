//! Programs find their user, `localhost` and, with the network of the host, its names.

use std::fs;

use serde_json::json;

use super::{Entry, Runner};

/// Prints what programs ask for: their names, their home, and the files with the names.
const SCRIPT: &str = "busybox id -un; busybox id -gn; echo $HOME; echo ~; cat /etc/hosts; \
    busybox test ! -e /etc/resolv.conf || echo resolver";

/// The option that lets a shell start other programs.
fn forking(runner: &Runner) -> &'static [&'static str] {
    if runner.sandbox == "isolate" { &["--processes"] } else { &[] }
}

/// The user has a name and a home, and `localhost` has an address, also in read-only roots.
pub(super) fn user_and_localhost_have_names(runner: &mut Runner) {
    let image = runner.pull("small");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = if runner.sandbox == "bwrap" { "box" } else { &host };
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}.localdomain {name}\n"
    );
    for engine in support::engines::SHARING {
        runner.engine = engine;
        for upper in ["dir", "tmpfs:8m", "none"] {
            let options = [forking(runner), &["--upper", upper]].concat();
            let out = runner.ok(&image, &options, &["sh", "-c", SCRIPT]);
            assert_eq!(out, format!("box\nbox\n/box\n/box\n{hosts}"), "{runner:?} {upper}");
        }
    }
    runner.engine = "fuse";
    let script = "busybox id -un; echo home=$HOME; busybox ls /etc";
    let plain = runner.run(&image, &[forking(runner), &["--no-inject"]].concat(), &["sh", "-c", script]);
    assert!(!plain.out.contains("box") && !plain.out.contains("hosts"), "{plain:?}");
    assert!(plain.out.contains("home=\n"), "{plain:?}");
    let home = |options: &[&str]| {
        let mut command = runner.command(&image, options, &["sh", "-c", "echo $HOME"]);
        String::from_utf8(command.env("HOME", "/of-caller").output().unwrap().stdout).unwrap()
    };
    assert_eq!(home(&["--env", "HOME=/other"]), "/other\n");
    assert_eq!(home(&["--env", "HOME"]), "/of-caller\n");
    assert_eq!(home(&["--full-env"]), "/of-caller\n");
    assert_eq!(home(&[]), "/box\n");
    let entries =
        [Entry::File("etc/hosts", "10.1.2.3 localhost box\n"), Entry::File("etc/passwd", "root:x:0:0::/:\n")];
    let image = runner.make("named", &entries, &json!({ "Env": ["HOME=/of-image", "PATH=/bin"] }));
    let out =
        runner.ok(&image, forking(runner), &["sh", "-c", "echo $HOME; cat /etc/passwd; cat /etc/hosts"]);
    let parts = ["/of-image\nroot:x:0:0::/:\nbox:x:", ":box:/box:/bin/sh\n10.1.2.3 localhost box\n"];
    assert!(parts.iter().all(|part| out.contains(part)), "{out}");
    runner.assert_clean();
}

/// Real programs ask the C library for the names.
pub(super) fn real_programs_find_the_names(runner: &Runner) {
    let image = runner.pull("python");
    let script = "import getpass, os, socket, tempfile
print(getpass.getuser(), os.path.expanduser('~'), socket.create_server(('localhost', 0)).getsockname()[0])
print(socket.gethostbyname(socket.gethostname()), [a[4][0] for a in socket.getaddrinfo('localhost', 80, socket.AF_INET)][0])
open(os.path.expanduser('~/.config'), 'w')";
    for upper in ["dir", "none"] {
        let out = runner.ok(&image, &["--upper", upper], &["python3", "-c", script]);
        let of_host =
            if runner.sandbox == "bwrap" { "127.0.1.1" } else { out.split_whitespace().nth(3).unwrap() };
        assert_eq!(out, format!("box /box 127.0.0.1\n{of_host} 127.0.0.1\n"));
        assert!(of_host.starts_with("127."), "{out}");
    }
    runner.assert_clean();
}

/// With `--share-net`, the host's name servers and the names in its `/etc/hosts` are there too.
pub(super) fn names_of_the_host_are_shared_with_its_network(runner: &Runner) {
    let image = runner.pull("small");
    let script = "cat /etc/hosts; echo --; cat /etc/resolv.conf";
    for upper in ["dir", "none"] {
        let out = runner.ok(
            &image,
            &[forking(runner), &["--share-net", "--upper", upper]].concat(),
            &["sh", "-c", script],
        );
        let (hosts, resolver) = out.split_once("--\n").unwrap();
        assert_eq!(resolver, fs::read_to_string("/etc/resolv.conf").unwrap());
        for line in fs::read_to_string("/etc/hosts").unwrap().lines() {
            assert!(hosts.contains(line), "{hosts}");
        }
        assert!(hosts.contains("localhost"), "{hosts}");
    }
    let out = runner.ok(&image, &["--share-net", "--no-inject"], &["busybox", "ls", "/etc"]);
    assert!(!out.contains("resolv.conf"), "{out}");
    runner.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn programs_under_isolate_find_their_user_and_hosts() {
    let (mut runner, isolates) = Runner::with_isolate(0);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        user_and_localhost_have_names(&mut runner);
        names_of_the_host_are_shared_with_its_network(&runner);
        real_programs_find_the_names(&runner);
    }
    runner.mount.stop();
}

#[test]
fn programs_under_bubblewrap_find_their_user_and_hosts() {
    let mut runner = Runner::new(408, "bwrap");
    user_and_localhost_have_names(&mut runner);
    names_of_the_host_are_shared_with_its_network(&runner);
    real_programs_find_the_names(&runner);
    runner.mount.stop();
}
