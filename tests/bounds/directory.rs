//! A directory with a million files, listed a few at a time through `ImageFs` and through the kernel.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource};
use rcx_imagefs::image::{Digest, Platform, Reference};
use rcx_imagefs::import::Archive;
use rcx_imagefs::pipeline::{LoadJob, ProgressSink, load};
use rcx_imagefs::store::Store;
use rustix::fs::RawDir;
use sha2::Digest as _;

use crate::memory::within;
use crate::stream::{Stream, end, header};
use support::blob::Blob;
use support::case::{Case, Expected};
use support::layout;
use support::program::Program;
use support::stored::{names, resolve};

const FILES: usize = 1_000_000;

fn name(number: usize) -> String {
    format!("file-{number:07}")
}

/// Writes an OCI layout of an image with one layer.
pub(crate) fn write_layout(dir: &Path, tar: impl IntoIterator<Item = Bytes>) {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::new(6));
    let mut hash = sha2::Sha256::new();
    let mut tar = Stream::new(tar);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let length = tar.read(&mut chunk).unwrap();
        if length == 0 {
            break;
        }
        hash.update(&chunk[..length]);
        gzip.write_all(&chunk[..length]).unwrap();
    }
    let bytes = gzip.finish().unwrap();
    let blob = Blob {
        digest: Digest::of(&bytes),
        diff_id: Digest::new(hash.finalize().into()),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        bytes,
    };
    layout::write(dir, [&case(vec![blob])]);
}

/// Returns a case of the conformance suite with these layers, for `layout::write`.
pub(crate) fn case(layers: Vec<Blob>) -> Case {
    Case {
        name: "1".to_owned(),
        rule: 0,
        description: String::new(),
        layers,
        expected: Expected::Tree(String::new()),
    }
}

/// The tar of a layer with a million empty files.
fn million_files() -> impl Iterator<Item = Bytes> {
    (0..FILES).map(|n| header(b'0', format!("many/{}", name(n)).as_bytes(), 0)).chain([end()])
}

#[test]
fn a_million_files_take_at_most_250_bytes_each_and_one_by_one_each_is_listed_once() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(&dir.path().join("layout"), million_files());
    let store = Store::open_or_create(&dir.path().join("store")).unwrap();
    let archive = Archive::open(&dir.path().join("layout"), &Platform::host()).unwrap();
    let name_of_image = Some(Reference::from_archive("lab/many").unwrap());
    let job = LoadJob {
        store: store.clone(),
        name: name_of_image,
        replace: false,
        any_platform: false,
        plain: false,
        progress: ProgressSink::none(),
    };
    // The peak is the tables of the index together with the index file built from them; later, the tree during the merge.
    let loaded = within(250 * FILES, || load(&job, &archive).unwrap());
    assert!(loaded.failed.is_empty(), "{:?}", loaded.failed);
    let fs = ImageFs::new(ImageSource::new(store, None), &FsOptions::default());
    fs.refresh().unwrap();
    let root = within(250 * FILES, || resolve(&fs, "lab/many:1").ino);
    let directory = support::stored::lookup(&fs, root, b"many").ino;
    let mut offset = 2;
    for number in 0..FILES {
        let mut listed = 0;
        fs.readdir(directory, offset, |entry| {
            assert_eq!(entry.name, name(number).as_bytes());
            offset = entry.next;
            listed += 1;
            true
        })
        .unwrap();
        assert_eq!(listed, 1, "at file {number}");
    }
    fs.readdir(directory, offset, |entry| panic!("{entry:?}")).unwrap();
    assert_eq!(names(&fs, root), [b"many"]);
}

/// Needs root.
#[test]
fn a_million_files_are_each_listed_once_through_the_kernel_with_a_tiny_buffer() {
    let program = Program::new();
    let dir = program.dir().join("layout");
    write_layout(&dir, million_files());
    program.ok(&["load", dir.to_str().unwrap(), "--name", "lab/many:1"]);
    let mount = program.mount();
    let path = mount.path("lab/many:1/many");
    // The buffer has room for 20 names, so that the kernel asks the daemon for 20 at a time.
    let mut buffer = vec![MaybeUninit::uninit(); 20 * 40];
    let listed = File::open(&path).unwrap();
    let mut entries = RawDir::new(&listed, &mut buffer);
    let mut number = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let listed = entry.file_name().to_bytes();
        match number {
            0 | 1 => assert!(matches!(listed, b"." | b"..")),
            _ => assert_eq!(listed, name(number - 2).as_bytes()),
        }
        number += 1;
    }
    assert_eq!(number, FILES + 2);
    mount.stop();
}
