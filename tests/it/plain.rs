//! Plain layers in a store: their bytes, their damage, their budget.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcx_imagefs::erofs::{DevicePart, LayerDevice, PlainFileFault, PlainLayerError};
use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::Layer;
use rcx_imagefs::pipeline::{
    PipelineError, PlainCheck, check_plain_layer, make_plain_layer, open_layer, plain_layer,
};
use rcx_imagefs::store::{GcOptions, PlainRoom, Store, StoreError};
use support::stored::{Packing, TestStore};

/// The length of the trailer.
const TRAILER: u64 = 512;

/// Stores a blob as a layer.
fn put(store: &Store, blob: &[u8]) -> LayerDigest {
    let digest = Digest::of(blob);
    store.put_small(&digest, blob).unwrap();
    LayerDigest::new(digest)
}

/// A layer of one file of `size` bytes.
fn layer_of(store: &Store, name: &str, size: usize) -> LayerDigest {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    // Bytes that do not compress to nothing: the limits of a layer depend on its compressed size.
    let content: Vec<u8> = (0..size).map(|at| (at * at % 251).to_le_bytes()[0]).collect();
    tar.append_data(&mut header, name, &content[..]).unwrap();
    put(store, &tar.into_inner().unwrap())
}

/// The tar of files with holes, an unaligned one, a hole at either end, and nothing but a hole.
fn sparse_tar(dir: &Path) -> Vec<u8> {
    let file = |name: &str, size: u64, writes: &[(u64, &[u8])]| {
        let file = File::create(dir.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
    };
    file("a", 3 << 20, &[(0, b"start"), (1 << 20, &[7; 9000]), ((3 << 20) - 5, b"final")]);
    file("b", 64 << 30, &[(1 << 30, b"lonely")]);
    file("c", 1 << 20, &[]);
    fs::write(dir.join("d"), b"no holes").unwrap();
    let tar = dir.join("layer.tar");
    let mut command = Command::new("tar");
    command.args(["--sparse", "--format=pax", "-C"]).arg(dir).arg("-cf").arg(&tar).args(["a", "b", "c", "d"]);
    assert!(command.status().unwrap().success());
    fs::read(tar).unwrap()
}

fn path_of(store: &Store, layer: &LayerDigest) -> PathBuf {
    store.path().join("rcx-imagefs/plain").join(layer.hex() + ".plain")
}

/// Reads the device of a layer from its blob and compares it with a file.
fn assert_is_device_of(file: &File, layer: &Layer) {
    let device = LayerDevice::of(layer.index());
    assert_eq!(file.metadata().unwrap().len(), device.size() + TRAILER);
    let mut tar = Vec::new();
    layer.index().spans().for_each(|span| tar.extend(layer.decode_span(span).unwrap()));
    let read = |offset: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let mut at = 0;
    for part in device.parts(0, u64::MAX) {
        match part {
            DevicePart::Tar { from, len } => {
                assert_eq!((from.get(), len), (0, tar.len() as u64));
                assert!(read(0, len) == tar);
                at += len;
            }
            DevicePart::Padding { len } => {
                assert!(read(at, len).iter().all(|byte| *byte == 0));
                at += len;
            }
            DevicePart::File { entry, from, len } => {
                assert_eq!(from, 0);
                // All that is not a hole of 64 GiB.
                for offset in (0..len.min(4 << 20)).step_by(1 << 16).chain([1 << 30]) {
                    let step = len.saturating_sub(offset).min(1 << 16);
                    let expected = layer.read(entry, offset, usize::try_from(step).unwrap()).unwrap();
                    assert!(read(at + offset, step) == expected, "entry {entry} at {offset}");
                }
                at += len;
            }
        }
    }
    assert_eq!(at, device.size());
}

#[test]
fn plain_layer_is_the_device_of_its_layer_and_its_holes_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let tar = sparse_tar(dir.path());
    for packing in [Packing::Tar, Packing::Gzip, Packing::Zstd, Packing::Frames(5000)] {
        let store = TestStore::new();
        let layer = put(&store.store, &packing.pack(&tar));
        assert!(plain_layer(&store.store, &layer).unwrap().is_none());
        assert!(make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap());
        assert!(!make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap());
        let plain = plain_layer(&store.store, &layer).unwrap().unwrap();
        plain.verify().unwrap();
        assert_is_device_of(plain.file(), &open_layer(&store.store, layer).unwrap());
        let attributes = plain.file().metadata().unwrap();
        assert!(attributes.len() > 64 << 30);
        assert!(attributes.blocks() * 512 < 1 << 20, "{} blocks", attributes.blocks());
        assert_eq!(attributes.permissions().mode() & 0o7777, 0o600);
        let directory = path_of(&store.store, &layer).parent().unwrap().metadata().unwrap();
        assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
    }
}

