//! System calls on the mount: refused changes, directory listing, shared decodes, sparse files, readers of a hung daemon.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rcx_imagefs::daemon::{self, ControlRequest, ControlResponse};
use rcx_imagefs::image::{Descriptor, Digest, ManifestDigest, Name};
use rcx_imagefs::store::{DaemonInfo, Store};
use rustix::fs::{Mode, OFlags, SeekFrom, XattrFlags};

use support::child::{Server, wait_until};
use support::images::sha256;
use support::program::{Program, TestMount};
use support::trees::list;

const FILES: usize = 1000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The content of file `number` of [`load_image`].
fn content(number: usize) -> String {
    format!("file {number}\n")
}

/// Loads an image of one uncompressed layer: `many/` with a thousand small files, the script `program`, the sparse file `holes`.
fn load_image(program: &Program) -> String {
    let source = program.dir().join("source");
    fs::create_dir_all(source.join("many")).unwrap();
    for number in 0..FILES {
        fs::write(source.join(format!("many/file-{number:04}")), content(number)).unwrap();
    }
    let script = source.join("program");
    fs::write(&script, "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let holes = File::create(source.join("holes")).unwrap();
    holes.write_all_at(b"data", 1 << 20).unwrap();
    holes.set_len(3 << 20).unwrap();
    let layer = program.dir().join("layer.tar");
    let tar =
        Command::new("tar").arg("--sparse").arg("-C").arg(&source).arg("-cf").arg(&layer).arg(".").status();
    assert!(tar.unwrap().success());

    let layout = program.dir().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let (layer, layer_size) = put(&fs::read(&layer).unwrap());
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size,
        }],
    });
    let (manifest, manifest_size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest,
            "size": manifest_size,
            "annotations": { "org.opencontainers.image.ref.name": "1" },
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    program.ok(&["load", layout.to_str().unwrap(), "--name", "lab/made:1"])
}

fn load_and_mount() -> (Program, TestMount, String) {
    let program = Program::new();
    let name = load_image(&program);
    let mount = program.mount();
    (program, mount, name)
}

fn daemon_of(program: &Program) -> DaemonInfo {
    Store::open(program.store()).unwrap().running_daemon().unwrap().expect("a daemon is running")
}

