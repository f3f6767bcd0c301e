//! The layers as files, without a kernel: bytes, names, damage, and when layers are closed.

use std::fs;
use std::io::Read as _;
use std::time::Duration;

use rcx_imagefs::erofs::{DevicePart, LayerDevice, write_plain};
use rcx_imagefs::error::ErrorCode;
use rcx_imagefs::fs::{FileKind, FsError, FsOptions, ImageFs, Ino, InodeAttr, LayerFiles, layer_file_name};
use rcx_imagefs::image::{LayerDigest, TreeKey};
use rcx_imagefs::index::SpanId;
use rcx_imagefs::pipeline::{open_layer, read_trace};
use rustix::io::Errno;

use support::child::wait_until;
use support::layers::{parse, sparse_tar, tar};
use support::stored::{Packing, TestStore, resolve};

#[track_caller]
fn look_up(files: &LayerFiles, layer: &LayerDigest) -> InodeAttr {
    files.lookup(Ino::ROOT, layer.digest().hex().as_bytes()).unwrap()
}

/// The bytes that the kernel would find in the plain layer.
fn plain(stored: &TestStore, layer: LayerDigest) -> Vec<u8> {
    let layer = open_layer(&stored.store, layer).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let device = LayerDevice::of(layer.index());
    write_plain(&layer, &device, &file).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    // Without the trailer.
    bytes.truncate(usize::try_from(device.size()).unwrap());
    bytes
}

