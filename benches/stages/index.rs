//! Building the index of a layer, and opening it.

use criterion::{Criterion, Throughput};
use rcx_imagefs::index::{BuildOptions, Index, build};

use crate::data;

/// The size of all files in the indexed layer, in bytes.
const LAYER: usize = 8 << 20;

pub(crate) fn bench(criterion: &mut Criterion) {
    let tar = data::layer_of_text(LAYER);
    let mut group = criterion.benchmark_group("index build, bytes of tar");
    group.throughput(Throughput::Bytes(tar.len() as u64));
    let one_frame = zstd::encode_all(&tar[..], 3).unwrap();
    for (name, blob) in [
        ("gzip", data::gzip(&tar)),
        ("zstd frames", data::zstd(&tar)),
        ("zstd one frame", one_frame),
        ("tar", tar.clone()),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| build(&blob[..], &BuildOptions::default(), || Ok(std::io::sink())).unwrap());
        });
    }
    group.finish();

    let index = data::index_of(&data::gzip(&data::layer_of_entries(0)));
    let entries = Index::open(&index).unwrap().len();
    let mut group = criterion.benchmark_group("index open");
    group.throughput(Throughput::Elements(entries as u64));
    group.bench_function("gzip, 20,000 entries", |bencher| bencher.iter(|| Index::open(&index).unwrap()));
    group.finish();
}
