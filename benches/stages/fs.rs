//! The filesystem without the kernel: lookups, listings, and reads with and without decoding.

use criterion::{BatchSize, Criterion, Throughput};
use rcx_imagefs::fs::{FsOptions, ImageFs, ImageSource, Ino, InodeAttr, Lookup};
use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, Manifest, Name, media};
use rcx_imagefs::index::Index;
use rcx_imagefs::layer::Codec;
use rcx_imagefs::store::Store;
use tempfile::TempDir;

use crate::data::{self, DIRECTORIES, FILES, Random, Tar};

/// The size of the file that is read, in bytes.
const FILE: usize = 16 << 20;
/// The size of one read in bytes: the kernel's default read-ahead.
const READ: u32 = 128 << 10;

/// A store with images.
struct Images {
    _dir: TempDir,
    store: Store,
}

impl Images {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        Self { _dir: dir, store }
    }

    fn add(&self, name: &str, blobs: &[Vec<u8>]) {
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            self.store.put_small(&digest, bytes).unwrap();
            digest
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for blob in blobs {
            let layer = LayerDigest::new(put(blob));
            let index = Index::open(data::index_of(blob)).unwrap();
            diff_ids.push(*index.diff_id());
            self.store.put_index(&layer, &data::index_of(blob)).unwrap();
            let media_type = match index.codec() {
                Codec::Tar => media::OCI_LAYER,
                Codec::Gzip => media::OCI_LAYER_GZIP,
                Codec::Zstd => media::OCI_LAYER_ZSTD,
            };
            layers.push(Descriptor::new(media_type, layer.digest(), blob.len() as u64));
        }
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        let config = Descriptor::new(media::OCI_CONFIG, put(config.as_bytes()), config.len() as u64);
        let manifest = Manifest::new(config, layers).unwrap().to_bytes();
        let manifest = Descriptor::new(media::OCI_MANIFEST, put(&manifest), manifest.len() as u64);
        let tag = "1".parse().unwrap();
        self.store.tag(&Name::from_archive(name).unwrap(), Some(&tag), &manifest, None).unwrap();
    }

    /// Opens the filesystem.
    fn fs(&self) -> ImageFs {
        let fs = ImageFs::new(ImageSource::new(self.store.clone(), None), &FsOptions::default());
        fs.refresh().unwrap();
        fs
    }
}

fn lookup(fs: &ImageFs, parent: Ino, name: &[u8]) -> InodeAttr {
    match fs.lookup(parent, name).unwrap() {
        Lookup::Found(attr) => attr,
        absent @ Lookup::Absent { .. } => panic!("{}: {absent:?}", name.escape_ascii()),
    }
}

/// Returns the inode of a path in an image. The image's name is `NAME:1`, a symlink to its directory.
fn resolve(fs: &ImageFs, image: &str, path: &str) -> Ino {
    let link = lookup(fs, Ino::ROOT, format!("{image}:1").as_bytes()).ino;
    let target = fs.readlink(link).unwrap();
    let root = lookup(fs, Ino::ROOT, &target).ino;
    path.split('/').fold(root, |directory, name| lookup(fs, directory, name.as_bytes()).ino)
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let images = Images::new();
    let layers: Vec<Vec<u8>> = (0..3).map(|number| data::gzip(&data::layer_of_entries(number))).collect();
    images.add("entries", &layers);
    let mut tar = Tar::new();
    tar.file("file", &data::text(FILE, 3));
    let tar = tar.finish();
    images.add("gzip", &[data::gzip(&tar)]);
    images.add("zstd", &[data::zstd(&tar)]);
    let fs = images.fs();
    attributes(criterion, &fs);
    reads(criterion, &fs);
}

fn attributes(criterion: &mut Criterion, fs: &ImageFs) {
    let directories: Vec<Ino> = (0..DIRECTORIES)
        .map(|number| resolve(fs, "entries", data::path(number, 0).rsplit_once('/').unwrap().0))
        .collect();
    let names: Vec<String> =
        (0..FILES).map(|file| data::path(0, file).rsplit_once('/').unwrap().1.to_owned()).collect();
    let mut random = Random(4);
    let mut pick = |len: usize| usize::try_from(random.below(len as u64)).unwrap();
    let mut group = criterion.benchmark_group("ImageFs");
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup and getattr, random files", |bencher| {
        bencher.iter(|| {
            let attr = lookup(fs, directories[pick(directories.len())], names[pick(names.len())].as_bytes());
            fs.getattr(attr.ino).unwrap()
        });
    });
    group.bench_function("readdir of 100 names with attributes", |bencher| {
        bencher.iter(|| {
            let mut count = 0;
            fs.readdir(directories[pick(directories.len())], 0, |_| {
                count += 1;
                false
            })
            .unwrap();
            count
        });
    });
    group.finish();
}

fn reads(criterion: &mut Criterion, fs: &ImageFs) {
    let mut random = Random(5);
    let mut offset = || random.below(FILE as u64 / u64::from(READ)) * u64::from(READ);
    let mut group = criterion.benchmark_group("random read of 128 KiB");
    group.throughput(Throughput::Bytes(READ.into()));
    for image in ["gzip", "zstd"] {
        let file = resolve(fs, image, "file");
        group.bench_function(format!("{image}, cold: decodes its spans"), |bencher| {
            let cold = || {
                fs.drop_caches();
                offset()
            };
            bencher.iter_batched(cold, |at| fs.read(file, at, READ).unwrap(), BatchSize::PerIteration);
        });
        // The whole file fits into the cache.
        for at in (0..FILE as u64).step_by(READ as usize) {
            fs.read(file, at, READ).unwrap();
        }
        group.bench_function(format!("{image}, from the cache"), |bencher| {
            bencher.iter_batched(&mut offset, |at| fs.read(file, at, READ).unwrap(), BatchSize::SmallInput);
        });
    }
    group.finish();
}
