//! The index: it agrees with the blob that it was built from, and damaged files are detected.

mod ranges;
mod versions;

use std::io::{Cursor, Write as _};

use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{
    BuildOptions, BuiltIndex, Index, IndexError, IndexedKind, Layer, LayerBytes, Piece, build,
};
use rcx_imagefs::layer::SpanLimits;

/// Options with spans so small that even small files cross them.
fn small() -> BuildOptions {
    BuildOptions { limits: SpanLimits { target: 4096, max: 5120 }, thin: false, ..BuildOptions::default() }
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

/// Bytes with a moderate compression ratio.
fn content(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(format!("line {:03} of {seed}\n", (state >> 20) % 500).as_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tar with an entry of each kind.
fn sample() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut dir = header(tar::EntryType::Directory, 0);
    dir.set_mode(0o755);
    archive.append_data(&mut dir, "etc/", std::io::empty()).unwrap();
    for (name, length) in [("etc/empty", 0), ("etc/short", 10), ("etc/long", 40_000)] {
        let bytes = content(7, length);
        archive
            .append_data(&mut header(tar::EntryType::Regular, length as u64), name, bytes.as_slice())
            .unwrap();
    }
    let mut link = header(tar::EntryType::Symlink, 0);
    archive.append_link(&mut link, "etc/link", "../target of/it").unwrap();
    archive.append_link(&mut header(tar::EntryType::Link, 0), "hard", "etc/long").unwrap();
    archive.append_link(&mut header(tar::EntryType::Link, 0), "hard2", "hard").unwrap();
    let mut device = header(tar::EntryType::Char, 0);
    device.set_device_major(5).unwrap();
    device.set_device_minor(300_000).unwrap();
    archive.append_data(&mut device, "dev/tty", std::io::empty()).unwrap();
    archive.append_data(&mut header(tar::EntryType::Fifo, 0), "pipe", std::io::empty()).unwrap();
    archive
        .append_pax_extensions([("SCHILY.xattr.user.b", &b"2"[..]), ("SCHILY.xattr.user.a", b"1")])
        .unwrap();
    archive.append_data(&mut header(tar::EntryType::Regular, 3), "with xattrs", &b"abc"[..]).unwrap();
    for name in ["gone/.wh.file", "opaque/.wh..wh..opq"] {
        archive.append_data(&mut header(tar::EntryType::Regular, 0), name, std::io::empty()).unwrap();
    }
    archive.append_data(&mut header(tar::EntryType::Regular, 9), "last", &b"last file"[..]).unwrap();
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest_of(blob: &[u8]) -> LayerDigest {
    LayerDigest::new(Digest::of(blob))
}

fn built(blob: &[u8], options: &BuildOptions) -> (BuiltIndex, Option<Vec<u8>>) {
    build(Cursor::new(blob), options, || Ok(Vec::new())).unwrap()
}

fn layer_of(blob: &[u8], options: &BuildOptions) -> Layer<Vec<u8>> {
    let (built, seekable) = built(blob, options);
    let index = Index::open(built.finish(&digest_of(blob), blob).unwrap()).unwrap();
    Layer::new(index, LayerBytes::Memory(blob.to_vec()), seekable.map(LayerBytes::Memory))
}

/// Describes everything in an index as text.
fn describe<D: AsRef<[u8]>>(index: &Index<D>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut out = String::new();
    for (id, entry) in index.entries() {
        let kind = match entry.kind() {
            IndexedKind::Symlink { target } => format!("symlink {}", text(target)),
            IndexedKind::Hardlink { target } => format!("hardlink {}", text(target)),
            other => format!("{other:?}"),
        };
        let xattrs: Vec<_> = entry.xattrs().map(|(name, value)| (text(name), text(value))).collect();
        out += &format!(
            "{id} {} {kind} {:o} {}:{} {}.{} {xattrs:?} {}\n",
            text(&entry.path()),
            entry.mode(),
            entry.uid(),
            entry.gid(),
            entry.mtime().sec,
            entry.mtime().nsec,
            index.own_nlink(id),
        );
    }
    for path in index.whiteouts() {
        out += &format!("w {}\n", text(path));
    }
    for path in index.opaques() {
        out += &format!("o {}\n", text(path));
    }
    out
}

const DESCRIPTION: &str = "\
0 etc Directory 755 1000:100 1700000000.0 [] 1
1 etc/empty Regular { size: 0 } 644 1000:100 1700000000.0 [] 1
2 etc/short Regular { size: 10 } 644 1000:100 1700000000.0 [] 1
3 etc/long Regular { size: 40000 } 644 1000:100 1700000000.0 [] 3
4 etc/link symlink ../target of/it 777 1000:100 1700000000.0 [] 1
5 hard hardlink etc/long 644 1000:100 1700000000.0 [] 1
6 hard2 hardlink hard 644 1000:100 1700000000.0 [] 1
7 dev/tty CharDevice { major: 5, minor: 300000 } 644 1000:100 1700000000.0 [] 1
8 pipe Fifo 644 1000:100 1700000000.0 [] 1
9 with xattrs Regular { size: 3 } 644 1000:100 1700000000.0 [(\"user.a\", \"1\"), (\"user.b\", \"2\")] 1
10 last Regular { size: 9 } 644 1000:100 1700000000.0 [] 1
w gone/file
o opaque
";

#[test]
fn index_describes_every_entry_and_marker_of_the_tar() {
    let tar = sample();
    for blob in [tar.clone(), gzip(&tar), zstd::bulk::compress(&tar, 3).unwrap()] {
        assert_eq!(describe(layer_of(&blob, &small()).index()), DESCRIPTION);
    }
}

#[test]
fn every_byte_is_read_back_through_every_codec_and_form() {
    let tar = sample();
    let long = content(7, 40_000);
    let frames: Vec<u8> = tar.chunks(1500).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
    for (name, blob) in [
        ("tar", tar.clone()),
        ("gzip", gzip(&tar)),
        ("gzip of many members", tar.chunks(1000).flat_map(gzip).collect()),
        ("zstd of one frame", zstd::bulk::compress(&tar, 3).unwrap()),
        ("zstd of many frames", frames),
    ] {
        let layer = layer_of(&blob, &small());
        assert!(layer.index().span_count() > 4, "{name}");
        let (long_id, _) = layer.index().entries().find(|(_, entry)| entry.name() == b"long").unwrap();
        for (offset, length) in [(0, 40_000), (1, 1), (4095, 2), (39_999, 10), (12_345, 9_999), (40_000, 1)] {
            let end = 40_000.min(offset + length);
            assert_eq!(
                layer.read(long_id, offset as u64, length).unwrap(),
                long[offset..end],
                "{name} {offset}"
            );
        }
        let all: Vec<u8> = layer.index().spans().flat_map(|span| layer.decode_span(span).unwrap()).collect();
        assert_eq!(all, tar, "{name}");
    }
}

#[test]
fn single_zstd_frame_gets_a_seekable_form() {
    let tar = sample();
    let blob = zstd::bulk::compress(&tar, 3).unwrap();
    let (built, seekable) = built(&blob, &small());
    assert_eq!(built.seekable_size(), seekable.unwrap().len() as u64);
    assert!(built.seekable_size() > 0);
    assert_eq!(built.blob_size(), blob.len() as u64);
}

#[test]
fn every_byte_can_be_read_after_thinning() {
    let mut archive = tar::Builder::new(Vec::new());
    for file in 0..40 {
        let bytes = content(file, 200_000);
        let mut header = header(tar::EntryType::Regular, 200_000);
        archive.append_data(&mut header, format!("file{file}"), bytes.as_slice()).unwrap();
    }
    let tar = archive.into_inner().unwrap();
    let blob = gzip(&tar);
    let layer = layer_of(&blob, &BuildOptions::default());
    let all: Vec<u8> = layer.index().spans().flat_map(|span| layer.decode_span(span).unwrap()).collect();
    assert!(all == tar);
    let finer = layer_of(&blob, &BuildOptions { thin: false, ..BuildOptions::default() });
    assert!(finer.index().span_count() > layer.index().span_count());
    assert!(finer.index().file_size() > layer.index().file_size());
}

#[test]
fn flipped_bit_in_the_blob_is_an_error_and_never_wrong_bytes() {
    let tar = sample();
    for blob in [tar.clone(), gzip(&tar), zstd::bulk::compress(&tar, 3).unwrap()] {
        let (built, seekable) = built(&blob, &small());
        let index = built.finish(&digest_of(&blob), &blob[..]).unwrap();
        for at in (0..blob.len()).step_by(7) {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            let seekable = seekable.clone().map(|bytes| {
                let mut bytes: Vec<u8> = bytes;
                let at = at % bytes.len();
                bytes[at] ^= 0x10;
                LayerBytes::Memory(bytes)
            });
            let layer =
                Layer::new(Index::open(index.clone()).unwrap(), LayerBytes::Memory(damaged), seekable);
            for span in layer.index().spans() {
                let range = layer.index().span_range(span);
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                match layer.decode_span(span) {
                    Ok(bytes) => assert_eq!(bytes, tar[range]),
                    Err(error) => assert!(error.to_string().contains(&digest_of(&blob).to_string())),
                }
            }
        }
    }
}

#[test]
fn flipped_bit_in_the_index_is_an_error_or_changes_nothing() {
    let blob = gzip(&sample());
    let good = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    for at in 0..good.len() {
        for bit in [0, 3, 7] {
            let mut damaged = good.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(index) = Index::open(damaged) {
                assert_eq!(describe(&index), DESCRIPTION, "byte {at}");
            }
        }
    }
    for cut in 0..good.len() {
        assert!(Index::open(&good[..cut]).is_err());
    }
    assert!(Index::open([&good[..], b"x"].concat()).is_err());
}

/// The checksum is corrected, so only validation protects lookups from a hostile file.
#[test]
fn contradictory_records_never_make_a_lookup_panic() {
    let blob = gzip(&sample());
    let good = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    let mut refused = 0;
    for at in 48..good.len() {
        for value in [0, 0x80, 0xff] {
            let mut hostile = good.clone();
            hostile[at] = value;
            let checksum = Digest::of(&hostile[48..]);
            hostile[16..48].copy_from_slice(checksum.as_bytes());
            match Index::open(hostile) {
                Err(_) => refused += 1,
                Ok(index) => {
                    let _ = describe(&index);
                    let layer = Layer::new(index, LayerBytes::Memory(blob.clone()), None);
                    for (id, _) in layer.index().entries() {
                        let _ = layer.pieces(id, 0, 100);
                        let _ = layer.stored_size(id);
                    }
                    for span in layer.index().spans().take(3) {
                        let _ = layer.decode_span(span);
                    }
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn span_longer_than_the_blob_is_an_error_and_is_not_allocated() {
    let blob = gzip(&sample());
    let mut hostile = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    // The length of the blob, and the length of the first span in it.
    hostile[112..120].copy_from_slice(&(1_u64 << 46).to_le_bytes());
    hostile[256 + 16..256 + 24].copy_from_slice(&(1_u64 << 45).to_le_bytes());
    let checksum = Digest::of(&hostile[48..]);
    hostile[16..48].copy_from_slice(checksum.as_bytes());
    let layer = Layer::new(Index::open(hostile).unwrap(), LayerBytes::Memory(blob), None);
    let span = layer.index().spans().next().unwrap();
    assert!(layer.decode_span(span).unwrap_err().to_string().contains("span 0"));
}

#[test]
fn foreign_files_other_versions_and_damage_are_distinguished() {
    let blob = gzip(&sample());
    let good = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    assert!(matches!(Index::open(&b"hello"[..]), Err(IndexError::Foreign)));
    assert!(matches!(Index::open(&blob[..]), Err(IndexError::Foreign)));
    let mut other = good.clone();
    other[8] = 0xfe;
    assert!(matches!(Index::open(other), Err(IndexError::Version(0xfe))));
    let mut other = good;
    other[100] ^= 1;
    assert!(matches!(Index::open(other), Err(IndexError::Checksum)));
}

/// A tar with one sparse file of 20,000 bytes, and the bytes of its two segments.
fn sparse_sample() -> (Vec<u8>, Vec<u8>) {
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_pax_extensions([
            ("GNU.sparse.major", &b"0"[..]),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.size", b"20000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"1000,512,10000,1000"),
        ])
        .unwrap();
    let stored = content(3, 1512);
    archive
        .append_data(&mut header(tar::EntryType::Regular, 1512), "GNUSparseFile/sparse", stored.as_slice())
        .unwrap();
    (archive.into_inner().unwrap(), stored)
}

#[test]
fn holes_are_distinguished_from_data() {
    let (tar, stored) = sparse_sample();
    let layer = layer_of(&tar, &small());
    let (id, entry) = layer.index().entries().next().unwrap();
    assert_eq!((entry.name(), entry.kind()), (&b"sparse"[..], IndexedKind::Regular { size: 20_000 }));
    let mut wanted = vec![0; 20_000];
    wanted[1000..1512].copy_from_slice(&stored[..512]);
    wanted[10_000..11_000].copy_from_slice(&stored[512..]);
    assert!(layer.read(id, 0, 20_000).unwrap() == wanted);
    for (offset, length) in [(999, 2), (1511, 2), (1512, 8488), (10_500, 9_000), (19_999, 5)] {
        let end = 20_000.min(offset + length);
        assert!(layer.read(id, offset as u64, length).unwrap() == wanted[offset..end], "{offset}");
    }
    assert_eq!(layer.stored_size(id), 1512);
    assert!(matches!(layer.pieces(id, 0, 1001)[..], [Piece::Hole { len: 1000 }, Piece::Data { len: 1, .. }]));
}

#[test]
fn segments_of_a_file_that_are_not_adjacent_in_the_tar_are_refused() {
    let (tar, _) = sparse_sample();
    let blob = gzip(&tar);
    let mut hostile = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    // The record of the second segment: its position in the file, then its position in the tar.
    let logical = 10_000_u64.to_le_bytes();
    let record = hostile.windows(8).position(|window| window == logical).unwrap();
    hostile[record + 8] ^= 1;
    let checksum = Digest::of(&hostile[48..]);
    hostile[16..48].copy_from_slice(checksum.as_bytes());
    let error = Index::open(hostile).unwrap_err().to_string();
    assert!(error.contains("extent"), "{error}");
}

/// `fixtures/golden.idx` defines the format. A change of a single byte is a change of the format: increase `VERSION`, then run
/// `RCX_BLESS=1 cargo test golden` to write the files again.
#[test]
fn golden_index_equals_what_build_writes() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (blob_path, index_path) = (dir.join("golden.tar.gz"), dir.join("golden.idx"));
    if std::env::var_os("RCX_BLESS").is_some() {
        let blob = gzip(&sample());
        let index = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
        std::fs::write(&blob_path, blob).unwrap();
        std::fs::write(&index_path, index).unwrap();
    }
    let blob = std::fs::read(blob_path).unwrap();
    let golden = std::fs::read(index_path).unwrap();
    assert_eq!(describe(&Index::open(golden.as_slice()).unwrap()), DESCRIPTION);
    let index = built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap();
    assert!(index == golden, "the index format has changed: see the comment of this test");
}

#[test]
fn index_without_the_files_that_aufs_hides_is_rebuilt() {
    let index_of = |target: &str| {
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_link(&mut header(tar::EntryType::Link, 0), "a", target).unwrap();
        let blob = archive.into_inner().unwrap();
        built(&blob, &small()).0.finish(&digest_of(&blob), &blob[..]).unwrap()
    };
    assert!(Index::open(index_of(".wh..wh.plnk/1.2")).is_ok());
    // An index of version 0.1, which knows neither the file nor its directory.
    let mut old = index_of(".wh..xx.plnk/1.2");
    let at = old.windows(8).position(|bytes| bytes == b".wh..xx.").unwrap();
    old[at..at + 8].copy_from_slice(b".wh..wh.");
    let checksum = Digest::of(&old[48..]);
    old[16..48].copy_from_slice(checksum.as_bytes());
    let error = Index::open(old).unwrap_err();
    assert!(matches!(error, IndexError::Inconsistent { record: "entry", ordinal: 0 }), "{error}");
}
