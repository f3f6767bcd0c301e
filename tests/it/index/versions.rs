//! Indexes of version 2: they are read as they are, and replaced when there is time.

use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource};
use rcx_imagefs::pipeline::{open_image, open_layer, update_index, update_indexes};
use rcx_imagefs::store::Store;
use support::old_index::OldLayer;
use support::stored::{lookup, resolve};

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn tar_of<D: AsRef<[u8]>>(layer: &Layer<D>) -> Vec<u8> {
    layer.index().spans().flat_map(|span| layer.decode_span(span).unwrap()).collect()
}

#[test]
fn index_of_version_2_is_read_without_hashes() {
    for old in [OldLayer::gzip(), OldLayer::zstd()] {
        let index = Index::open(old.index.clone()).unwrap();
        assert!(index.is_outdated());
        assert_eq!(describe(&index), DESCRIPTION);
        let span = index.spans().next().unwrap();
        assert_eq!(index.blob_range(span), None);
        let layer =
            Layer::new(index, LayerBytes::Memory(old.blob.clone()), old.seekable.map(LayerBytes::Memory));
        assert!(tar_of(&layer) == sample());
        layer.verify_range(span).unwrap();
        assert!(!layer_of(&old.blob, &small()).index().is_outdated());
    }
}

#[test]
fn image_with_outdated_indexes_is_opened_without_rebuilding_them() {
    let (_dir, store) = store();
    for (old, name) in [(OldLayer::gzip(), "lab/gzip:1"), (OldLayer::zstd(), "lab/zstd:1")] {
        let image = open_image(&store, old.add_to(&store, name), |_| None).unwrap();
        assert!(tar_of(&image.layers[0]) == sample());
        assert_eq!(old.version_in(&store), 2);
    }
}

#[test]
fn outdated_index_is_rebuilt_once_while_its_layer_stays_open() {
    let (_dir, store) = store();
    for (old, name) in [(OldLayer::gzip(), "lab/gzip:1"), (OldLayer::zstd(), "lab/zstd:1")] {
        old.add_to(&store, name);
        let open = open_layer(&store, old.digest()).unwrap();
        assert!(update_index(&store, &old.digest()).unwrap());
        assert!(!update_index(&store, &old.digest()).unwrap());
        assert_eq!(old.version_in(&store), 3);
        let new = open_layer(&store, old.digest()).unwrap();
        for layer in [open, new] {
            assert!(tar_of(&layer) == sample(), "{name}, outdated: {}", layer.index().is_outdated());
        }
    }
}

#[test]
fn layer_that_cannot_be_indexed_again_keeps_its_old_index_and_stops_no_other() {
    let (_dir, store) = store();
    let (damaged, intact) = (OldLayer::gzip(), OldLayer::zstd());
    damaged.add_to(&store, "lab/a:1");
    intact.add_to(&store, "lab/b:1");
    let path = store.blob_path(&damaged.digest().digest());
    let mut bytes = damaged.blob.clone();
    bytes[1000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    update_indexes(&store, &|| true);
    assert_eq!((damaged.version_in(&store), intact.version_in(&store)), (2, 2), "it was stopped");
    update_indexes(&store, &|| false);
    assert_eq!((damaged.version_in(&store), intact.version_in(&store)), (2, 3));
}

#[test]
fn cached_spans_of_the_old_index_are_not_taken_for_those_of_the_new_one() {
    let (_dir, store) = store();
    let old = OldLayer::gzip();
    old.add_to(&store, "lab/gzip:1");
    let fs = ImageFs::new(ImageSource::new(store.clone(), None), &FsOptions::default());
    fs.refresh().unwrap();
    let file = lookup(&fs, resolve(&fs, "lab/gzip:1").ino, b"etc");
    let file = lookup(&fs, file.ino, b"long");
    let start = fs.read(file.ino, 0, 100).unwrap().to_vec();
    // The blob is damaged on disk, and then fetched again.
    let blob = store.blob_path(&old.digest().digest());
    std::fs::write(&blob, vec![0; old.blob.len()]).unwrap();
    assert!(fs.read(file.ino, 30_000, 100).is_err());
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, &old.blob).unwrap();
    assert!(update_index(&store, &old.digest()).unwrap());
    assert!(fs.read(file.ino, 30_000, 100).unwrap()[..] == content(7, 40_000)[30_000..30_100]);
    assert!(fs.read(file.ino, 0, 100).unwrap()[..] == start);
}