/// A layer of incompressible files, one of them longer than several spans.
fn noisy_tar() -> Vec<u8> {
    let noise: Vec<u8> = (0..10_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut lines =
        parse("d etc\nf etc/hosts 127.0.0.1\nh etc/alias etc/hosts\nf etc/long x\nf end y").remove(0);
    for line in &mut lines {
        if line.path == b"etc/long" {
            line.kind = support::layers::EntryKind::File(noise.clone());
        }
    }
    tar(&lines)
}

/// A layer with sparse files: with holes at both ends, without a hole, and of nothing but a hole.
fn sparse_layer() -> Vec<u8> {
    let data: Vec<u8> = (0..9_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
    sparse_tar(&[
        ("holes", 150_001, &[(8192, &data), (100_000, &data[..4096])]),
        ("hole", 50_000, &[]),
        ("small", 66_000, &[(0, &data[..700])]),
        ("last", 70_000, &[(0, &data[..700])]),
    ])
}

#[test]
fn layer_file_has_the_bytes_of_the_plain_layer_at_every_offset() {
    let packings =
        [Packing::Tar, Packing::Gzip, Packing::Members(1000), Packing::Frames(1000), Packing::Zstd];
    for packing in packings {
        let stored = TestStore::new();
        let (_, layers) = stored.add_tars("lab/a:1", &[noisy_tar(), sparse_layer()], packing);
        let files = stored.fs().layer_files();
        for layer in layers {
            let expected = plain(&stored, layer);
            let attr = look_up(&files, &layer);
            assert_eq!((attr.kind, attr.mode, attr.uid, attr.nlink), (FileKind::Regular, 0o400, 0, 1));
            assert_eq!(attr.size, expected.len() as u64, "{packing:?}");
            assert_eq!(files.getattr(attr.ino).unwrap(), attr);
            let read = |offset: usize, len: u32| files.read(attr.ino, offset as u64, len).unwrap().to_vec();
            assert!(read(0, u32::MAX) == expected, "{packing:?}: in one read");
            for step in [509, 4096, 12_345] {
                let pieces = (0..expected.len()).step_by(step);
                let bytes: Vec<u8> = pieces.flat_map(|at| read(at, u32::try_from(step).unwrap())).collect();
                assert!(bytes == expected, "{packing:?}: in steps of {step}");
            }
            for (back, len) in [(0, 1), (1, 1), (1, 100), (700, 10), (700, 10_000)] {
                let at = expected.len() - back;
                assert_eq!(read(at, len), &expected[at..expected.len().min(at + len as usize)]);
            }
            assert_eq!(read(expected.len() + 12_345, 99), b"");
            assert_eq!(*files.read(attr.ino, u64::MAX, u32::MAX).unwrap(), *b"");
        }
    }
}

#[test]
fn sparse_layer_has_parts_of_all_kinds() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_tars("lab/a:1", &[sparse_layer()], Packing::Tar);
    let layer = open_layer(&stored.store, layers[0]).unwrap();
    let device = LayerDevice::of(layer.index());
    let parts: Vec<_> = device.parts(0, u64::MAX).collect();
    let count = |kind: fn(&DevicePart) -> bool| parts.iter().filter(|part| kind(part)).count();
    assert_eq!(count(|part| matches!(part, DevicePart::Tar { .. })), 1);
    assert_eq!(count(|part| matches!(part, DevicePart::File { .. })), 3, "one file is nothing but a hole");
    assert!(count(|part| matches!(part, DevicePart::Padding { .. })) > 0, "{parts:?}");
}

#[test]
fn only_the_digests_of_layers_in_the_store_are_names() {
    let stored = TestStore::new();
    let (image, layers) = stored.add_text("lab/a:1", "f a");
    let files = stored.fs().layer_files();
    let hex = layers[0].digest().hex();
    for name in
        ["", ".", "..", "a", &hex[1..], &hex.to_uppercase(), &format!("sha256:{hex}"), &"0".repeat(64)]
    {
        let error = files.lookup(Ino::ROOT, name.as_bytes()).unwrap_err();
        assert!(matches!(error, FsError::NotFound), "{name}: {error}");
    }
    let not_utf8 = files.lookup(Ino::ROOT, b"\xff").unwrap_err();
    assert!(matches!(not_utf8, FsError::NotFound));
    let manifest = files.lookup(Ino::ROOT, image.digest().hex().as_bytes()).unwrap_err();
    assert!(matches!(manifest, FsError::LayerFile { .. }), "{manifest}");
    assert_eq!(manifest.errno(), Errno::IO);
    assert_eq!(files.known(), 0);

    let root = files.getattr(Ino::ROOT).unwrap();
    assert_eq!((root.kind, root.mode, root.uid), (FileKind::Directory, 0o500, 0));
    let file = look_up(&files, &layers[0]).ino;
    assert!(matches!(files.lookup(file, b"x"), Err(FsError::NotADirectory(_))));
    assert!(matches!(files.read(Ino::ROOT, 0, 1), Err(FsError::IsADirectory(_))));
    let slot = file.get() & !u64::from(u32::MAX);
    for number in [0, 2, slot, 9 << 32 | 1, 1 << 59 | slot | 1, 1 << 60, u64::MAX] {
        let ino = Ino::from_kernel(number);
        for error in [files.getattr(ino).unwrap_err(), files.read(ino, 0, 1).unwrap_err()] {
            assert!(matches!(error, FsError::Stale(_)), "{number:#x}: {error}");
        }
        files.forget(ino, 1);
    }
}

#[test]
fn file_of_a_tree_image_has_the_same_bytes_and_its_reads_are_recorded() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_tars("lab/a:1", &[noisy_tar(), sparse_layer()], Packing::Gzip);
    let key = TreeKey::of(layers.iter().copied());
    let files = stored.fs().layer_files();
    let name = |layer: &LayerDigest| layer_file_name(*layer, Some(&key));
    let open = |layer| files.lookup(Ino::ROOT, name(layer).as_bytes()).unwrap();
    let read = |ino, offset| files.read(ino, offset, 4096).unwrap();
    let plain = look_up(&files, &layers[0]);
    let (first, second) = (open(&layers[0]), open(&layers[1]));
    assert_eq!((first.size, first.mode), (plain.size, plain.mode));
    assert_ne!(first.ino, plain.ino);
    assert_eq!(*read(first.ino, 0), *read(plain.ino, 0));
    read(second.ino, 0);
    read(first.ino, first.size - 4096);
    read(first.ino, 0);
    let trace = || read_trace(&stored.store, &key).unwrap();
    assert!(trace().is_empty());
    stored.store.create_tree(&key).unwrap().commit().unwrap();
    files.store_traces(true);
    let recorded: Vec<_> = trace().spans().map(|span| span.layer).collect();
    assert_eq!((recorded[0], recorded[1]), (layers[0], layers[1]));
    assert!(recorded.len() >= 3, "{recorded:?}");

    // A file of a number that this process has not given is read, and not recorded.
    let foreign = Ino::from_kernel(plain.ino.get() + 77);
    assert_eq!(*read(foreign, 0), *read(plain.ino, 0));
    for name in [
        format!("{}.", layers[0].digest().hex()),
        format!(".{}", key.hex()),
        format!("{}.x", name(&layers[0])),
    ] {
        assert!(matches!(files.lookup(Ino::ROOT, name.as_bytes()), Err(FsError::NotFound)), "{name}");
    }
    for (attr, count) in [(plain, 1), (first, 1), (second, 1)] {
        files.forget(attr.ino, count);
    }
    files.forget(foreign, 1);
    assert_eq!(files.known(), 0);
}

