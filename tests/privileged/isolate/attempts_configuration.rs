//! Attacks by a hostile caller of the set-uid program: files and directories of its configuration.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use super::attempts::PRINT_IDS;
use super::host::{CALLER, Host, failure_message, stdout_of};

#[test]
fn configuration_that_others_can_write_is_refused() {
    let mut host = Host::with_script(PRINT_IDS);
    let (file, dir) = (host.config(), host.config().parent().unwrap().to_owned());
    let refused = |host: &Host, why: &str| {
        let message = host.fails(&mut host.isolate(), &["--run".into(), "--".into(), "x".into()]);
        assert!(message.contains("is not trusted") && message.contains(why), "{message}");
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, good) in [(&file, 0o644), (&dir, 0o755)] {
        for bad in [good | 0o002, good | 0o020] {
            mode(path, bad);
            refused(&host, "other users may write to it");
        }
        mode(path, good);
        chown(path, Some(CALLER), None).unwrap();
        refused(&host, &format!("it belongs to user {CALLER}"));
        chown(path, Some(0), None).unwrap();
    }
    assert_eq!(stdout_of(&host.isolate().output().unwrap()), super::attempts::caller_without_rights());
    // The same checks apply to the configured isolate.
    mode(&host.isolate.path, 0o777);
    refused(&host, "other users may write to it");
    mode(&host.isolate.path, 0o755);
    // Whoever can write to a directory above isolate, or owns a link in its path, can replace it.
    let lib = host.program.dir().join("lib");
    fs::create_dir(&lib).unwrap();
    fs::copy(&host.isolate.path, lib.join("isolate")).unwrap();
    let link = host.program.dir().join("link");
    symlink(&lib, &link).unwrap();
    host.isolate.path = link.join("isolate");
    host.configure("");
    stdout_of(&host.isolate().output().unwrap());
    mode(&lib, 0o757);
    refused(&host, lib.to_str().unwrap());
    mode(&lib, 0o755);
    std::os::unix::fs::lchown(&link, Some(CALLER), None).unwrap();
    refused(&host, &format!("{} is not trusted: it belongs to user {CALLER}", link.display()));
}

#[test]
fn directories_of_the_configuration_that_others_can_change_are_refused() {
    let host = Host::with_script(PRINT_IDS);
    let rule = format!("--dir=.={}", host.image);
    let in_image: Vec<String> = [&rule, "--run", "--", "/bin/sh"].map(str::to_owned).into();
    let upper_dir = host.program.dir().join("uppers");
    fs::create_dir(&upper_dir).unwrap();
    let isolate = host.isolate.path.display();
    host.configure_all(&format!(
        "[root]\nupper-dir = '{}'\n[isolate]\npath = '{isolate}'\n",
        upper_dir.display()
    ));
    let runs = || stdout_of(&host.isolate().args(&in_image).output().unwrap());
    assert_eq!(runs(), super::attempts::caller_without_rights());
    let homes = upper_dir.join("rcx-imagefs-roots");
    let original = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.permissions(), metadata.uid())
    };
    for path in [
        host.program.store().to_owned(),
        host.program.store().join("rcx-imagefs"),
        host.run_dir(),
        upper_dir,
        homes,
    ] {
        let (permissions, owner) = original(&path);
        let refused = || {
            let output = host.isolate().args(&in_image).output().unwrap();
            let message = failure_message(&output);
            let expected = format!("{} is not trusted: ", path.display());
            assert!(message.contains(&expected), "{}: {message}", path.display());
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o757)).unwrap();
        refused();
        fs::set_permissions(&path, permissions).unwrap();
        chown(&path, Some(CALLER), None).unwrap();
        refused();
        chown(&path, Some(owner), None).unwrap();
    }
    // Everybody may own a link below /tmp, and may change where it leads.
    let link = host.caller_dir.join("link");
    symlink(host.run_dir(), &link).unwrap();
    let text = format!(
        "store = '{}'\nrun-dir = '{}'\n[isolate]\npath = '{isolate}'\n",
        host.program.store().display(),
        link.display()
    );
    fs::write(host.config(), text).unwrap();
    let message = failure_message(&host.isolate().args(&in_image).output().unwrap());
    assert!(message.contains(&format!("{} is not trusted", host.caller_dir.display())), "{message}");
}
