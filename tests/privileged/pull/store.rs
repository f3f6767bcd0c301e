//! The store on full and read-only filesystems, and for a user with read permission only.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, Name, media};
use rcx_imagefs::store::{DaemonInfo, Store, StoreError};
use support::tmpfs::Tmpfs;

/// The path of the store on the filesystem of a test.
fn store_on(disk: &Tmpfs) -> PathBuf {
    disk.path().join("store")
}

fn name() -> Name {
    Name::from_archive("python").unwrap()
}

fn put_image(store: &Store) -> Descriptor {
    let bytes = br#"{"schemaVersion":2}"#;
    let manifest = Descriptor::new(media::OCI_MANIFEST, Digest::of(bytes), bytes.len() as u64);
    store.put_small(&manifest.digest, bytes).unwrap();
    store.tag(&name(), Some(&"3".parse().unwrap()), &manifest, None).unwrap();
    manifest
}

fn count_entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn full_disk_is_reported_and_leaves_the_store_unchanged() {
    let disk = Tmpfs::with_options("size=2m");
    let store = Store::open_or_create(&store_on(&disk)).unwrap();
    let manifest = put_image(&store);
    let before = fs::read(store.index_json_path()).unwrap();
    assert!(matches!(store.require_space(4 << 20), Err(StoreError::NoSpace { free, .. }) if free < 2 << 20));

    let layer = vec![1; 4 << 20];
    let digest = Digest::of(&layer);
    let lock = store.lock_blob(&digest, None).unwrap();
    let mut partial = store.partial(&lock).unwrap();
    let error = StoreError::from_write(&store_on(&disk), partial.write_all(&layer).unwrap_err());
    let StoreError::DiskFull { path, .. } = &error else { panic!("{error:?}") };
    assert!(path.ends_with(Path::new("partial").join(digest.hex())), "{error}");
    assert!(partial.len() > 0);

    // All other writes fail too and leave no trace.
    let blobs = count_entries(&store_on(&disk).join("blobs/sha256"));
    for error in [
        store.put_small(&digest, &layer).unwrap_err(),
        store.put_index(&LayerDigest::new(digest), &layer).unwrap_err(),
        store.tag(&name(), Some(&"4".parse().unwrap()), &manifest, None).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    }
    assert_eq!(fs::read(store.index_json_path()).unwrap(), before);
    assert_eq!(count_entries(&store_on(&disk).join("blobs/sha256")), blobs);
    assert_eq!(count_entries(&store_on(&disk).join("rcx-imagefs/tmp")), 0);

    partial.restart().unwrap();
    store.tag(&name(), Some(&"4".parse().unwrap()), &manifest, None).unwrap();
    assert_eq!(Store::open(&store_on(&disk)).unwrap().refs().unwrap().images[0].tags.len(), 2);
}

#[test]
fn images_can_be_removed_from_a_full_disk() {
    let disk = Tmpfs::with_options("size=2m");
    let store = Store::open_or_create(&store_on(&disk)).unwrap();
    let manifest = put_image(&store);
    for number in 0..200 {
        let tag = format!("tag-{number}").parse().unwrap();
        store.tag(&name(), Some(&tag), &manifest, None).unwrap();
    }
    let mut ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    // The same twice: the first removal frees enough for the reserve of the second.
    for tag in ["tag-7", "tag-8"] {
        let removed = store.untag(&name(), &tag.parse().unwrap(), false).unwrap();
        assert_eq!(removed.unwrap().digest.digest(), manifest.digest);
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }
    let digest = rcx_imagefs::image::ManifestDigest::from(&manifest);
    assert!(store.remove_image(&name(), digest).unwrap());
    assert!(store.refs().unwrap().images.is_empty());
    let freed = store.gc(false).unwrap();
    assert_eq!(freed.blobs, 1, "gc needs no space either");
}

#[test]
fn slots_survive_a_full_disk() {
    let disk = Tmpfs::with_options("size=1m");
    let store = Store::open_or_create(&store_on(&disk)).unwrap();
    let layer = |i: u32| LayerDigest::new(Digest::of(&i.to_le_bytes()));
    let first = store.layer_slot(&layer(0)).unwrap();
    let mut ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    // The first slots may still fit into the last page.
    let error = (1..100).find_map(|i| store.layer_slot(&layer(i)).err()).unwrap();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    drop(ballast);
    fs::remove_file(disk.path().join("ballast")).unwrap();
    let last = store.layer_slot(&layer(1000)).unwrap();
    let again = Store::open(&store_on(&disk)).unwrap();
    assert_eq!(again.layer_of(first).unwrap(), Some(layer(0)));
    assert_eq!(again.layer_of(last).unwrap(), Some(layer(1000)));
    assert_eq!(again.layer_slot(&layer(1000)).unwrap(), last);
}

