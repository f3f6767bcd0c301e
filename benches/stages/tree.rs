//! Merging layers into a tree, and looking up names in it.

use criterion::{BatchSize, Criterion, Throughput};
use rcx_imagefs::erofs::TreeImage;
use rcx_imagefs::tree::{NodeId, Tree, merge};

use crate::data::{self, DIRECTORIES, FILES, Random};

pub(crate) fn bench(criterion: &mut Criterion) {
    let layers: Vec<_> = (0..3).map(|number| data::open(&data::layer_of_entries(number))).collect();
    let indexes: Vec<_> = layers.iter().collect();
    let entries: usize = layers.iter().map(rcx_imagefs::index::Index::len).sum();
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Elements(entries as u64));
    group.bench_function("3 layers of 20,000 entries", |bencher| {
        bencher.iter(|| merge(&indexes).unwrap());
    });
    group.finish();

    let tree = merge(&indexes).unwrap();
    let mut group = criterion.benchmark_group("tree image");
    group.throughput(Throughput::Elements(tree.len() as u64));
    group.bench_function(format!("{} nodes", tree.len()), |bencher| {
        bencher.iter(|| TreeImage::plan(&tree, &indexes).unwrap().write([0; 16], std::io::sink()).unwrap());
    });
    group.finish();

    let mut random = Random(2);
    let mut path = || {
        let directory = u32::try_from(random.below(DIRECTORIES.into())).unwrap();
        let file = u32::try_from(random.below(FILES.into())).unwrap();
        data::path(directory, file)
    };
    let mut group = criterion.benchmark_group("tree lookup");
    group.throughput(Throughput::Elements(path().split('/').count() as u64));
    group.bench_function("6 names, random files", |bencher| {
        bencher.iter_batched(&mut path, |path| find(&tree, &path), BatchSize::SmallInput);
    });
    group.finish();
}

fn find(tree: &Tree, path: &str) -> NodeId {
    path.split('/').fold(NodeId::ROOT, |directory, name| tree.lookup(directory, name.as_bytes()).unwrap())
}
