//! The index of one layer: what it takes to build for layers that are made of metadata.

use std::io::sink;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{BuildError, BuildOptions, EntryId, Index, Layer, LayerBytes, TABLES_MAX, build};
use rcx_imagefs::layer::TarOffset;

use crate::memory::within;
use crate::stream::{Stream, end, header, member, pax};

const MIB: usize = 1 << 20;

/// The finished index of a tar; its blob has no name that matters here.
pub(crate) fn index_of(tar: impl IntoIterator<Item = Bytes>) -> Result<Index<Vec<u8>>, BuildError> {
    let (built, _) = build(Stream::new(tar), &BuildOptions::default(), || Ok(sink()))?;
    Ok(Index::open(built.finish(&LayerDigest::new(Digest::of(b"")))?).unwrap())
}

#[test]
fn metadata_beyond_its_limit_is_refused_by_entry_and_offset_within_twice_the_limit() {
    // Long targets make the most of it for the bytes of a tar: 140,000 entries would do.
    let target = Bytes::from(vec![b't'; 4095]);
    let tar = (0..1_000_000).flat_map(|n| {
        let [head, data, padding] = member(b'K', b"././@LongLink", target.clone());
        [head, data, padding, header(b'2', format!("link-{n:06}").as_bytes(), 0)]
    });
    let error = within(2 * TABLES_MAX + 64 * MIB, || index_of(tar)).unwrap_err();
    let BuildError::TooLarge { offset, path, what } = &error else { panic!("{error}") };
    // 20 bytes for the entry, its name, its target with a length.
    let fits = (TABLES_MAX - 100) / (20 + 11 + 2 + 4095);
    assert_eq!(*path, format!("link-{fits:06}").into_bytes().into());
    assert_eq!(*offset, TarOffset::new(fits as u64 * (512 + 4096 + 512) + 512 + 4096));
    assert_eq!(*what, "metadata of all entries together (512 MiB)");
    let told =
        format!("entry `link-{fits:06}` at offset {offset} of the tar: {what} exceeds the limit of an index");
    assert_eq!(error.to_string(), told);
}

/// A directory with a path of almost 4 KiB, and what a tar's headers need to name something in it.
pub(crate) fn deep() -> (Vec<u8>, impl Fn(u8, String) -> Vec<Bytes>) {
    let directory = [&b"d".repeat(250)[..]; 16].join(&b'/');
    let inside = directory.clone();
    let make = move |kind, name: String| {
        let path = [&inside, name.as_bytes()].join(&b'/');
        pax(&[("path", &path), ("linkpath", b"target")]).into_iter().chain([header(kind, b"x", 0)]).collect()
    };
    (directory, make)
}

#[test]
fn links_in_a_deep_directory_do_not_take_its_path_each() {
    let (_, make) = deep();
    let target = [header(b'0', b"target", 0)].into_iter();
    let links = (0..4000).flat_map(move |n| make(b'1', format!("link{n}")));
    let index = within(3 * MIB, || index_of(target.chain(links).chain([end()]))).unwrap();
    let target = index.entries().next().unwrap().0;
    assert_eq!(index.own_nlink(target), 4001);
}

/// A layer with a file of so many stretches of one byte, each behind a hole of one.
fn full_of_holes(stretches: usize) -> (Layer<Vec<u8>>, EntryId) {
    let map: String = (0..stretches).map(|n| format!("{}\n1\n", 2 * n + 1)).collect();
    let mut data = format!("{stretches}\n{map}").into_bytes();
    data.resize(data.len().next_multiple_of(512) + stretches, b'x');
    let extension = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", (2 * stretches + 1).to_string().as_bytes()),
    ]);
    let tar = extension.into_iter().chain(member(b'0', b"holes", data.into())).chain([end()]);
    let layer = Layer::new(index_of(tar).unwrap(), LayerBytes::Memory(Vec::new()), None);
    let entry = layer.index().entries().next().unwrap().0;
    (layer, entry)
}

#[test]
fn looking_for_a_hole_takes_no_memory_for_the_stretches_behind_it() {
    let (layer, entry) = full_of_holes(100_000);
    let first = within(1 << 10, || layer.pieces_from(entry, 7, u64::MAX).take(2).last());
    assert_eq!(first, layer.pieces(entry, 7, 2).last().copied());
    assert_eq!(layer.pieces(entry, 0, u64::MAX).len(), 200_001);
}

#[test]
fn bytes_that_a_file_stores_are_known_without_going_through_its_stretches() {
    let (layer, entry) = full_of_holes(100_000);
    let begun = Instant::now();
    for _ in 0..20_000 {
        assert_eq!(layer.stored_size(entry), 100_000);
    }
    // A sum over all of them takes ten times as long where it takes least.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
