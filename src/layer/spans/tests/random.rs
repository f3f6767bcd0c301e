//! Tests with random blobs.

use proptest::prelude::*;

use super::*;

/// Parts of a tar: kind, length and seed of each.
type TarParts = Vec<(u8, usize, u64)>;

fn parts() -> impl Strategy<Value = TarParts> {
    prop::collection::vec((0u8..4, 0usize..30_000, any::<u64>()), 0..6)
}

/// Concatenates zeros, noise, text and repetitions of earlier bytes.
fn build_tar(parts: TarParts) -> Vec<u8> {
    let mut tar: Vec<u8> = Vec::new();
    for (kind, len, seed) in parts {
        match kind {
            0 => tar.resize(tar.len() + len, 0),
            1 => tar.extend(noise(len / 3)),
            2 => tar.extend(text(len, seed)),
            _ => {
                let from = usize::try_from(seed % (tar.len() as u64 + 1)).unwrap();
                let to = (from + len).min(tar.len());
                tar.extend_from_within(from..to);
            }
        }
    }
    tar
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_gzip_blobs_decode_again(
        members in prop::collection::vec((parts(), 0u32..10, prop::collection::vec(0usize..40_000, 0..3)), 1..4),
        target in 256usize..40_000, more in 0usize..8000,
    ) {
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for (parts, level, mut flushes) in members {
            let bytes = build_tar(parts);
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
            let mut done = 0;
            flushes.sort_unstable();
            for at in flushes.into_iter().filter(|at| *at < bytes.len()) {
                encoder.write_all(&bytes[done..at]).unwrap();
                encoder.flush().unwrap();
                done = at;
            }
            encoder.write_all(&bytes[done..]).unwrap();
            blob.extend(encoder.finish().unwrap());
            tar.extend(bytes);
        }
        check(&blob, &tar, SpanLimits { target, max: (target + more).max(1024) });
    }

    #[test]
    fn random_zstd_blobs_decode_again(
        frames in prop::collection::vec((parts(), any::<bool>(), 0u8..4), 1..5),
        target in 256usize..40_000, more in 0usize..8000,
    ) {
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for (parts, checksum, kind) in frames {
            let bytes = build_tar(parts);
            blob.extend(match kind {
                0 => sized_frame(&bytes),
                _ => zstd_frame(&bytes, checksum),
            });
            if kind == 3 {
                blob.extend(skippable(u32::try_from(bytes.len() % 777).unwrap()));
            }
            tar.extend(bytes);
        }
        check(&blob, &tar, SpanLimits { target, max: (target + more).max(1024) });
    }

    #[test]
    fn random_bytes_never_panic(mut blob in prop::collection::vec(any::<u8>(), 0..3000), kind in 0u8..3) {
        let start: &[u8] = match kind {
            0 => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0],
            1 => &[0x28, 0xb5, 0x2f, 0xfd],
            _ => &[],
        };
        blob.splice(0..0, start.iter().copied());
        let _ = spans(&blob, SMALL, 64);
    }
}
