//! A damaged store: missing or changed blobs, manifests and indexes give errors, never wrong bytes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rcx_imagefs::store::Store;
use support::child::wait_until;
use support::fixture::MountedFixture;
use support::images::Images;
use support::old_index::OldLayer;
use support::program::Program;
use support::trees;

/// Mounts a store with a pulled image that nothing has read yet.
fn mount_unread_image() -> (MountedFixture, String, Vec<String>) {
    let fixture = MountedFixture::new();
    let images = Images::make(&["python"]);
    fixture.registry.push_from(&images.layout(), "python", "lab/python:1");
    let pulled = fixture.program.pull(&fixture.reference("lab/python:1"));
    let layers = images.layout().layers("python");
    (fixture, pulled, layers)
}

/// Asserts that `verify` exits with 2 and names the damaged blob.
#[track_caller]
fn assert_verify_finds(program: &Program, arguments: &[&str], digest: &str) {
    let output = program.run(arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(digest), "{output:?}");
}

#[track_caller]
fn assert_absent_or_eio(path: &Path) {
    match fs::read_dir(path) {
        Err(error) => assert!(
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EIO),
            "{}: {error}",
            path.display()
        ),
        Ok(_) => panic!("{} shows as a directory", path.display()),
    }
}

#[test]
fn image_with_a_missing_layer_blob_is_an_error_and_the_log_names_the_blob() {
    let (fixture, pulled, layers) = mount_unread_image();
    fs::remove_file(fixture.program.blob(&layers[1])).unwrap();
    assert_absent_or_eio(&fixture.mount.path(&pulled));
    assert!(fixture.mount.log().contains(&layers[1]), "{}", fixture.mount.log());
    assert_verify_finds(&fixture.program, &["verify"], &layers[1]);
    let motd = fixture.mount.path(&fixture.good).join("etc/motd");
    assert_eq!(fs::read_to_string(motd).unwrap(), "a small image\n");
    // A new pull repairs the image without a remount.
    assert_eq!(fixture.program.pull(&fixture.reference("lab/python:1")), pulled);
    assert!(fixture.mount.path(&pulled).join("usr/bin/python3.11").exists());
}

#[test]
fn image_with_a_missing_manifest_is_an_error() {
    let (fixture, pulled, _) = mount_unread_image();
    let (_, digest) = pulled.split_once('@').unwrap();
    fs::remove_file(fixture.program.blob(digest)).unwrap();
    assert_absent_or_eio(&fixture.mount.path(&pulled));
    assert!(fixture.mount.log().contains(digest), "{}", fixture.mount.log());
}

/// The index files of a store.
fn index_files(program: &Program) -> Vec<PathBuf> {
    let dir = program.store().join("rcx-imagefs/indexes");
    let found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty(), "the store has no indexes");
    found
}

#[test]
fn missing_and_damaged_indexes_are_rebuilt_and_logged() {
    let (fixture, pulled, layers) = mount_unread_image();
    for (number, path) in index_files(&fixture.program).iter().enumerate() {
        if number % 2 == 0 {
            fs::remove_file(path).unwrap();
        } else {
            let file = File::options().read(true).write(true).open(path).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, middle).unwrap();
            file.write_all_at(&[!byte[0]], middle).unwrap();
        }
    }
    let version = fixture.mount.path(&pulled).join("usr/bin/python3.11");
    assert!(fs::read(version).unwrap().starts_with(b"\x7fELF"));
    assert!(layers.iter().any(|layer| fixture.mount.log().contains(layer)), "{}", fixture.mount.log());
}

#[test]
fn flipped_byte_in_a_stored_blob_gives_eio_and_a_log_line_with_blob_and_span() {
    let (fixture, pulled, layers) = mount_unread_image();
    // Walks the tree before the damage, so that the names are cached and the content is not.
    let root = fixture.mount.path(&pulled);
    let files: Vec<_> = trees::paths(&root).into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
    let blob = fixture.program.blob(&layers[0]);
    let file = File::options().read(true).write(true).open(&blob).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], middle).unwrap();

    let images = Images::make(&["unpacked-python"]);
    let reference = images.unpacked("python");
    let mut damaged = 0;
    for path in &files {
        let expected = reference.join(path);
        if !fs::symlink_metadata(&expected).unwrap().is_file() {
            continue;
        }
        match fs::read(root.join(path)) {
            Ok(bytes) => assert!(bytes == fs::read(&expected).unwrap(), "{} has wrong bytes", path.display()),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}: {error}", path.display());
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "no read failed");
    assert!(damaged < files.len() / 2, "one flipped byte makes {damaged} files unreadable");
    let log = fixture.mount.log();
    let line = log.lines().find(|line| line.contains(&layers[0]) && line.contains("span"));
    assert!(line.is_some(), "{log}");
    assert_verify_finds(&fixture.program, &["verify", "--deep"], &layers[0]);
}

#[test]
fn daemon_rebuilds_outdated_indexes_while_images_are_read_with_the_old_ones() {
    let program = Program::new();
    let store = Store::open_or_create(program.store()).unwrap();
    let layers = [(OldLayer::gzip(), "lab/gzip:1"), (OldLayer::zstd(), "lab/zstd:1")];
    for (old, name) in &layers {
        old.add_to(&store, name);
    }
    let mount = program.mount();
    let content = |name: &str| fs::read(mount.path(name).join("etc/long")).unwrap();
    let before = content("lab/gzip:1");
    assert_eq!(before.len(), 40_000);
    wait_until("all indexes have the current version", || {
        layers.iter().all(|(old, _)| old.version_in(&store) == 3)
    });
    for (_, name) in &layers {
        assert!(content(name) == before, "{name}");
    }
}
