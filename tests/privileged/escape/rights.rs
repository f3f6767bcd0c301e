//! Set-id programs, file capabilities and devices of an image give no rights in the mount or in a root of any engine.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::engines::EscapeFixture;
use support::images::run;
use support::layers::{EntryKind, Line, parse};
use support::text;

/// A C program that prints its user, group and effective capabilities.
const PRINT_IDS: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    printf("%d %d", (int)geteuid(), (int)getegid());
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff:", 7)) printf(" %s", line + 8);
    return 0;
}
"#;

/// `cap_setuid,cap_dac_override=ep` in the format of the kernel (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x82\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
const USER: u32 = 12_345;

/// A layer with set-user, set-group and capability variants of the program, and with devices.
pub(crate) fn layer() -> support::blob::Blob {
    let scratch = tempfile::tempdir().unwrap();
    let (source, program) = (scratch.path().join("who.c"), scratch.path().join("who"));
    fs::write(&source, PRINT_IDS).unwrap();
    run("gcc", &["-static", "-o", program.to_str().unwrap(), source.to_str().unwrap()]);
    let program = fs::read(program).unwrap();
    let file = |path: &[u8], mode| {
        let mut line = Line::new(path, EntryKind::File(program.clone()));
        line.mode = mode;
        line
    };
    let mut lines = parse(
        "c nodes/null 1:3 mode=666 \n c nodes/mem 1:1 mode=666 \n b nodes/disk 254:0 mode=666 \n c nodes/tty 5:0 mode=666
         p nodes/pipe mode=666 \n d proc mode=555",
    )
    .remove(0);
    lines.extend([file(b"bin/plain", 0o755), file(b"bin/set-user", 0o4755), file(b"bin/set-group", 0o2755)]);
    let mut capable = file(b"bin/capable", 0o755);
    capable.xattrs.push(("security.capability".to_owned(), CAPABILITY.to_vec()));
    lines.push(capable);
    lines.push(Line::new(b"bin/linked", EntryKind::Hardlink(b"bin/set-user".to_vec())));
    text::layer_of(&lines)
}

/// Runs a program of a tree as an unprivileged user and returns its output.
#[track_caller]
fn run_unprivileged(root: &Path, program: &str) -> String {
    let mut command = Command::new("setpriv");
    command.args([
        format!("--reuid={USER}"),
        format!("--regid={USER}"),
        "--clear-groups".into(),
        "--".into(),
    ]);
    let output = command.arg(root.join("bin").join(program)).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The output of a program that has gained nothing.
const NO_RIGHTS: &str = "12345 12345 0000000000000000";

/// Asserts that nothing in a tree gives any rights, although all modes and attributes are those of the image.
#[track_caller]
fn assert_gives_no_rights(root: &Path, what: &str) {
    for (program, mode) in [
        ("plain", 0o755),
        ("set-user", 0o4755),
        ("set-group", 0o2755),
        ("capable", 0o755),
        ("linked", 0o4755),
    ] {
        let path = root.join("bin").join(program);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "{program} in {what}");
        assert_eq!(run_unprivileged(root, program), NO_RIGHTS, "{program} in {what}");
    }
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(root.join("bin/capable"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], CAPABILITY, "{what}");
    for name in ["null", "mem", "disk", "tty"] {
        let path = root.join("nodes").join(name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(kind.is_char_device() || kind.is_block_device(), "{name} in {what}");
        for flags in [OFlags::RDONLY, OFlags::WRONLY | OFlags::NONBLOCK] {
            let opened = rustix::fs::open(&path, flags, Mode::empty()).err();
            // No write is needed: the open itself must fail.
            assert_eq!(opened, Some(Errno::ACCESS), "{name} in {what}, {flags:?}, as root");
        }
    }
    assert!(fs::symlink_metadata(root.join("nodes/pipe")).unwrap().file_type().is_fifo(), "{what}");
}

#[test]
fn set_id_programs_capabilities_and_devices_of_an_image_give_no_rights() {
    let fixture = EscapeFixture::new();
    let image = text::load(&fixture.program, &text::image("rights", vec![layer()]));
    assert_gives_no_rights(&fixture.mount.path(&image), "the mount");
    for engine in support::engines::ALL {
        for upper in ["dir", "tmpfs:32M", "none"] {
            let create = ["root", "create", &image, "--engine", engine, "--upper", upper, "--id", "it"];
            let root = PathBuf::from(fixture.program.ok(&create));
            assert_gives_no_rights(&root, &format!("a root of {engine}, upper {upper}"));
            if upper != "none" {
                // Nor after a copy-up with all attributes.
                for name in ["set-user", "set-group", "capable", "linked"] {
                    run("touch", &["-d", "@7", root.join("bin").join(name).to_str().unwrap()]);
                }
                assert_gives_no_rights(&root, &format!("a root of {engine}, upper {upper}, copied up"));
                // Nor do set-id bits that root sets inside the root.
                let made = root.join("bin/plain");
                fs::set_permissions(&made, fs::Permissions::from_mode(0o6755)).unwrap();
                assert_eq!(run_unprivileged(&root, "plain"), NO_RIGHTS, "{engine}, {upper}");
            }
            fixture.program.ok(&["root", "remove", "it"]);
        }
    }
    // A plain copy stands on a disk of the host, which is not mounted nosuid.
    let copy = fixture.program.dir().join("copy");
    fixture.program.ok(&["unpack", &image, copy.to_str().unwrap()]);
    for name in ["plain", "set-user", "set-group", "capable", "linked"] {
        assert_eq!(run_unprivileged(&copy, name), NO_RIGHTS, "{name} in a copy");
    }
    // Control: with the option, each of them does give rights.
    let copy = fixture.program.dir().join("exact");
    fixture.program.ok(&["unpack", "--preserve-setuid", &image, copy.to_str().unwrap()]);
    assert_eq!(run_unprivileged(&copy, "plain"), NO_RIGHTS);
    assert_eq!(run_unprivileged(&copy, "set-user").split(' ').next(), Some("0"));
    assert_eq!(run_unprivileged(&copy, "set-group").split(' ').nth(1), Some("0"));
    assert_eq!(run_unprivileged(&copy, "capable"), "12345 12345 0000000000000082");
    assert!(fs::File::open(copy.join("nodes/null")).is_ok());
    fixture.finish();
}
