//! Decompression bombs: small blobs that decode to gigabytes. Decoding stops at the limits, and an index of a bomb stays small.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use rcx_imagefs::index::{BuildError, BuildOptions, LayerLimits, build};

use crate::memory::within;
use crate::stream::{Stream, end, header};

pub(crate) const MIB: u64 = 1 << 20;

/// Compresses bytes to deflate blocks that end at a byte boundary and do not refer to earlier data.
fn flushed_blocks(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    let status = Compress::new(Compression::best(), false).compress_vec(bytes, &mut out, FlushCompress::Full);
    assert_eq!(status.unwrap(), Status::Ok);
    out
}

fn trailer(crc: &crc32fast::Hasher, length: u64) -> [u8; 8] {
    let length = u32::try_from(length & 0xffff_ffff).unwrap();
    let [a, b, c, d] = crc.clone().finalize().to_le_bytes();
    let [e, f, g, h] = length.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// A gzip header without optional fields.
const MEMBER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The final block of a deflate stream: empty, with fixed codes.
const LAST: [u8; 2] = [0x03, 0x00];

/// Returns a gzip blob of a tar with one file of `mib` MiB of zeros, as one member or as one member for each MiB.
pub(crate) fn gzip(mib: u64, members: bool) -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    let parts = [&header(b'0', b"zeros", mib * MIB)[..], &zeros, &end()[..]];
    let packed = parts.map(|part| (flushed_blocks(part), part));
    let order = std::iter::once(0).chain(std::iter::repeat_n(1, usize::try_from(mib).unwrap())).chain([2]);
    let (mut blob, mut crc, mut length) = (MEMBER.to_vec(), crc32fast::Hasher::new(), 0);
    let part_crcs = parts.map(|part| {
        let mut crc = crc32fast::Hasher::new();
        crc.update(part);
        crc
    });
    for (position, part) in order.enumerate() {
        if members && position > 0 {
            blob.extend_from_slice(&LAST);
            blob.extend_from_slice(&trailer(&crc, length));
            blob.extend_from_slice(&MEMBER);
            (crc, length) = (crc32fast::Hasher::new(), 0);
        }
        blob.extend_from_slice(&packed[part].0);
        crc.combine(&part_crcs[part]);
        length += packed[part].1.len() as u64;
    }
    blob.extend_from_slice(&LAST);
    blob.extend_from_slice(&trailer(&crc, length));
    blob
}

