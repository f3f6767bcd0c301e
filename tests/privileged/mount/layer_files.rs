//! The mount of the layer files: bytes, rights, its life, and EROFS mounts over its files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcx_imagefs::daemon::{ControlRequest, ControlResponse, ask};
use rcx_imagefs::erofs::{LayerDevice, write_plain};
use rcx_imagefs::error::ErrorCode;
use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource};
use rcx_imagefs::fuse::{self, LazyReads, ReadAccounts, ReadFailureReport, ReaderQuery};
use rcx_imagefs::image::{Digest, ManifestDigest};
use rcx_imagefs::pipeline::open_image;
use rcx_imagefs::roots::enter_private_namespace;
use rcx_imagefs::store::Store;
use support::child::wait_until;
use support::disk;
use support::engine_dump::TreeMount;
use support::fixture::Fixture;
use support::images::run;
use support::program::{Program, TestMount, is_mounted};
use support::text::{image, layer_of, layers, load};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(5);
const CONTENT: &str = "content-that-will-be-damaged";

fn opened(program: &Program, name: &str) -> rcx_imagefs::pipeline::OpenImage {
    let store = Store::open(program.store()).unwrap();
    let (_, digest) = name.split_once('@').unwrap();
    open_image(&store, ManifestDigest::new(digest.parse().unwrap()), |_| None).unwrap()
}

/// Checks that each layer of an image has the bytes of the plain layer in the mount. Returns the number of bytes.
#[track_caller]
fn assert_plain_bytes(mount: &TestMount, program: &Program, name: &str) -> u64 {
    let mut total = 0;
    for layer in opened(program, name).layers {
        let mut plain = tempfile::tempfile().unwrap();
        let device = LayerDevice::of(layer.index());
        write_plain(&layer, &device, &plain).unwrap();
        let path = mount.layers().join(layer.index().layer().digest().hex());
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.mode(), metadata.uid()), (device.size(), 0o100_400, 0));
        io::Seek::rewind(&mut plain).unwrap();
        let (mut ours, mut at) = (File::open(&path).unwrap(), 0);
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        while at < device.size() {
            let len = usize::try_from((device.size() - at).min(1 << 20)).unwrap();
            io::Read::read_exact(&mut ours, &mut one[..len]).unwrap();
            io::Read::read_exact(&mut plain, &mut other[..len]).unwrap();
            assert!(one[..len] == other[..len], "{} differs near {at}", path.display());
            at += len as u64;
        }
        assert_eq!(io::Read::read(&mut ours, &mut one).unwrap(), 0);
        total += device.size();
    }
    total
}

/// An image mounted as EROFS over the layer files of a daemon. The caller must be in a private mount namespace, like the daemon.
fn mount_tree(mount: &TestMount, program: &Program, name: &str) -> (TreeMount, TempDir) {
    let image = opened(program, name);
    let dir = tempfile::tempdir_in(program.dir()).unwrap();
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let mounted = TreeMount::over_layer_files(&image.tree, &layers, dir.path(), mount.layers());
    (mounted, dir)
}

#[test]
fn layer_files_have_the_bytes_of_the_plain_layers() {
    let images = ["small", "python", "app-zstd", "app-members", "sparse"];
    let fixture = Fixture::new(&images);
    let pulled = images.map(|image| fixture.pull(image));
    let mount = fixture.program.mount();
    let total: u64 = pulled.iter().map(|name| assert_plain_bytes(&mount, &fixture.program, name)).sum();
    assert!(total > 100 << 20, "{total} bytes");
    let status = fixture.program.json(&["status"]);
    assert_eq!(status["layer_files"]["mountpoint"].as_str(), mount.layers().to_str());
    let requests = &status["layer_files"]["requests"];
    assert!(requests["READ"].as_u64().unwrap() > 100 && requests["LOOKUP"].as_u64().unwrap() > 5, "{status}");
    assert_eq!(status["requests"]["READ"].as_u64(), None, "the mounts count their requests apart: {status}");
    mount.stop();
}

#[test]
fn image_over_lazy_layers_shows_the_tree_of_the_mount() {
    enter_private_namespace().expect("this test needs root");
    let fixture = Fixture::new(&["app-zstd", "sparse"]);
    let names = ["app-zstd", "sparse"].map(|image| fixture.pull(image));
    let mount = fixture.program.mount();
    for name in names {
        let expected = disk::dump(&mount.path(&name), i64::MAX).unwrap();
        let (tree, _dir) = mount_tree(&mount, &fixture.program, &name);
        let shown = disk::dump(tree.path(), i64::MAX).unwrap();
        assert!(shown.lines().count() > 10);
        assert!(shown == expected, "{name} differs");
    }
}

