//! Tests damaged archives.

use proptest::prelude::*;

use super::*;

/// Checks what callers of the walk rely on.
fn assert_sound(tar: &[u8]) {
    let Ok(entries) = walk_all(tar) else { return };
    for entry in entries {
        assert!(entry.mode <= 0o7777 && entry.mtime.nsec < 1_000_000_000);
        assert!(entry.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0));
        if let EntryKind::Regular { size, content } = entry.kind {
            let segments = match content {
                FileContent::Contiguous(tar) => vec![Segment { logical: 0, tar, len: size }],
                FileContent::Sparse(segments) => segments,
            };
            let mut end = 0;
            for segment in segments {
                assert!(segment.logical >= end && (segment.len > 0 || size == 0));
                end = segment.logical + segment.len;
                assert!(end <= size && segment.tar.get() + segment.len <= tar.len() as u64);
            }
        }
    }
}

/// Corrects the checksum of every block that may be a header, so that changed headers reach the code behind the check.
fn repair(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), repaired: bool,
    ) {
        let mut tar = archive_of_all_formats();
        for (index, byte) in changes {
            let at = index.index(tar.len());
            tar[at] = byte;
        }
        if repaired {
            repair(&mut tar);
        }
        assert_sound(&tar);
    }

    #[test]
    fn shuffled_blocks_never_panic(order in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let tar = archive_of_all_formats();
        let blocks: Vec<_> = tar.chunks(BLOCK).collect();
        assert_sound(&order.iter().flat_map(|index| index.get(&blocks).to_vec()).collect::<Vec<_>>());
    }
}
