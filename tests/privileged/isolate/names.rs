//! A program in an image finds its user, `localhost` and its variables.

use std::fs;

use super::host::{Host, SandboxBox};

const SCRIPT: &str = "busybox id -un; busybox id -gn; echo $HOME $OF_IMAGE $PATH; busybox grep -c localhost /etc/hosts; busybox ls /etc";

#[test]
#[ignore = "needs isolate on PATH"]
fn user_and_localhost_have_names_in_the_image() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let run = |options: &[&str], rule: &str| {
        let mut arguments = host.run_arguments(&sandbox, options, SCRIPT);
        arguments[sandbox.options().len()] = format!("--dir=.={}{rule}", host.image);
        super::host::stdout_of(&host.isolate().args(arguments).output().unwrap())
    };
    for rule in ["", ":rw"] {
        let out = run(&[], rule);
        let expected = "box\nbox\n/box image /bin:/opt/of-image\n2\ngroup\nhosts\n";
        assert!(out.starts_with(expected) && !out.contains("resolv.conf"), "{out}");
        let out = run(&["--share-net"], rule);
        assert!(out.contains("resolv.conf\n"), "{out}");
    }
    let script = "cat /etc/resolv.conf";
    let shared = host.run(&sandbox, &["--share-net", "--dir=/etc"], script);
    assert_eq!(shared, fs::read_to_string("/etc/resolv.conf").unwrap());
    host.configure("inject = false");
    let out = host.run(
        &sandbox,
        &[],
        "echo home=$HOME; busybox ls /etc; busybox grep box /etc/passwd || echo none",
    );
    assert!(out.starts_with("home=\n") && out.ends_with("none\n") && !out.contains("hosts"), "{out}");
    host.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn variables_of_the_caller_override_those_of_the_image_but_for_the_configured_ones() {
    let host = Host::new();
    let sandbox = SandboxBox::new(&host.isolate);
    let script = "echo $HOME $OF_IMAGE $PATH";
    let options = ["--env=OF_IMAGE=job", "--env=PATH=/usr/bin:/usr/local/bin", "--env=HOME=/tmp"];
    assert_eq!(host.run(&sandbox, &options, script), "/tmp job /bin:/opt/of-image\n");
    host.configure("env-from-image = ['OF_IMAGE']");
    let script = "echo $OF_IMAGE $PATH";
    let options = ["--env=OF_IMAGE=job", "--env=PATH=/usr/bin:/bin"];
    assert_eq!(host.run(&sandbox, &options, script), "image /usr/bin:/bin\n");
    host.assert_clean();
}
