//! Roots on kernels that take the layers of an overlay only by mount(2): the same calls, made on this kernel.

use std::fs;
use std::path::{Path, PathBuf};

use rcx_imagefs::image::ManifestDigest;
use rcx_imagefs::roots::{
    HomesLocation, LayerDirectories, Lower, OverlayCalls, RootRemoval, Roots, Upper, enter_private_namespace,
};
use rcx_imagefs::store::Store;
use support::program::Program;
use support::text::{image, layers, load};

/// The layers that overlays have at most; further layers share a directory.
const LAYERS: usize = 250;

/// Loads an image whose layers each add a file, replace the file `top`, and hide the file `gone` of the layer below.
fn lower(program: &Program) -> Lower {
    let layer = |number: usize| match number {
        0 => "f top 0\nf gone 0\nf f0 0".to_owned(),
        number => format!("f top {number}\nw gone\nf f{number} {number}"),
    };
    let text: Vec<_> = (0..LAYERS).map(layer).collect();
    let name = load(program, &image("many", layers(&text.join("\n---\n"))));
    let digest: ManifestDigest = name.split_once('@').unwrap().1.parse().unwrap();
    let store = Store::open(program.store()).unwrap();
    let directories = LayerDirectories::open(&store).unwrap();
    directories.lower(&store, digest, &name, &|_, _| ()).unwrap()
}

/// Checks that all layers are there, in their order.
#[track_caller]
fn assert_complete(root: &Path) {
    for number in 0..LAYERS {
        assert_eq!(fs::read_to_string(root.join(format!("f{number}"))).unwrap(), number.to_string());
    }
    assert_eq!(fs::read_to_string(root.join("top")).unwrap(), (LAYERS - 1).to_string());
    assert!(!root.join("gone").exists());
    assert!(root.join("proc").is_dir(), "the skeleton is missing");
}

/// Whether a file can be made and removed in a directory.
fn is_writable(root: &Path) -> bool {
    let file = root.join("new");
    fs::write(&file, "new").is_ok()
        && fs::read_to_string(&file).unwrap() == "new"
        && fs::remove_file(&file).is_ok()
}

fn mounts_at(path: &Path) -> usize {
    let path = format!(" {} ", path.display());
    fs::read_to_string("/proc/thread-self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(&path))
        .count()
}

#[test]
fn roots_of_250_layers_work_with_the_mount_calls_of_every_kernel() {
    let program = Program::new();
    let lower = lower(&program);
    let run_dir = program.dir().join("run");
    // A relative path, to check that the working directory is restored.
    let before = std::env::current_dir().unwrap();
    for calls in [OverlayCalls::Legacy, OverlayCalls::Newest] {
        let homes = HomesLocation::Store(program.store().to_owned());
        let roots = Roots::open(&homes, &run_dir).unwrap().with_overlay_calls(calls);
        for upper in [Upper::Dir { limit: None }, Upper::Tmpfs { size: 1 << 20 }, Upper::None] {
            let writable = upper != Upper::None;
            let root = roots.create(None, &upper, &lower, None).unwrap();
            let path: PathBuf = root.path.clone().unwrap();
            assert_complete(&path);
            assert_eq!(is_writable(&path), writable, "{calls:?} {upper:?}");
            assert_eq!(mounts_at(&path), 1, "{calls:?} {upper:?}");
            assert_eq!(roots.remove(&root.id, false).unwrap(), RootRemoval::Gone);
            assert!(!path.exists());

            let lease = roots.lease(&upper).unwrap();
            let private = |lease: &rcx_imagefs::roots::RootLease| {
                enter_private_namespace().unwrap();
                let root = lease.mount(&lower, None).unwrap();
                assert_complete(root.path());
                assert_eq!(is_writable(root.path()), writable, "{calls:?} {upper:?}");
                assert_eq!(mounts_at(root.path()), 1, "{calls:?} {upper:?}");
            };
            std::thread::scope(|scope| scope.spawn(|| private(&lease)).join().unwrap());
            lease.release().unwrap();
        }
    }
    assert_eq!(std::env::current_dir().unwrap(), before);
}
