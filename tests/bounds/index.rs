//! The memory and time to build and use the index of a layer that consists of metadata.

use std::io::sink;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{
    BuildError, BuildOptions, EntryId, Index, Layer, LayerBytes, ReadBlob, TABLES_MAX, build,
};
use rcx_imagefs::layer::TarOffset;

use crate::memory::within;
use crate::stream::{Stream, end, header, member, pax};

const MIB: usize = 1 << 20;

/// A blob that is not kept, because it is made while it is read. The hashes of its spans are wrong.
pub(crate) struct Discarded;

impl ReadBlob for Discarded {
    fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// Builds the index of a tar, with a placeholder for the layer's digest.
pub(crate) fn index_of(tar: impl IntoIterator<Item = Bytes>) -> Result<Index<Vec<u8>>, BuildError> {
    let (built, _) = build(Stream::new(tar), &BuildOptions::default(), || Ok(sink()))?;
    Ok(Index::open(built.finish(&LayerDigest::new(Digest::of(b"")), &Discarded)?).unwrap())
}

#[test]
fn metadata_beyond_the_limit_is_refused_with_entry_and_offset_in_twice_its_memory() {
    // Long link targets are the most metadata for their bytes of tar: some 130,000 entries reach the limit.
    let target = Bytes::from(vec![b't'; 4095]);
    let tar = (0..1_000_000).flat_map(|n| {
        let [head, data, padding] = member(b'K', b"././@LongLink", target.clone());
        [head, data, padding, header(b'2', format!("link-{n:06}").as_bytes(), 0)]
    });
    let error = within(2 * TABLES_MAX + 64 * MIB, || index_of(tar)).unwrap_err();
    let BuildError::TooLarge { offset, path, quantity } = &error else { panic!("{error}") };
    // An entry takes 20 bytes, 11 for its name, and 2 plus 4095 for its target with its length.
    let fits = (TABLES_MAX - 100) / (20 + 11 + 2 + 4095);
    assert_eq!(*path, format!("link-{fits:06}").into_bytes().into());
    assert_eq!(*offset, TarOffset::new(fits as u64 * (512 + 4096 + 512) + 512 + 4096));
    assert_eq!(*quantity, "metadata of all entries together (512 MiB)");
    let expected = format!(
        "entry `link-{fits:06}` at offset {offset} of the tar: {quantity} exceeds the limit of an index"
    );
    assert_eq!(error.to_string(), expected);
}

/// Returns the path of a directory, almost 4 KiB long, and a function that makes the headers of an empty entry in it.
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
fn hard_links_in_a_deep_directory_do_not_each_store_its_path() {
    let (_, make) = deep();
    let target = [header(b'0', b"target", 0)].into_iter();
    let links = (0..4000).flat_map(move |n| make(b'1', format!("link{n}")));
    let index = within(3 * MIB, || index_of(target.chain(links).chain([end()]))).unwrap();
    let target = index.entries().next().unwrap().0;
    assert_eq!(index.own_nlink(target), 4001);
}

/// Returns a layer with a sparse file of `segments` segments of one byte, with a hole of one byte before each.
fn layer_full_of_holes(segments: usize) -> (Layer<Vec<u8>>, EntryId) {
    let map: String = (0..segments).map(|n| format!("{}\n1\n", 2 * n + 1)).collect();
    let mut data = format!("{segments}\n{map}").into_bytes();
    data.resize(data.len().next_multiple_of(512) + segments, b'x');
    let extension = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", (2 * segments + 1).to_string().as_bytes()),
    ]);
    let tar = extension.into_iter().chain(member(b'0', b"holes", data.into())).chain([end()]);
    let layer = Layer::new(index_of(tar).unwrap(), LayerBytes::Memory(Vec::new()), None);
    let entry = layer.index().entries().next().unwrap().0;
    (layer, entry)
}

#[test]
fn seeking_a_hole_allocates_nothing_for_the_segments_after_it() {
    let (layer, entry) = layer_full_of_holes(100_000);
    let first = within(1 << 10, || layer.pieces_from(entry, 7, u64::MAX).take(2).last());
    assert_eq!(first, layer.pieces(entry, 7, 2).last().copied());
    assert_eq!(layer.pieces(entry, 0, u64::MAX).len(), 200_001);
}

#[test]
fn stored_size_of_a_sparse_file_does_not_iterate_over_its_segments() {
    let (layer, entry) = layer_full_of_holes(100_000);
    let begun = Instant::now();
    for _ in 0..20_000 {
        assert_eq!(layer.stored_size(entry), 100_000);
    }
    // Even on the fastest machine, summing up all segments takes ten times as long.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
