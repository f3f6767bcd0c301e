//! Images and layers that nobody uses are closed, and opened again as they were.

use std::fs;

use rcx_imagefs::fs::{FileKind, ImageFs, Ino, InodeAttr};
use rcx_imagefs::image::{LayerDigest, ManifestDigest, Name};
use support::stored::{TestStore, lookup, names, resolve};

/// The most images that stay open although nobody uses them.
const UNUSED_MAX: usize = 32;

const BASE: &str =
    "d etc\nf etc/hosts 127.0.0.1\nh etc/alias etc/hosts\nl link etc\nd deep\nf deep/er/file x";

/// A store with images of one base, `lab/N:1`.
fn store_of(count: usize) -> (TestStore, Vec<(ManifestDigest, Vec<LayerDigest>)>) {
    let stored = TestStore::new();
    let add = |n| stored.add_text(&format!("lab/{n}:1"), &format!("{BASE}\n---\nf own {n}\nf etc/alias {n}"));
    let images = (0..count).map(add).collect();
    (stored, images)
}

/// The attributes of all files of an image, each of which was looked up once, as the kernel does it.
fn walk(fs: &ImageFs, image: usize) -> Vec<InodeAttr> {
    let mut found = vec![resolve(fs, &format!("lab/{image}:1"))];
    let mut next = 0;
    while let Some(attr) = found.get(next).copied() {
        fs.add_references(attr.ino, 1);
        if attr.kind == FileKind::Directory {
            found.extend(names(fs, attr.ino).iter().map(|name| lookup(fs, attr.ino, name)));
        }
        next += 1;
    }
    found
}

fn forget(fs: &ImageFs, attrs: &[InodeAttr]) {
    attrs.iter().for_each(|attr| fs.forget(attr.ino, 1));
}

fn is_open(fs: &ImageFs, image: usize) -> bool {
    let path = format!("lab/{image}@");
    fs.status().open.iter().flatten().any(|open| open.starts_with(&path))
}

fn open(fs: &ImageFs) -> usize {
    fs.status().open.len()
}

#[test]
fn images_that_the_kernel_has_forgotten_are_closed_and_opened_again_with_equal_inodes() {
    let (stored, _) = store_of(UNUSED_MAX + 18);
    let fs = stored.fs();
    let walked: Vec<Vec<InodeAttr>> = (0..UNUSED_MAX + 18).map(|image| walk(&fs, image)).collect();
    assert_eq!(open(&fs), UNUSED_MAX + 18, "all were used in the last minute");
    walked.iter().for_each(|attrs| forget(&fs, attrs));
    assert_eq!(open(&fs), UNUSED_MAX);
    // A handle to an inode works without a lookup, and lookups find the same inodes.
    for (image, attrs) in walked.iter().enumerate() {
        for attr in attrs {
            assert_eq!(fs.getattr(attr.ino).unwrap(), *attr, "image {image}");
        }
        assert_eq!(walk(&fs, image), *attrs, "image {image}");
        let own = lookup(&fs, attrs[0].ino, b"own");
        assert_eq!(*fs.read(own.ino, 0, 9).unwrap(), *image.to_string().as_bytes());
        forget(&fs, attrs);
    }
    assert!(open(&fs) <= UNUSED_MAX + 1, "{}", open(&fs));
}

#[test]
fn images_that_were_only_looked_up_are_closed_although_the_kernel_knows_them() {
    let (stored, _) = store_of(100);
    let fs = stored.fs();
    let used = walk(&fs, 7);
    for image in 0..100 {
        fs.add_references(resolve(&fs, &format!("lab/{image}:1")).ino, 1);
    }
    // The one in use, and the one that was opened last.
    assert_eq!(open(&fs), UNUSED_MAX + 2);
    assert!(is_open(&fs, 7), "an image in use stays open");
    assert_eq!(walk(&fs, 7), used);
    // A layer of a closed image stays open for a while only.
    assert!(fs.status().layers <= UNUSED_MAX + 3 + 64, "{}", fs.status().layers);
}

/// Removes an image and everything of it from the store, as `rm` and `gc` do.
fn remove(
    stored: &TestStore,
    fs: &ImageFs,
    image: usize,
    (digest, layers): &(ManifestDigest, Vec<LayerDigest>),
) {
    let name = Name::from_archive(&format!("lab/{image}")).unwrap();
    assert!(stored.store.remove_image(&name, *digest).unwrap());
    fs.refresh().unwrap();
    let own = layers.last().unwrap();
    for blob in [digest.digest(), own.digest()] {
        fs::remove_file(stored.store.blob_path(&blob)).unwrap();
    }
    stored.store.remove_index(own).unwrap();
}

fn look_up_others(fs: &ImageFs) {
    for image in 1..UNUSED_MAX + 18 {
        resolve(fs, &format!("lab/{image}:1"));
    }
}

#[test]
fn removed_image_that_was_closed_stays_readable_until_the_kernel_forgets_it() {
    let (stored, images) = store_of(UNUSED_MAX + 18);
    let fs = stored.fs();
    let root = resolve(&fs, "lab/0:1").ino;
    fs.add_references(root, 1);
    look_up_others(&fs);
    assert!(!is_open(&fs, 0), "only its root was looked up, before the others");
    remove(&stored, &fs, 0, &images[0]);
    look_up_others(&fs);
    let own = lookup(&fs, root, b"own");
    assert_eq!(*fs.read(own.ino, 0, 9).unwrap(), *b"0");
    fs.forget(root, 1);
    look_up_others(&fs);
    assert!(fs.getattr(root).is_err());
    assert!(fs.getattr(own.ino).is_err() || fs.read(own.ino, 0, 9).is_ok());
}

#[test]
fn references_of_an_unknown_or_forgotten_image_are_ignored() {
    let (stored, _) = store_of(1);
    let fs = stored.fs();
    let root = resolve(&fs, "lab/0:1");
    fs.forget(root.ino, 5);
    fs.forget(Ino::of_image(77, 3).unwrap(), 1);
    fs.forget(Ino::ROOT, 1);
    fs.add_references(root.ino, 2);
    fs.forget(root.ino, 1);
    assert_eq!(fs.getattr(root.ino).unwrap(), root);
}