fn status(program: &Program) -> daemon::DaemonStatus {
    match daemon::ask(&daemon_of(program).socket, ControlRequest::Status, Duration::from_secs(30)) {
        Ok(ControlResponse::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_read_only<T>(result: rustix::io::Result<T>) {
    assert_eq!(result.err(), Some(rustix::io::Errno::ROFS));
}

#[test]
fn every_change_fails_with_erofs() {
    let (_program, mount, name) = load_and_mount();
    let root = mount.path(&name);
    let file = root.join("program");
    for directory in [mount.dir(), &root, &root.join("many")] {
        let new = directory.join("new");
        assert_read_only(rustix::fs::mkdir(&new, Mode::RWXU));
        assert_read_only(rustix::fs::symlink("target", &new));
        assert_read_only(rustix::fs::rename(&file, &new));
        assert_read_only(rustix::fs::open(&new, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR));
        assert_read_only(rustix::fs::mkfifoat(rustix::fs::CWD, &new, Mode::RUSR));
    }
    assert_read_only(rustix::fs::unlink(&file));
    assert_read_only(rustix::fs::rmdir(root.join("many")));
    assert_read_only(rustix::fs::link(&file, root.join("hardlink")));
    assert_read_only(rustix::fs::open(&file, OFlags::RDWR, Mode::empty()));
    assert_read_only(rustix::fs::open(&file, OFlags::WRONLY | OFlags::TRUNC, Mode::empty()));
    assert_read_only(rustix::fs::chmod(&file, Mode::RWXU));
    assert_read_only(rustix::fs::chown(&file, Some(rustix::fs::Uid::from_raw(1)), None));
    assert_read_only(rustix::fs::setxattr(&file, "user.new", b"1", XattrFlags::empty()));
    assert_read_only(rustix::fs::removexattr(&file, "user.new"));
    mount.stop();
}

#[test]
fn directory_can_be_listed_with_tiny_buffers_and_from_every_offset() {
    let (_program, mount, name) = load_and_mount();
    let path = mount.path(&name).join("many");
    // One buffer holds a single name, the other all of them.
    let small = list(&File::open(&path).unwrap(), 48);
    let large = list(&File::open(&path).unwrap(), 1 << 20);
    assert_eq!(small, large);
    assert_eq!(small.len(), FILES + 2);
    assert_eq!((&*small[0].0, &*small[1].0), (".", ".."));
    assert_eq!(small.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), FILES + 2);
    let dir = File::open(&path).unwrap();
    for at in [1, 2, 3, 500, 999, 1001] {
        rustix::fs::seek(&dir, SeekFrom::Start(small[at].1)).unwrap();
        assert_eq!(list(&dir, 4096), small[at + 1..], "after entry {at}");
    }
    mount.stop();
}

#[test]
fn listing_the_mount_opens_no_image() {
    let (program, mount, name) = load_and_mount();
    let (path, digest_name) =
        name.rsplit_once('/').map_or((String::new(), name.as_str()), |(path, last)| (path.to_owned(), last));
    let names: Vec<_> = fs::read_dir(mount.path(&path)).unwrap().map(Result::unwrap).collect();
    let image = names.iter().find(|entry| entry.file_name() == digest_name).expect("the image is listed");
    assert!(image.file_type().unwrap().is_dir());
    assert_eq!(status(&program).filesystem.open, []);
    // The listed inode number is the inode number of the image.
    assert_eq!(rustix::fs::stat(image.path()).unwrap().st_ino, std::os::unix::fs::DirEntryExt::ino(image));
    assert_eq!(status(&program).filesystem.open.len(), 1);
    mount.stop();
}

#[test]
fn two_hundred_readers_of_one_uncached_span_cause_one_decode() {
    let (program, mount, name) = load_and_mount();
    let many = mount.path(&name).join("many");
    assert_eq!(fs::read_dir(&many).unwrap().count(), FILES);
    // No two files share a page, so each reader sends a request to the daemon.
    let before = status(&program).filesystem.cache;
    let start = Barrier::new(200);
    thread::scope(|scope| {
        for number in 0..200 {
            let (many, start) = (&many, &start);
            scope.spawn(move || {
                start.wait();
                let read = fs::read_to_string(many.join(format!("file-{number:04}"))).unwrap();
                assert_eq!(read, content(number));
            });
        }
    });
    let after = status(&program);
    assert_eq!(before.decodes, 0);
    let spans = after.filesystem.cache.spans;
    assert_eq!(after.filesystem.cache.decodes, spans, "no span is decoded twice");
    assert!(spans <= 4, "200 files of one block each should lie in at most 4 spans, not {spans}");
    assert!(after.requests["READ"] >= 200);
    mount.stop();
}

#[test]
fn seek_hole_sendfile_and_exec_work_on_the_mount() {
    let (program, mount, name) = load_and_mount();
    let root = mount.path(&name);
    let holes = File::open(root.join("holes")).unwrap();
    let data = rustix::fs::seek(&holes, SeekFrom::Data(0)).unwrap();
    assert!(data > 0 && data <= 1 << 20, "{data}");
    assert_eq!(rustix::fs::seek(&holes, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(rustix::fs::seek(&holes, SeekFrom::Data(2 << 20)), Err(rustix::io::Errno::NXIO));
    assert_eq!(holes.metadata().unwrap().len(), 3 << 20);
    assert!(holes.metadata().unwrap().blocks() < 1000);
    // `io::copy` copies in the kernel, by copy_file_range or sendfile.
    let copy = program.dir().join("copy");
    io::copy(&mut File::open(root.join("holes")).unwrap(), &mut File::create(&copy).unwrap()).unwrap();
    let mut bytes = Vec::new();
    File::open(&copy).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(&bytes[1 << 20..(1 << 20) + 4], b"data");
    assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 4);
    let output = Command::new(root.join("program")).output().unwrap();
    assert_eq!(output.stdout, b"ran\n");
    mount.stop();
}

#[test]
fn moved_tag_is_visible_to_concurrent_readers_once_the_daemon_confirms_it() {
    let program = Program::new();
    let store = Store::open_or_create(program.store()).unwrap();
    let mount = program.mount();
    let socket = daemon_of(&program).socket;
    let name: Name = Name::from_archive("lab/moving").unwrap();
    let digests = [0, 1].map(|number| ManifestDigest::new(Digest::of(&[number])));
    let lab = mount.path("lab");
    let tag = lab.join("moving:1");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // These readers keep the name in the caches of the kernel. Their results do not matter.
                while !done.load(Ordering::Relaxed) {
                    let _ = fs::read_link(&tag);
                    let _ = fs::read_dir(&lab).map(Iterator::count);
                    let _ = fs::symlink_metadata(lab.join("moving-1"));
                }
            });
        }
        let _lease = store.lease(None).unwrap();
        for round in 0..100 {
            let digest = digests[round % 2];
            let manifest = Descriptor::new(MANIFEST, digest.digest(), 1);
            store.tag(&name, Some(&"1".parse().unwrap()), &manifest, None).unwrap();
            let answer = daemon::ask(&socket, ControlRequest::Refresh, Duration::from_secs(30));
            assert_eq!(answer.unwrap(), ControlResponse::Refreshed);
            let target = fs::read_link(&tag).unwrap();
            assert_eq!(target.to_str().unwrap(), format!("moving@{digest}"), "round {round}");
            assert_eq!(fs::read_link(lab.join("moving-1")).unwrap(), Path::new("moving:1"));
            assert!(fs::read_dir(&lab).unwrap().count() >= 2);
        }
        done.store(true, Ordering::Relaxed);
    });
    mount.stop();
}

#[test]
fn reader_of_a_hung_daemon_can_be_killed() {
    let (_program, mut mount, name) = load_and_mount();
    let file = mount.path(&name).join("many/file-0000");
    assert!(file.exists());
    mount.server().signal("STOP");
    let mut reader = Command::new("cat").arg(&file).stdout(Stdio::null()).spawn().unwrap();
    // State S: the reader sleeps until it gets an answer or a signal (proc_pid_stat(5)).
    let stat = format!("/proc/{}/stat", reader.id());
    wait_until("the reader waits for the daemon", || fs::read_to_string(&stat).unwrap().contains("(cat) S "));
    reader.kill().unwrap();
    wait_until("the reader is gone", || reader.try_wait().unwrap().is_some());
    mount.server().signal("CONT");
    assert_eq!(fs::read_to_string(&file).unwrap(), content(0));
    mount.stop();
}

#[test]
fn readahead_option_sets_the_readahead_of_the_kernel() {
    let program = Program::new();
    load_image(&program);
    let dir = program.dir().join("images");
    fs::create_dir(&dir).unwrap();
    let arguments = ["mount", "--read-ahead", "1024", dir.to_str().unwrap()];
    let mut server = Server::start(&program.command(&arguments), &program.dir().join("daemon.log"));
    server.line().unwrap();
    let device = fs::metadata(&dir).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let set = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(set.trim(), "1024");
}
