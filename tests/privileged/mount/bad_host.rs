//! A full disk, a store without permission, a mountpoint that is none, a second daemon: clear errors, nothing half done.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use support::child::wait_until;
use support::docker_registry::DockerRegistry;
use support::images::{Images, run};
use support::program::{Program, failure, is_mounted};
use support::scene::{Scene, Tmpfs};

#[test]
fn full_disk_is_told_before_the_download_and_again_when_there_is_room_all_is_well() {
    let images = Images::make(&["python", "small"]);
    let registry = DockerRegistry::start();
    registry.push_from(&images.layout(), "python", "lab/large:1");
    registry.push_from(&images.layout(), "small", "lab/good:1");
    let disk = Tmpfs::new("20m");
    let program = Program::with_store(&disk.path().join("store"));
    let good = program.pull(&registry.reference("lab/good:1"));
    let mark = registry.mark();
    let error = program.fails(&["pull", &registry.reference("lab/large:1")]);
    assert!(error.contains("lab/large:1") && error.contains(disk.path().to_str().unwrap()), "{error}");
    let layers = images.layout().layers("python");
    let begun: Vec<_> = registry.downloads(mark).into_iter().filter(|one| layers.contains(&one.0)).collect();
    assert_eq!(begun, [], "nothing need be downloaded to see that it does not fit");
    let mount = program.mount();
    assert_eq!(fs::read_to_string(mount.path(&good).join("etc/motd")).unwrap(), "a small image\n");
    mount.stop();
    run("mount", &["-o", "remount,size=400m", disk.path().to_str().unwrap()]);
    program.pull(&registry.reference("lab/large:1"));
}

#[test]
fn disk_that_fills_midway_is_an_error_and_the_store_stays_sound() {
    let images = Images::make(&["python"]);
    let registry = DockerRegistry::start();
    registry.push_from(&images.layout(), "python", "lab/large:1");
    let layout = images.layout();
    let total: u64 =
        layout.layers("python").iter().map(|one| fs::metadata(layout.blob(one)).unwrap().len()).sum();
    // Room for the blobs and a little; what is derived from them, or a file of another program, takes that little.
    let disk = Tmpfs::new(&format!("{}k", total / 1024 + 4096));
    let program = Program::with_store(&disk.path().join("store"));
    let filler = disk.path().join("filler");
    let mut pull = program.command(&["pull", &registry.reference("lab/large:1")]);
    let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the download has begun", || program.store().join("rcx-imagefs/partial").exists());
    // Takes all that is left; an error is the aim.
    let _ = io::copy(&mut io::repeat(0), &mut File::create(&filler).unwrap());
    let output = pull.wait_with_output().unwrap();
    let error = failure(&output, &["pull"]);
    assert!(error.contains("lab/large:1"), "{error}");
    assert!(error.contains("No space left") || error.contains("space"), "{error}");
    fs::remove_file(&filler).unwrap();
    assert_eq!(program.ok(&["images"]).matches("lab/large").count(), 0);
    run("mount", &["-o", "remount,size=400m", disk.path().to_str().unwrap()]);
    program.pull(&registry.reference("lab/large:1"));
    program.ok(&["verify"]);
}

#[test]
fn store_without_permission_is_named() {
    let images = Images::make(&["small"]);
    let registry = DockerRegistry::start();
    registry.push_from(&images.layout(), "small", "lab/good:1");
    let program = Program::new();
    fs::create_dir(program.store()).unwrap();
    fs::set_permissions(program.store(), fs::Permissions::from_mode(0o700)).unwrap();
    // The build directory may be closed to others.
    let binary = program.dir().join("program");
    fs::copy(env!("CARGO_BIN_EXE_rcx-imagefs"), &binary).unwrap();
    for arguments in [vec!["pull", &registry.reference("lab/good:1")], vec!["images"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary);
        program.set_up(&mut command);
        let error = failure(&command.args(&arguments).output().unwrap(), &arguments);
        assert!(error.contains(program.store().to_str().unwrap()), "{error}");
        assert!(error.to_lowercase().contains("permission denied"), "{error}");
    }
    assert_eq!(fs::read_dir(program.store()).unwrap().count(), 0);
}

#[test]
fn mountpoint_that_is_missing_a_file_busy_or_not_empty_is_named() {
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
fn second_daemon_of_a_store_is_refused_and_the_first_goes_on() {
    let scene = Scene::new();
    let other = scene.program.dir().join("other");
    fs::create_dir(&other).unwrap();
    let error = scene.program.fails(&["mount", other.to_str().unwrap()]);
    assert!(error.contains(scene.program.store().to_str().unwrap()), "{error}");
    assert!(!is_mounted(&other));
    scene.is_untouched();
}