#[test]
fn first_read_of_a_span_decodes_the_next_one_ahead_unless_a_trace_tells_what_is_read() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_tars("lab/a:1", &[noisy_tar()], Packing::Members(4096));
    let key = TreeKey::of(layers.iter().copied());
    let name = layer_file_name(layers[0], Some(&key));
    let layer = open_layer(&stored.store, layers[0]).unwrap();
    let spans = u64::try_from(layer.index().span_count()).unwrap();
    assert!(spans > 6);
    let start_of = |span| layer.index().span_range(SpanId::new(span)).start;
    let decodes = |fs: &ImageFs, expected| {
        wait_until(&format!("{expected} spans are decoded"), || fs.status().cache.decodes >= expected);
        // Long enough for a span too many.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(fs.status().cache.decodes, expected);
    };
    let read = |files: &LayerFiles, ino, span| drop(files.read(ino, start_of(span), 1).unwrap());

    let fs = stored.fs();
    let files = fs.layer_files();
    let ino = files.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
    read(&files, ino, 0);
    decodes(&fs, 2);
    read(&files, ino, 0);
    decodes(&fs, 2);
    // The one that was decoded ahead.
    read(&files, ino, 1);
    decodes(&fs, 3);
    read(&files, ino, u32::try_from(spans).unwrap() - 1);
    decodes(&fs, 4);
    stored.store.create_tree(&key).unwrap().commit().unwrap();
    files.store_traces(true);

    // With the trace, these three are decoded ahead, and nothing after them.
    let fs = stored.fs();
    let files = fs.layer_files();
    let ino = files.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
    decodes(&fs, 3);
    read(&files, ino, 1);
    decodes(&fs, 3);
    read(&files, ino, 3);
    decodes(&fs, 5);

    // Without a tree image, nothing is known of the reader. The same holds if the option is off.
    let fs = stored.fs();
    let files = fs.layer_files();
    read(&files, look_up(&files, &layers[0]).ino, 0);
    decodes(&fs, 1);
    let fs = stored.fs_with(&FsOptions { prefetch: false, ..FsOptions::default() });
    let files = fs.layer_files();
    let ino = files.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
    read(&files, ino, 0);
    decodes(&fs, 1);
}

#[test]
fn inode_number_of_a_layer_file_survives_a_restart_and_needs_no_lookup() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a text");
    let before = look_up(&stored.fs().layer_files(), &layers[0]);
    let files = stored.fs().layer_files();
    assert_eq!(files.getattr(before.ino).unwrap(), before);
    assert_eq!(files.read(before.ino, 512, 4).unwrap().to_vec(), b"text");
    // The kernel forgets the lookups of the process before.
    files.forget(before.ino, 3);
    assert_eq!(files.known(), 0);
    assert_eq!(look_up(&files, &layers[0]), before);
}

#[test]
fn damaged_layer_gives_eio_with_the_blob_and_is_readable_once_repaired() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_tars("lab/a:1", &[noisy_tar()], Packing::Members(4096));
    let path = stored.store.blob_path(&layers[0].digest());
    let (intact, expected) = (fs::read(&path).unwrap(), plain(&stored, layers[0]));
    let mut damaged = intact.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(&path, &damaged).unwrap();

    let files = stored.fs().layer_files();
    let ino = look_up(&files, &layers[0]).ino;
    let mut errors = Vec::new();
    for offset in (0..expected.len()).step_by(512) {
        match files.read(ino, offset as u64, 512) {
            Ok(bytes) => assert!(*bytes == expected[offset..expected.len().min(offset + 512)], "{offset}"),
            Err(error) => errors.push(error),
        }
    }
    assert!((1..20).contains(&errors.len()), "{} reads of one span fail", errors.len());
    for error in &errors {
        assert_eq!((error.errno(), error.code()), (Errno::IO, ErrorCode::Damaged));
        assert!(error.to_string().contains(&layers[0].digest().hex()), "{error}");
        let failed = error.failed_content().unwrap();
        assert_eq!(
            (failed.layer, failed.blob, failed.image),
            (Some(layers[0]), Some(layers[0].digest()), None)
        );
    }
    // A pull replaces the file of the blob.
    fs::write(path.with_extension("new"), &intact).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    assert!(*files.read(ino, 0, u32::MAX).unwrap() == expected);
}