#[test]
fn only_root_reaches_layer_files() {
    let program = Program::new();
    let name = load(&program, &image("one", layers("f secret text mode=600")));
    let mount = program.mount();
    let layer = opened(&program, &name).layers[0].index().layer().digest().hex();
    let path = mount.layers().join(layer);
    assert!(fs::read(&path).unwrap().starts_with(b"secret"));
    let of = |path: &Path| fs::symlink_metadata(path).unwrap();
    let root = of(mount.layers());
    assert_eq!((root.mode(), root.uid(), root.gid()), (0o40_500, 0, 0));
    assert_eq!(fs::read_dir(mount.layers()).unwrap().count(), 0);
    for command in [&["cat"][..], &["ls", "-l"]] {
        for path in [&path, mount.layers()] {
            let mut user = Command::new("setpriv");
            user.args(["--reuid=4242", "--regid=4242", "--clear-groups", "--"]).args(command).arg(path);
            let output = user.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{command:?} {}", path.display());
            assert!(stderr.to_lowercase().contains("permission denied"), "{command:?}: {stderr}");
        }
    }
    let write = File::options().write(true).open(&path).unwrap_err();
    assert_eq!(write.kind(), io::ErrorKind::ReadOnlyFilesystem);
    mount.stop();
    assert_eq!(of(&program.dir().join("run/layers")).mode(), 0o40_700, "the mountpoint remains");
}

#[test]
fn stale_mount_of_a_killed_daemon_is_replaced_and_nothing_is_left() {
    enter_private_namespace().expect("this test needs root");
    let program = Program::new();
    let name = load(&program, &image("one", layers("f file text")));
    let mut first = program.mount();
    assert_plain_bytes(&first, &program, &name);
    let (tree, _dir) = mount_tree(&first, &program, &name);
    first.server().signal("KILL");
    first.server().wait();
    assert!(is_mounted(first.layers()));
    // Started in the same namespace, where the stale mounts are.
    let second = program.mount_at(first.dir()).unwrap();
    let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert_eq!(mountinfo.lines().filter(|line| line.contains(first.layers().to_str().unwrap())).count(), 1);
    assert_plain_bytes(&second, &program, &name);
    let lost = fs::read(tree.path().join("file")).unwrap_err();
    assert!(matches!(lost.raw_os_error(), Some(libc::EIO | libc::ENOTCONN)), "{lost}");
    second.stop();
}

#[test]
fn end_of_the_daemon_unmounts_the_layers_even_when_they_are_in_use() {
    enter_private_namespace().expect("this test needs root");
    let program = Program::new();
    let name = load(&program, &image("one", layers("f file text")));
    for by_hand in [false, true] {
        let mut mount = program.mount();
        let (tree, _dir) = mount_tree(&mount, &program, &name);
        assert_eq!(fs::read(tree.path().join("file")).unwrap(), b"text");
        if by_hand {
            run("umount", &[mount.dir().to_str().unwrap()]);
            let status = mount.server().wait();
            assert!(status.success(), "{status}: {}", mount.log());
            assert!(!is_mounted(mount.layers()));
        } else {
            mount.stop();
        }
    }
}

fn failures(socket: &Path) -> ReadFailureReport {
    report(socket, None)
}

