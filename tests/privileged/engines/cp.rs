//! `cp` of a whole image equals `unpack`, as a directory and as a tar.

use std::fs;
use std::process::Stdio;

use support::fixture::Fixture;
use support::trees;

#[test]
fn copied_and_extracted_image_equals_the_unpacked_one() {
    let fixture = Fixture::new(&["app"]);
    let (program, name) = (&fixture.program, fixture.pull("app"));
    let [unpacked, copied, extracted] =
        ["unpacked", "copied", "extracted"].map(|name| program.dir().join(name));
    program.ok(&["unpack", "--preserve-setuid", &name, unpacked.to_str().unwrap()]);
    let whole = format!("{name}:/");
    program.ok(&["cp", "--archive", "--preserve-setuid", &whole, copied.to_str().unwrap()]);
    trees::assert_equal(&copied, &unpacked, 8_000);

    fs::create_dir(&extracted).unwrap();
    let mut cp = program
        .command(&["cp", "--archive", "--preserve-setuid", &whole, "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.args(["--extract", "--preserve-permissions", "--numeric-owner", "--same-owner", "--xattrs"]);
    tar.args(["--xattrs-include=*", "--directory"]).arg(&extracted).stdin(cp.stdout.take().unwrap());
    assert!(tar.status().unwrap().success());
    assert!(cp.wait().unwrap().success());
    trees::assert_equal(&extracted, &unpacked, 8_000);
}
