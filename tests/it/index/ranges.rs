//! The ranges of the blob from which spans are decoded, and their hashes.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use rcx_imagefs::index::{BlobRange, RangeKind, SpanId};
use rcx_imagefs::layer::TarOffset;

use super::*;

/// A reader that returns at most a fixed number of bytes at once.
struct ChunkedReader<'a>(&'a [u8], usize);

impl Read for ChunkedReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl BufRead for ChunkedReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar of some megabytes, so that checkpoints are dropped and zstd frames have several blocks.
fn large_sample() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in 0..15 {
        let bytes = content(file, 200_000);
        let mut header = header(tar::EntryType::Regular, 200_000);
        archive.append_data(&mut header, format!("file{file}"), bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Blobs of every codec and form, with the tars in them.
fn blobs() -> Vec<(&'static str, Vec<u8>, Vec<u8>, BuildOptions)> {
    let (tar, large) = (sample(), large_sample());
    let frames: Vec<u8> = tar.chunks(1500).flat_map(zstd_frame).collect();
    let long_frames: Vec<u8> = large.chunks(1_000_000).flat_map(zstd_frame).collect();
    let long_and_short = [zstd_frame(&large), zstd_frame(&tar[..1000]), zstd_frame(&large)].concat();
    let options = BuildOptions::default;
    vec![
        ("tar", tar.clone(), tar.clone(), small()),
        ("gzip", gzip(&tar), tar.clone(), small()),
        ("gzip of many members", tar.chunks(1000).flat_map(gzip).collect(), tar.clone(), small()),
        ("thinned gzip", gzip(&large), large.clone(), options()),
        ("zstd of short frames", frames, tar.clone(), small()),
        ("zstd of one frame", zstd::bulk::compress(&tar, 3).unwrap(), tar.clone(), small()),
        ("zstd of long frames", long_frames, large.clone(), options()),
        ("zstd of long frames in small spans", zstd_frame(&large), large.clone(), small()),
        ("zstd of long and short frames", long_and_short, [&large, &tar[..1000], &large].concat(), options()),
    ]
}

fn part<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

/// The ranges of a span's zstd frame up to its own, and where the content of the frame starts in the tar.
fn frame_ranges(index: &Index<Vec<u8>>, span: SpanId) -> (Vec<BlobRange>, u64) {
    let ranges =
        (0..=span.get()).rev().map(|id| (SpanId::new(id), index.blob_range(SpanId::new(id)).unwrap()));
    let mut chain = Vec::new();
    for (id, range) in ranges {
        let kind = range.kind;
        chain.push(range);
        if kind == RangeKind::FrameStart {
            chain.reverse();
            return (chain, index.span_range(id).start);
        }
    }
    panic!("span {span} has no start of its frame");
}

#[test]
fn every_span_is_decoded_from_nothing_but_the_index_and_its_ranges() {
    for (name, blob, tar, options) in blobs() {
        let file = built(&blob, &options).0.finish(&digest_of(&blob), &blob[..]).unwrap();
        let index = Index::open(file.clone()).unwrap();
        let mut framed = 0;
        for span in index.spans() {
            let range = index.blob_range(span).unwrap();
            assert_eq!(range.hash.as_bytes(), blake3::hash(part(&blob, &range.bytes)).as_bytes(), "{name}");
            let content = part(&tar, &index.span_range(span));
            if range.kind == RangeKind::Checkpoint {
                let mut others = vec![0xaa; blob.len()];
                let from = usize::try_from(range.bytes.start).unwrap();
                let bytes = part(&blob, &range.bytes);
                others[from..from + bytes.len()].copy_from_slice(bytes);
                let layer = Layer::new(Index::open(&file[..]).unwrap(), LayerBytes::Memory(others), None);
                assert!(layer.decode_span(span).unwrap() == content, "{name}, span {span}");
                continue;
            }
            framed += 1;
            // Each of these decodes its whole frame so far.
            if framed > 40 && framed % 40 != 0 {
                continue;
            }
            let (ranges, from) = frame_ranges(&index, span);
            let follow = |pair: &[BlobRange]| pair[0].bytes.end == pair[1].bytes.start;
            assert!(ranges.windows(2).all(follow), "{name}, span {span}");
            let fetched: Vec<u8> =
                ranges.iter().flat_map(|range| part(&blob, &range.bytes)).copied().collect();
            let mut decoded = Vec::new();
            // Most frames lack their checksum and further blocks, which is an error, but only after the blocks that are there.
            let _ = zstd::Decoder::with_buffer(&fetched[..]).unwrap().read_to_end(&mut decoded);
            let skipped = usize::try_from(index.span_range(span).start - from).unwrap();
            assert!(decoded[skipped..].starts_with(content), "{name}, span {span}: {}", decoded.len());
            // One block less does not suffice, unless the span before has the same last block.
            let block = 128 << 10;
            assert!(decoded.len() < skipped + content.len() + block, "{name}, span {span}");
        }
        assert_eq!(framed > 0, index.seekable_size() > 0, "{name}");
    }
}

#[test]
fn damage_to_any_range_is_found_by_its_hash_and_names_the_span() {
    for (name, blob, _, options) in blobs().into_iter().filter(|(_, blob, ..)| blob.len() < 100_000) {
        let file = built(&blob, &options).0.finish(&digest_of(&blob), &blob[..]).unwrap();
        for at in (0..blob.len()).step_by(501) {
            let mut damaged = blob.clone();
            damaged[at] ^= 4;
            let layer = Layer::new(Index::open(&file[..]).unwrap(), LayerBytes::Memory(damaged), None);
            for span in layer.index().spans() {
                let range = layer.index().blob_range(span).unwrap();
                match layer.verify_range(span) {
                    Ok(()) => assert!(!range.bytes.contains(&(at as u64)), "{name}, byte {at}, span {span}"),
                    Err(error) => {
                        assert!(range.bytes.contains(&(at as u64)), "{name}, byte {at}, span {span}");
                        assert!(error.to_string().contains(&format!("span {span}")), "{error}");
                        assert_eq!(error.code().as_str(), "damaged");
                    }
                }
            }
        }
    }
}

#[test]
fn index_is_a_function_of_its_blob_however_the_blob_is_read() {
    for (name, blob, _, options) in blobs() {
        let build_in_chunks = |size| {
            let (built, seekable) =
                build(ChunkedReader(&blob, size), &options, || Ok(Vec::<u8>::new())).unwrap();
            (built.finish(&digest_of(&blob), &blob[..]).unwrap(), seekable)
        };
        let first = build_in_chunks(usize::MAX);
        for size in [usize::MAX, 37, 1000, 65_537] {
            assert!(build_in_chunks(size) == first, "{name}, {size} bytes at once");
        }
        // The hashing of several layers at once changes nothing.
        std::thread::scope(|scope| {
            let builds: Vec<_> = (0..4).map(|n| scope.spawn(move || build_in_chunks(5000 + n))).collect();
            assert!(builds.into_iter().all(|build| build.join().unwrap() == first), "{name}");
        });
    }
}

#[test]
fn span_that_continues_no_frame_is_refused() {
    let blob = zstd_frame(&sample());
    let good = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    let record = |span: usize| 256 + span * 88;
    // The kind of the first span; the start of the range of the third.
    for (at, value) in [(record(0) + 28, 5), (record(2) + 8, 1)] {
        let mut hostile = good.clone();
        hostile[at] = value;
        let checksum = Digest::of(&hostile[48..]);
        hostile[16..48].copy_from_slice(checksum.as_bytes());
        let error = Index::open(hostile).unwrap_err().to_string();
        assert!(error.contains("span"), "{error}");
    }
}

#[test]
fn slices_of_pieces_name_the_span_of_each_byte() {
    let tar = sample();
    let layer = layer_of(&gzip(&tar), &small());
    let index = layer.index();
    assert!(index.span_count() > 5);
    let data = |from, len| Piece::Data { tar: TarOffset::new(from), len };
    let pieces = [data(100, 20_000), Piece::Hole { len: 300 }, data(7, 0), data(4000, 1), data(3, 9000)];
    let mut expected = Vec::new();
    let mut offset = 0;
    for piece in pieces {
        let (Piece::Hole { len } | Piece::Data { len, .. }) = piece;
        if let Piece::Data { tar, .. } = piece {
            let span = |at| index.span_at(TarOffset::new(tar.get() + at)).unwrap();
            expected.extend((0..len).map(|at| (offset + at, span(at))));
        }
        offset += len;
    }
    let slices: Vec<_> = index.span_slices(pieces.into_iter()).collect();
    let bytes =
        slices.iter().flat_map(|slice| (slice.offset..slice.offset + slice.len).map(|at| (at, slice.span)));
    assert_eq!(bytes.collect::<Vec<_>>(), expected);
    // The bytes behind the tar are in no span.
    assert_eq!(index.span_slices([data(index.tar_size(), 10)].into_iter()).count(), 0);
}