fn report(socket: &Path, readers: Option<ReaderQuery>) -> ReadFailureReport {
    match ask(socket, ControlRequest::ReadFailures { since: 0, readers }, SOON) {
        Ok(ControlResponse::ReadFailures(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_of_a_lazy_layer_count_for_the_process_that_waited_and_its_parents() {
    enter_private_namespace().expect("this test needs root");
    let program = Program::new();
    let content = vec![b'x'; 300_000];
    let long = support::layers::Line::new(b"long", support::layers::EntryKind::File(content.clone()));
    let name = load(&program, &image("read", vec![layer_of(&[long])]));
    let mount = program.mount();
    let socket = program.dir().join("run/control.sock");
    let (tree, _dir) = mount_tree(&mount, &program, &name);
    let since = report(&socket, None).mark.reader;
    let reads_of = |process| report(&socket, Some(ReaderQuery { process, since })).reads.unwrap();
    // A shell that reads in a child.
    let read = || {
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat \"$1\" | cat", "sh"]).arg(tree.path().join("long"));
        let shell = shell.stdout(Stdio::piped()).spawn().unwrap();
        let pid = shell.id();
        assert!(shell.wait_with_output().unwrap().stdout == content);
        reads_of(pid)
    };
    let first = read();
    assert!((300_000..2_000_000).contains(&first.bytes) && first.wait_ms > 0, "{first:?}");
    assert_eq!(read(), LazyReads::default(), "the content is in the page cache");
    assert_eq!(reads_of(std::process::id()), first);
    let total = &program.json(&["status"])["reads"];
    assert!(
        total["bytes"].as_u64().unwrap() >= first.bytes && total["wait_ms"].as_u64().unwrap() > 0,
        "{total}"
    );
    drop(tree);
    mount.stop();
}

#[test]
fn failed_read_of_a_lazy_layer_is_charged_to_the_process_that_asked() {
    enter_private_namespace().expect("this test needs root");
    let program = Program::new();
    let layers = layers(&format!("f damaged {CONTENT}"));
    let (digest, tar) = (layers[0].digest, layers[0].bytes.clone());
    let name = load(&program, &image("damaged", layers));
    let mount = program.mount();
    let socket = program.dir().join("run/control.sock");
    let at = tar.windows(CONTENT.len()).position(|bytes| bytes == CONTENT.as_bytes()).unwrap();
    File::options()
        .write(true)
        .open(program.blob(&digest.to_string()))
        .unwrap()
        .write_all_at(b"X", at as u64)
        .unwrap();

    let (tree, _dir) = mount_tree(&mount, &program, &name);
    assert_eq!(failures(&socket).failures, []);
    let mut cat = Command::new("cat");
    let mut child =
        cat.arg(tree.path().join("damaged")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert!(!child.wait().unwrap().success());
    let report = failures(&socket);
    assert!(!report.failures.is_empty());
    for failure in &report.failures {
        assert_eq!(
            (failure.pid, failure.ancestors.first()),
            (pid, Some(&std::process::id())),
            "{failure:#?}"
        );
        let named = (failure.image.as_deref(), failure.layer.as_deref(), failure.blob.as_deref());
        let digest = digest.to_string();
        assert_eq!(named, (None, Some(&*digest), Some(&*digest)));
        assert_eq!(failure.code, ErrorCode::Damaged.as_str());
        assert!(failure.reason.starts_with(&format!("cannot read layer {digest}")), "{}", failure.reason);
    }
    assert!(program.json(&["status"])["errors"].as_u64().unwrap() > 0);
    drop(tree);
    mount.stop();
}

#[test]
fn layer_is_closed_when_the_kernel_has_forgotten_its_idle_file() {
    let program = Program::new();
    let name = load(&program, &image("one", layers("f file text")));
    let digest: Digest = opened(&program, &name).layers[0].index().layer().digest();
    enter_private_namespace().expect("this test needs root");
    let store = Store::open(program.store()).unwrap();
    let fs = ImageFs::new(ImageSource::new(store, None), &FsOptions::default());
    let files = Arc::new(fs.layer_files());
    let dir = tempfile::tempdir().unwrap();
    let mounted = fuse::mount(dir.path(), false).unwrap();
    let accounts = Arc::new(ReadAccounts::default());
    let threads = std::num::NonZeroUsize::MIN;
    let session = fuse::serve_layers(mounted.connection, Arc::clone(&files), threads, accounts).unwrap();
    let path = dir.path().join(digest.hex());
    let close_idle = || {
        // The first call finds that the file has been used.
        for _ in 0..2 {
            session.invalidator().invalidate_names(&files.idle_names());
        }
    };
    let held = File::open(&path).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"file"));
    close_idle();
    assert_eq!((files.known(), fs.status().layers), (1, 1), "the file is open");
    assert_eq!(File::open(&path).unwrap().metadata().unwrap().ino(), held.metadata().unwrap().ino());
    close_idle();
    drop(held);
    wait_until("the layer is closed", || (files.known(), fs.status().layers) == (0, 0));
    // Opens it again.
    assert!(fs::read(&path).unwrap().starts_with(b"file"));
    assert_eq!(files.known(), 1);
    mounted.mount.unmount().unwrap();
    session.join().unwrap();
}