#[test]
fn truncated_changed_or_outdated_plain_layer_is_removed_and_made_anew() {
    let store = TestStore::new();
    let layer = layer_of(&store.store, "file", 20_000);
    make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap();
    let path = path_of(&store.store, &layer);
    let intact = fs::read(&path).unwrap();
    let device = intact.len() - 512;
    let flipped = |at: usize| {
        let mut bytes = intact.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let resealed = |at: usize| {
        let mut bytes = flipped(at);
        let seal = crc32fast::hash(&bytes[device..device + 508]);
        bytes[device + 508..].copy_from_slice(&seal.to_le_bytes());
        bytes
    };
    let longer = [&intact[..], &[0; 512]].concat();
    let trailer_alone = intact[device..].to_vec();
    let cases = [
        ("empty", Vec::new()),
        ("truncated by a byte", intact[..intact.len() - 1].to_vec()),
        ("without its trailer", intact[..device].to_vec()),
        ("truncated in the middle", intact[..device / 2].to_vec()),
        ("longer", longer),
        ("only a trailer", trailer_alone),
        ("a block is missing", [&intact[..1024], &intact[1536..]].concat()),
        ("magic", flipped(device)),
        ("version", flipped(device + 8)),
        ("checksum of the device", flipped(device + 12)),
        ("length", flipped(device + 17)),
        ("digest", flipped(device + 30)),
        ("unused bytes", flipped(device + 100)),
        ("seal", flipped(device + 511)),
        ("another version", resealed(device + 8)),
        ("another layer", resealed(device + 24)),
        ("another length", resealed(device + 17)),
    ];
    for (name, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        assert!(plain_layer(&store.store, &layer).unwrap().is_none(), "{name}");
        assert!(!path.exists(), "{name}");
        assert!(make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap(), "{name}");
        assert!(fs::read(&path).unwrap() == intact, "{name}");
    }
    // Only `verify` reads the content.
    for at in [0, device / 2, device - 1] {
        fs::write(&path, flipped(at)).unwrap();
        assert!(plain_layer(&store.store, &layer).unwrap().is_some());
        assert!(check_plain_layer(&store.store, &layer, PlainCheck::Trailer).unwrap().is_none());
        let fault = check_plain_layer(&store.store, &layer, PlainCheck::Content).unwrap();
        assert!(matches!(fault, Some(PlainFileFault::Content)), "{fault:?}");
        assert!(!path.exists());
        assert!(make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap());
    }
    assert!(check_plain_layer(&store.store, &layer, PlainCheck::Content).unwrap().is_none());
}

#[test]
fn concurrent_makers_of_a_layer_make_one_file() {
    let store = TestStore::new();
    let layer = layer_of(&store.store, "file", 5 << 20);
    let made = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap()))
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).filter(|made| *made).count()
    });
    assert_eq!(made, 1);
    assert!(check_plain_layer(&store.store, &layer, PlainCheck::Content).unwrap().is_none());
    for directory in ["tmp", "locks"] {
        let left = fs::read_dir(store.store.path().join("rcx-imagefs").join(directory)).unwrap().count();
        assert_eq!(left, 0, "{directory}");
    }
}

#[test]
fn layer_that_is_too_large_for_the_kernel_is_refused_before_it_is_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("a")).unwrap();
    file.write_all_at(b"x", 3 << 40).unwrap();
    let tar = dir.path().join("layer.tar");
    let mut command = Command::new("tar");
    command.args(["--sparse", "--format=pax", "-C"]).arg(dir.path()).arg("-cf").arg(&tar).arg("a");
    assert!(command.status().unwrap().success());
    let store = TestStore::new();
    let layer = put(&store.store, &fs::read(tar).unwrap());
    let error = make_plain_layer(&store.store, &layer, PlainRoom::default()).unwrap_err();
    assert!(
        matches!(&error, PipelineError::PlainLayer { source: PlainLayerError::TooLarge { .. }, .. }),
        "{error:?}"
    );
    assert!(!path_of(&store.store, &layer).exists());
    assert_eq!(fs::read_dir(store.store.path().join("rcx-imagefs/tmp")).unwrap().count(), 0);
}

/// Sets the time of the last use of a plain layer.
fn set_used(store: &Store, layer: &LayerDigest, hours_ago: u64) {
    let file = File::options().write(true).open(path_of(store, layer)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(hours_ago * 3600)).unwrap();
}

