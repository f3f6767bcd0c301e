//! Calls while no daemon runs.

use super::host::{Host, SandboxBox, all_isolates, failure_message, stdout_of};

#[test]
#[ignore = "needs isolate on PATH"]
fn image_with_plain_layers_needs_no_daemon() {
    for isolate in all_isolates() {
        let mut host = Host::with_plain_layers(isolate.clone());
        let sandbox = SandboxBox::new(&isolate);
        host.mount.take().unwrap().stop();
        let script = ["/bin/sh", "-c", "cat /etc/motd; echo $OF_IMAGE"];
        let call = |options: &[&str], words: &[&str]| {
            let mut command = host.isolate();
            command
                .args(sandbox.options())
                .arg("--processes=9")
                .args(options)
                .args(["--run", "--"])
                .args(words);
            command.output().unwrap()
        };
        let expected = "a small image\nimage\n";
        // By the path that the mount of the last daemon had, and by names: a tag is a link there.
        let rule = format!("--dir=.={}", host.image);
        assert_eq!(stdout_of(&call(&[&rule], &script)), expected, "{rule}");
        assert!(failure_message(&call(&[&format!("{rule}0")], &script)).contains("is not an image"));
        for name in [&host.reference, &host.name] {
            let output = call(&[&format!("--env=RCX_IMAGEFS_IMAGE={name}")], &script);
            assert_eq!(stdout_of(&output), expected, "{name}");
        }
        let shell = format!("{}/bin/sh", host.image);
        let output = call(&[], &[&shell, "-c", script[2]]);
        assert_eq!(stdout_of(&output), expected, "by the command's path");
        host.configure(&format!("\n[isolate.images]\ndefault = '{}'\n", host.reference));
        assert_eq!(stdout_of(&call(&[], &script)), expected, "by the box");
        let output = call(&["--env=RCX_IMAGEFS_IMAGE=lab/other"], &script);
        assert!(failure_message(&output).contains("lab/other"));
        host.assert_clean();
    }
}