#[test]
fn layer_that_cannot_be_opened_names_the_layer() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a");
    let path = stored.store.blob_path(&layers[0].digest());
    fs::write(&path, b"cut").unwrap();
    let files = stored.fs().layer_files();
    let error = files.lookup(Ino::ROOT, layers[0].digest().hex().as_bytes()).unwrap_err();
    assert_eq!((error.errno(), error.to_string()), (Errno::IO, format!("cannot open layer {}", layers[0])));
    let failed = error.failed_content().unwrap();
    assert_eq!((failed.layer, failed.blob), (Some(layers[0]), Some(layers[0].digest())));
}

fn open_layers(fs: &ImageFs) -> usize {
    fs.status().layers
}

#[test]
fn layer_is_open_as_long_as_the_kernel_knows_its_file() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a text\n---\nf b");
    let fs = stored.fs();
    let files = fs.layer_files();
    let first = look_up(&files, &layers[0]);
    assert_eq!(look_up(&files, &layers[0]), first);
    let second = look_up(&files, &layers[1]);
    assert_eq!((open_layers(&fs), files.known()), (2, 2));
    files.forget(second.ino, 1);
    assert_eq!((open_layers(&fs), files.known()), (1, 1));
    // In use, it stays readable and keeps its name after its blob has left the store.
    fs::remove_file(stored.store.blob_path(&layers[0].digest())).unwrap();
    assert_eq!(files.read(first.ino, 512, 4).unwrap().to_vec(), b"text");
    assert_eq!(look_up(&files, &layers[0]), first);
    files.forget(first.ino, 2);
    assert_eq!(open_layers(&fs), 1);
    files.forget(first.ino, 1);
    assert_eq!((open_layers(&fs), files.known()), (0, 0));
    let gone = files.lookup(Ino::ROOT, layers[0].digest().hex().as_bytes()).unwrap_err();
    assert!(matches!(gone, FsError::NotFound), "{gone}");
}

#[test]
fn layer_of_an_open_image_is_shared_and_stays_open() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a text");
    for image_first in [true, false] {
        let fs = stored.fs();
        let files = fs.layer_files();
        let open_image = || support::stored::lookup(&fs, resolve(&fs, "lab/a:1").ino, b"a").ino;
        if image_first {
            open_image();
        }
        let layer = look_up(&files, &layers[0]).ino;
        assert_eq!(files.read(layer, 512, 4).unwrap().to_vec(), b"text");
        let file = open_image();
        assert_eq!(open_layers(&fs), 1);
        assert_eq!(*fs.read(file, 0, 9).unwrap(), *b"text");
        assert_eq!(fs.status().cache.decodes, 1, "both mounts use one cache");
        files.forget(layer, 1);
        assert_eq!(open_layers(&fs), 1);
    }
}

#[test]
fn names_of_idle_files_are_returned_once() {
    let stored = TestStore::new();
    let (_, layers) = stored.add_text("lab/a:1", "f a\n---\nf b");
    let files = stored.fs().layer_files();
    let inos: Vec<_> = layers.iter().map(|layer| look_up(&files, layer).ino).collect();
    assert_eq!(files.idle_names(), Vec::<String>::new());
    files.read(inos[1], 0, 1).unwrap();
    assert_eq!(files.idle_names(), [layers[0].digest().hex()]);
    assert_eq!(files.idle_names(), [layers[1].digest().hex()]);
    files.read(inos[0], 0, 1).unwrap();
    assert!(files.idle_names().is_empty() && files.idle_names().is_empty(), "the kernel has no name of it");
    look_up(&files, &layers[0]);
    assert!(files.idle_names().is_empty());
    assert_eq!(files.idle_names(), [layers[0].digest().hex()]);
}
