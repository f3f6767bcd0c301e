//! Tests zstd blobs with frames of every length and kind.

use super::*;

#[test]
fn short_zstd_frames_share_a_span() {
    let tar = text(60_000, 14);
    for size in [1, 100, 1000, 3071, 3072, 4000, 5120] {
        for frame in [|part: &[u8]| zstd_frame(part, true), sized_frame] {
            let tar = &tar[..60_000.min(size * 1000)];
            let blob: Vec<u8> = tar.chunks(size).flat_map(frame).collect();
            let all = check(&blob, tar, SMALL);
            assert!(all.iter().all(|span| span.checkpoint == Some(Checkpoint::ZstdFrame)), "{size}");
            assert!(all.len() <= tar.len() / 2500 + 1, "{size}: {}", all.len());
        }
    }
}

#[test]
fn zstd_frame_longer_than_a_span_has_no_checkpoints() {
    let tar = text(40_000, 15);
    for (first, second, resumable) in
        [(5121, 0, 0), (40_000, 0, 0), (1000, 6000, 1), (1000, 5120, 2), (6000, 100, 1)]
    {
        let (a, rest) = tar.split_at(first);
        let b = &rest[..second];
        for frame in [|part: &[u8]| zstd_frame(part, true), sized_frame] {
            let blob = [frame(a), if second > 0 { frame(b) } else { vec![] }].concat();
            let all = check(&blob, &tar[..first + second], SMALL);
            let count = all.iter().filter(|span| span.checkpoint.is_some()).count();
            assert_eq!(count, resumable, "{first}, {second}");
            let pieces: usize =
                all.iter().filter(|span| span.checkpoint.is_none()).map(|span| span.bytes.len()).sum();
            assert_eq!(pieces, if first > 5120 { first } else { 0 } + if second > 5120 { second } else { 0 });
        }
    }
}

#[test]
fn skippable_and_empty_frames_are_ignored() {
    let tar = text(8000, 16);
    let (a, b) = tar.split_at(2000);
    let (skip, empty) = (skippable(3000), zstd_frame(b"", true));
    for blob in [
        [&skip[..], &zstd_frame(&tar, true)].concat(),
        [&zstd_frame(&tar, true)[..], &skip, &skip].concat(),
        [
            &zstd_frame(a, true)[..],
            &skip,
            &empty,
            &zstd_frame(&b[..2000], true),
            &zstd_frame(&b[2000..], true),
        ]
        .concat(),
        [&empty[..], &skip.repeat(20), &zstd_frame(a, true), &skip.repeat(20), &zstd_frame(b, false), &empty]
            .concat(),
    ] {
        let all = check(&blob, &tar, SMALL);
        assert!(all.iter().all(|span| span.blob.end - span.blob.start < 25_000));
    }
    assert!(check(&empty, b"", SMALL).is_empty());
    let cut = &skip[..3007];
    let blob = [&zstd_frame(a, true)[..], cut].concat();
    assert!(matches!(spans(&blob, SMALL, 60), Err(LayerError::Truncated { part: "skippable frame", .. })));
}

#[test]
fn zstd_frame_of_empty_blocks_has_no_checkpoint() {
    // A frame with a window of 1 KiB: raw blocks of 0 bytes, then one of 5.
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0];
    blob.extend_from_slice(&[0, 0, 0].repeat(10_000));
    blob.extend_from_slice(&[5 << 3 | 1, 0, 0]);
    blob.extend_from_slice(b"hello");
    let all = check(&blob, b"hello", SMALL);
    assert_eq!(all[0].checkpoint, None);
}

#[test]
fn zstd_frame_with_large_window_or_dictionary_is_refused() {
    let rest = [1, 0, 0];
    let window = |exponent: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3][..], &rest].concat();
    assert!(check(&window(17), b"", SMALL).is_empty());
    for (blob, message) in [
        (window(18), "zstd: frame at byte 0: window of 268435456 bytes exceeds the limit of 134217728 bytes"),
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 0, 0, 8][..], &rest].concat(),
            "zstd: frame at byte 0: window of 134217729 bytes exceeds the limit of 134217728 bytes",
        ),
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 2, 0, 0x34, 0x12][..], &rest].concat(),
            "zstd: frame at byte 0: requires dictionary 4660, and dictionaries are not supported",
        ),
    ] {
        assert_eq!(spans(&blob, SMALL, 3).unwrap_err().to_string(), message);
    }
}