#[test]
fn budget_is_kept_by_removing_the_least_recently_used_but_never_one_in_use() {
    let test = TestStore::new();
    let store = test.store.clone().with_plain_budget(Some(10 << 20));
    let size = 3 << 20;
    let layers: Vec<_> = (0..5).map(|number| layer_of(&store, &format!("file{number}"), size)).collect();
    let there = || layers.iter().map(|layer| store.has_plain(layer).unwrap()).collect::<Vec<_>>();
    for (number, layer) in layers[..3].iter().enumerate() {
        make_plain_layer(&store, layer, PlainRoom::default()).unwrap();
        set_used(&store, layer, 10 - number as u64);
    }
    assert_eq!(there(), [true, true, true, false, false]);
    // The oldest by its making, but the last one used.
    drop(plain_layer(&store, &layers[0]).unwrap().unwrap());
    make_plain_layer(&store, &layers[3], PlainRoom::default()).unwrap();
    assert_eq!(there(), [true, false, true, true, false]);

    set_used(&store, &layers[0], 7);
    let in_use = [0, 2].map(|number| plain_layer(&store, &layers[number]).unwrap().unwrap());
    for number in [0, 2] {
        set_used(&store, &layers[number], 20);
    }
    make_plain_layer(&store, &layers[4], PlainRoom::default()).unwrap();
    assert_eq!(there(), [true, false, true, false, true]);

    // Nothing is removed for a layer that has no room even then.
    let _all = plain_layer(&store, &layers[4]).unwrap().unwrap();
    let error = make_plain_layer(&store, &layers[1], PlainRoom::default()).unwrap_err();
    let PipelineError::Store(StoreError::PlainBudget { budget, used, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*budget, 10 << 20);
    assert!(*used >= 9 << 20, "{used}");
    assert_eq!(there(), [true, false, true, false, true]);
    assert_eq!(fs::read_dir(store.path().join("rcx-imagefs/tmp")).unwrap().count(), 0);
    drop(in_use);

    // The daemon removes none that was used a short time ago.
    set_used(&store, &layers[0], 2);
    set_used(&store, &layers[2], 1);
    let room = |hours: u64| PlainRoom { min_idle: Duration::from_secs(hours * 3600), ..PlainRoom::default() };
    assert!(make_plain_layer(&store, &layers[1], room(3)).is_err());
    assert_eq!(there(), [true, false, true, false, true]);
    assert!(make_plain_layer(&store, &layers[1], room(1)).unwrap());
    assert_eq!(there(), [false, true, true, false, true], "the oldest goes first");

    let huge = layer_of(&store, "huge", 11 << 20);
    assert!(matches!(
        make_plain_layer(&store, &huge, PlainRoom::default()),
        Err(PipelineError::Store(StoreError::PlainBudget { .. }))
    ));
    assert_eq!(there(), [false, true, true, false, true], "nothing is removed in vain");

    // Other files need the rest of the disk.
    let store = store.with_plain_budget(None);
    let room = PlainRoom { reserve: u64::MAX, ..PlainRoom::default() };
    assert!(make_plain_layer(&store, &layers[3], room).is_err());
    assert!(make_plain_layer(&store, &layers[3], PlainRoom::default()).unwrap());
}

#[test]
fn gc_removes_lock_files_and_parts_of_plain_layers_of_dead_makers() {
    let test = TestStore::new();
    let top = test.store.path().join("rcx-imagefs");
    let layer = layer_of(&test.store, "file", 1000);
    let lock = test.store.lock_plain(&layer, Duration::ZERO).unwrap().unwrap();
    assert!(test.store.lock_plain(&layer, Duration::ZERO).unwrap().is_none());
    let dead = top.join("locks").join(Digest::of(b"x").hex() + ".plain");
    fs::write(&dead, "").unwrap();
    fs::write(top.join("tmp/1-0-x.plain"), "part").unwrap();
    let report = test.store.gc(false).unwrap();
    assert_eq!((report.temporary, report.plain), (1, 0));
    assert!(!dead.exists());
    assert_eq!(fs::read_dir(top.join("locks")).unwrap().count(), 2, "the lock that is held, and that of gc");
    drop(lock);
    assert!(make_plain_layer(&test.store, &layer, PlainRoom::default()).is_err(), "gc has removed the blob");
}

#[test]
fn gc_frees_plain_layers_that_no_image_has_and_on_request_all_that_are_not_in_use() {
    let test = TestStore::new();
    let store = &test.store;
    let (_, kept) = test.add_text("lab/kept:1", "f a one\n---\nf b two");
    let orphan = layer_of(store, "orphan", 100_000);
    for layer in kept.iter().chain([&orphan]) {
        make_plain_layer(store, layer, PlainRoom::default()).unwrap();
    }
    let in_use = plain_layer(store, &kept[0]).unwrap().unwrap();
    let used_orphan = plain_layer(store, &orphan).unwrap().unwrap();
    assert_eq!(store.gc(false).unwrap().plain, 0);
    drop(used_orphan);
    // The blob went with the first collection.
    for dry_run in [true, false] {
        let report = store.gc(dry_run).unwrap();
        assert_eq!(report.plain, 1);
        assert!(report.plain_bytes >= 100_000 && report.bytes >= report.plain_bytes, "{report:?}");
        assert_eq!(store.has_plain(&orphan).unwrap(), dry_run);
    }
    let all = GcOptions { all_plain: true, ..GcOptions::default() };
    assert_eq!(store.collect(all, |_| false).unwrap().plain, 1);
    assert_eq!(kept.iter().map(|layer| store.has_plain(layer).unwrap()).collect::<Vec<_>>(), [true, false]);
    drop(in_use);
    assert_eq!(store.collect(all, |_| false).unwrap().plain, 1);
    assert!(!store.has_plain(&kept[0]).unwrap());
}
