//! A full disk, missing permissions, an unusable mountpoint or a second daemon give clear errors and leave no partial work.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use support::child::wait_until;
use support::fixture::{Fixture, MountedFixture};
use support::images::Images;
use support::program::{Program, binary, failure, is_mounted};
use support::tmpfs::Tmpfs;

#[test]
fn pull_without_enough_space_fails_before_the_download_and_succeeds_once_there_is_space() {
    let disk = Tmpfs::new("20m");
    let fixture =
        Fixture::with_program(&["python", "small"], Program::with_store(&disk.path().join("store")));
    let (program, registry) = (&fixture.program, &fixture.registry);
    let small = fixture.pull("small");
    let mark = registry.mark();
    let error = program.fails(&["pull", &fixture.reference("python")]);
    assert!(error.contains("lab/python:1") && error.contains(disk.path().to_str().unwrap()), "{error}");
    let layers = fixture.images.layout().layers("python");
    let started: Vec<_> =
        registry.downloads(mark).into_iter().filter(|(digest, ..)| layers.contains(digest)).collect();
    assert_eq!(started, [], "the pull must not start a download that cannot fit");
    let mount = program.mount();
    assert_eq!(fs::read_to_string(mount.path(&small).join("etc/motd")).unwrap(), "a small image\n");
    mount.stop();
    disk.remount("size=400m");
    fixture.pull("python");
}

#[test]
fn disk_that_fills_up_during_a_pull_is_an_error_and_leaves_the_store_intact() {
    let images = Images::make(&["python"]);
    // Space for the blobs and 4 MiB more, which the indexes or the file of another program will use up.
    let disk = Tmpfs::new(&format!("{}k", images.layout().layer_bytes("python") / 1024 + 4096));
    let fixture = Fixture::with_program(&["python"], Program::with_store(&disk.path().join("store")));
    let program = &fixture.program;
    let filler = disk.path().join("filler");
    let mut pull = program.command(&["pull", &fixture.reference("python")]);
    let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the download has begun", || program.store().join("rcx-imagefs/partial").exists());
    // Fills the disk. The final error is expected.
    let _ = io::copy(&mut io::repeat(0), &mut File::create(&filler).unwrap());
    let output = pull.wait_with_output().unwrap();
    let error = failure(&output, &["pull"]);
    assert!(error.contains("lab/python:1"), "{error}");
    assert!(error.contains("No space left") || error.contains("space"), "{error}");
    fs::remove_file(&filler).unwrap();
    assert_eq!(program.ok(&["images"]).matches("lab/python").count(), 0);
    disk.remount("size=400m");
    fixture.pull("python");
    program.ok(&["verify"]);
}

#[test]
fn permission_error_names_the_store() {
    let fixture = Fixture::new(&["small"]);
    let program = &fixture.program;
    fs::create_dir(program.store()).unwrap();
    fs::set_permissions(program.store(), fs::Permissions::from_mode(0o700)).unwrap();
    // Other users may have no access to the build directory.
    let copy = program.dir().join("program");
    fs::copy(binary("rcx-imagefs"), &copy).unwrap();
    for arguments in [vec!["pull", &fixture.reference("small")], vec!["images"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&copy);
        program.set_up(&mut command);
        let error = failure(&command.args(&arguments).output().unwrap(), &arguments);
        assert!(error.contains(program.store().to_str().unwrap()), "{error}");
        assert!(error.to_lowercase().contains("permission denied"), "{error}");
    }
    assert_eq!(fs::read_dir(program.store()).unwrap().count(), 0);
}

#[test]
fn unusable_mountpoint_is_an_error_that_names_it_and_the_reason() {
    let program = Program::new();
    let missing = program.dir().join("missing");
    let file = program.dir().join("file");
    fs::write(&file, "x").unwrap();
    let full = program.dir().join("full");
    fs::create_dir_all(full.join("something")).unwrap();
    let tmpfs = Tmpfs::new("1m");
    for at in [missing.as_path(), &file, &full, tmpfs.path()] {
        let path = at.to_str().unwrap();
        let error = program.fails(&["mount", path]);
        assert!(error.contains(path), "{error}");
    }
    assert!(!missing.exists());
    assert!(full.join("something").exists() && !is_mounted(&full));
}

#[test]
fn second_daemon_for_a_store_is_refused_and_the_first_keeps_serving() {
    let fixture = MountedFixture::new();
    let other = fixture.program.dir().join("other");
    fs::create_dir(&other).unwrap();
    let error = fixture.program.fails(&["mount", other.to_str().unwrap()]);
    assert!(error.contains(fixture.program.store().to_str().unwrap()), "{error}");
    assert!(!is_mounted(&other));
    fixture.assert_unaffected();
}