/// Returns a zstd blob of the same tar, in frames of `frame_mib` MiB. Its RLE blocks repeat one byte 131,072 times each.
pub(crate) fn zstd(mib: u64, frame_mib: u64) -> Vec<u8> {
    let block = |kind: u32, size: usize, last: bool| {
        let header = u32::try_from(size).unwrap() << 3 | kind << 1 | u32::from(last);
        header.to_le_bytes()[..3].to_vec()
    };
    // A window of 128 KiB allows blocks of that length.
    let magic = [0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    let raw = |bytes: &[u8]| [&magic[..], &block(0, bytes.len(), true), bytes].concat();
    let run = |last| [block(1, 128 << 10, last), vec![0]].concat();
    let zeros = |mib: u64| {
        let runs = usize::try_from(mib * 8 - 1).unwrap();
        [magic.to_vec(), run(false).repeat(runs), run(true)].concat()
    };
    let frames = zeros(frame_mib).repeat(usize::try_from(mib / frame_mib).unwrap());
    [raw(&header(b'0', b"zeros", mib * MIB)), frames, raw(&end())].concat()
}

/// Returns one zstd frame that repeats a MiB of noise. A single span of it is incompressible, so that its seekable form is
/// as long as the tar.
pub(crate) fn noise(mib: u64) -> Vec<u8> {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(1 << 20)
    .collect();
    let mut frame = zstd::Encoder::new(Vec::new(), 1).unwrap();
    frame.long_distance_matching(true).unwrap();
    frame.window_log(22).unwrap();
    frame.write_all(&header(b'0', b"noise", mib * MIB)).unwrap();
    (0..mib).for_each(|_| frame.write_all(&noise).unwrap());
    frame.write_all(&end()).unwrap();
    frame.finish().unwrap()
}

/// A writer that counts bytes and discards them.
#[derive(Default)]
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Builds an index of a blob within limits. Returns the sizes of the tar and the index, and the size of the seekable form.
fn index_within(blob: Vec<u8>, limits: LayerLimits) -> (Result<(u64, usize), BuildError>, u64) {
    let options = BuildOptions { tar_limit: limits.of_blob(blob.len() as u64), ..BuildOptions::default() };
    let mut written = Counter::default();
    let built = build(Stream::new([Bytes::from(blob)]), &options, || Ok(&mut written));
    let size = built.and_then(|(built, _)| {
        let digest = rcx_imagefs::image::LayerDigest::new(rcx_imagefs::image::Digest::of(b""));
        Ok((built.tar_size(), built.finish(&digest, &crate::index::Discarded)?.len()))
    });
    (size, written.0)
}

/// Limits that do not restrict a layer of 1 GiB, whatever its compression ratio.
const LOOSE: LayerLimits = LayerLimits { tar_bytes: 8 << 30, ratio: u64::MAX };

#[test]
fn memory_and_index_of_a_bomb_grow_by_at_most_a_thousandth_of_its_tar() {
    // 16 MiB for decoding as such, and 200 bytes for each span of 256 KiB.
    let spans = 1024 * 4;
    for bomb in [|mib| gzip(mib, false), |mib| gzip(mib, true), |mib| zstd(mib, mib), |mib| zstd(mib, 1)] {
        let blob = bomb(1024);
        assert!(blob.len() < 2 << 20, "{} bytes", blob.len());
        let length = blob.len();
        let (result, written) = within((16 << 20) + 200 * spans, || index_within(blob, LOOSE));
        let (tar, index) = result.unwrap();
        assert_eq!(tar, 1024 * MIB + 1536);
        assert!(index < 100 * spans, "the index of a blob of {length} bytes takes {index} bytes");
        assert!(written < MIB, "the seekable form takes {written} bytes");
    }
}

#[test]
fn tar_beyond_the_size_limit_is_refused_with_the_key_that_raises_it() {
    let limits = LayerLimits { tar_bytes: 64 * MIB, ratio: u64::MAX };
    for blob in [gzip(65, false), gzip(65, true), zstd(65, 65), zstd(65, 1), noise(65)] {
        let length = blob.len() as u64;
        let (result, written) = index_within(blob, limits);
        let error = result.unwrap_err();
        let BuildError::TooLong { at, .. } = &error else { panic!("{error}") };
        assert!(at.get() <= length);
        assert!(written <= 64 * MIB + MIB, "{written} bytes of the seekable form were written");
        let expected = format!(
            "tar is longer than 67108864 bytes (`layer-size-mib` in `[limits]` of the configuration), at byte {at}"
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    for blob in [gzip(63, false), zstd(63, 63), noise(63)] {
        index_within(blob, limits).0.unwrap();
    }
}

#[test]
fn tar_beyond_the_ratio_limit_is_refused_from_one_gibibyte_on() {
    let default = LayerLimits::default();
    let (result, _) = index_within(gzip(1023, false), default);
    assert_eq!(result.unwrap().0, 1023 * MIB + 1536);
    for blob in [gzip(1024, true), zstd(1024, 1024)] {
        let error = index_within(blob, default).0.unwrap_err();
        assert!(matches!(error, BuildError::TooLong { .. }), "{error}");
        let expected = "tar is longer than 1073741824 bytes, the limit for a tar of more than 200 times the size of its \
                    blob (`layer-ratio` in `[limits]` of the configuration), at byte ";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