#[test]
fn read_only_store_can_be_read() {
    let disk = Tmpfs::with_options("size=2m");
    let manifest = put_image(&Store::open_or_create(&store_on(&disk)).unwrap());
    disk.remount("ro");
    let store = Store::open(&store_on(&disk)).unwrap();
    assert_eq!(store.refs().unwrap().images[0].digest.digest(), manifest.digest);
    store.verify_blob(&manifest.digest, |_| ()).unwrap();
    assert_eq!(store.running_daemon().unwrap(), None);
    let digest = Digest::of(b"new");
    for error in [
        store.put_small(&digest, b"new").unwrap_err(),
        store.lock_blob(&digest, None).unwrap_err(),
        store.untag(&name(), &"3".parse().unwrap(), true).unwrap_err(),
        Store::open_or_create(&disk.path().join("other")).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
        assert!(error.to_string().contains(disk.path().to_str().unwrap()), "{error}");
    }
}

/// Lets all users read the store, as its owner may do for a group.
fn share(store: &Store) {
    fs::set_permissions(store.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn user_without_write_permission_can_read_and_gets_clear_errors_for_writes() {
    let disk = Tmpfs::with_options("size=2m,mode=0755");
    // Directories made by `tempfile` are private.
    fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let store = Store::open_or_create(&store_on(&disk)).unwrap();
    let manifest = put_image(&store);
    share(&store);
    let info = DaemonInfo { pid: 1, socket: "/run/x".into(), mountpoint: "/images".into(), layers: None };
    let _daemon = store.lock_daemon(&info).unwrap();
    let path = store_on(&disk);
    // Only this thread changes its user.
    let errors = std::thread::spawn(move || {
        let nobody = rustix::thread::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.refs().unwrap().images[0].digest.digest(), manifest.digest);
        assert_eq!(store.running_daemon().unwrap(), Some(info));
        [
            Store::open_or_create(&path).unwrap_err(),
            store.put_small(&Digest::of(b"new"), b"new").unwrap_err(),
            store.lease(None).unwrap_err(),
            store.untag(&name(), &"3".parse().unwrap(), true).unwrap_err(),
        ]
    })
    .join()
    .unwrap();
    for error in errors {
        assert!(matches!(error, StoreError::Permission { .. } | StoreError::Private { .. }), "{error:?}");
        assert!(error.to_string().contains(store_on(&disk).to_str().unwrap()), "{error}");
    }
}

/// Each lock that a user can take, in each way.
#[test]
fn locks_of_another_user_neither_look_like_a_daemon_nor_keep_one_from_starting() {
    use rustix::fs::FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared};
    for operation in [NonBlockingLockShared, NonBlockingLockExclusive] {
        let disk = Tmpfs::with_options("size=2m,mode=0755");
        fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let store = Store::open_or_create(&store_on(&disk)).unwrap();
        put_image(&store);
        share(&store);
        let info = DaemonInfo {
            pid: std::process::id(),
            socket: "/run/x".into(),
            mountpoint: "/images".into(),
            layers: None,
        };
        // The files exist, as after any daemon.
        drop(store.lock_daemon(&info).unwrap());
        let top = store_on(&disk).join("rcx-imagefs");
        let files = [top.join("daemon"), top.join("locks/daemon"), top.join("version"), top];
        // Only this thread changes its user.
        let held = std::thread::spawn(move || {
            let nobody = rustix::thread::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let opened: Vec<fs::File> = files.iter().filter_map(|path| fs::File::open(path).ok()).collect();
            opened.iter().for_each(|file| rustix::fs::flock(file, operation).unwrap());
            opened
        });
        let held = held.join().unwrap();
        assert_eq!(store.running_daemon().unwrap(), None);
        let lock = store.lock_daemon(&info).unwrap();
        assert_eq!(store.running_daemon().unwrap(), Some(info));
        drop((held, lock));
    }
}
