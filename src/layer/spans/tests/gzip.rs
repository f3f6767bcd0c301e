//! Tests gzip blobs with several members and blocks of every kind.

use flate2::GzBuilder;

use super::*;

#[test]
fn gzip_spans_decode_again_alone_and_joined() {
    for level in [0, 1, 6, 9] {
        for tar in [text(300_000, 1), noise(100_000), b"x".to_vec(), text(5120, 2), text(4096, 3)] {
            check(&gzip(&tar, level), &tar, SMALL);
        }
    }
    let tar = text(3_000_000, 4);
    for level in [1, 6] {
        let all = check(&gzip(&tar, level), &tar, SpanLimits::PRODUCTION);
        let longest = all.iter().map(|span| span.bytes.len()).max().unwrap();
        assert!(longest <= SpanLimits::PRODUCTION.max && all.len() <= 2 * 3_000_000 / longest + 2);
    }
}

#[test]
fn long_block_is_cut_between_symbols() {
    let zeros = vec![0; 1_000_000];
    let all = check(&gzip(&zeros, 6), &zeros, SMALL);
    assert!(count_inside_block(&all) > 100);
    assert!(count_inside_block(&check(&gzip(&zeros, 9), &zeros, SpanLimits::PRODUCTION)) > 0);
    // Level 1 writes one block with the fixed codes.
    let tar = text(200_000, 5);
    assert!(count_inside_block(&check(&gzip(&tar, 1), &tar, SMALL)) > 10);
}

#[test]
fn stored_block_is_cut_between_bytes() {
    let tar = noise(150_000);
    let (a, b) = tar.split_at(65_535);
    let (b, c) = b.split_at(65_000);
    let deflate = [stored_block(a, false), stored_block(b, false), stored_block(c, true)].concat();
    let all = check(&member(&deflate, &tar), &tar, SMALL);
    assert!(count_inside_block(&all) > 20);
    let after_stored = all.iter().filter_map(|span| match &span.checkpoint {
        Some(Checkpoint::Deflate { block: Some(block), .. }) => Some(block.stored_before),
        _ => None,
    });
    assert!(after_stored.clone().all(|before| before > 0) && after_stored.max() > Some(60_000));
    check(&member(&deflate, &tar), &tar, SpanLimits::PRODUCTION);
}

#[test]
fn span_that_is_full_at_a_block_end_is_not_cut_inside_the_block() {
    for len in [3071, 3072, 5119, 5120, 5121] {
        let tar = noise(len * 3);
        let parts: Vec<u8> =
            tar.chunks(len).enumerate().flat_map(|(i, part)| stored_block(part, i == 2)).collect();
        let all = check(&member(&parts, &tar), &tar, SMALL);
        assert_eq!(count_inside_block(&all) > 0, len > 5120, "{len}");
    }
}

#[test]
fn members_are_decoded_as_one_tar() {
    let tar = text(60_000, 6);
    for size in [10, 1000, 3072, 5120, 20_000] {
        let blob: Vec<u8> = tar.chunks(size).flat_map(|part| gzip(part, 6)).collect();
        let all = check(&blob, &tar, SMALL);
        let at_member = all.iter().filter(|span| span.checkpoint == Some(Checkpoint::GzipMember)).count();
        assert!(if size < 5121 { at_member == all.len() } else { at_member == 3 }, "{size}: {at_member}");
    }
}

#[test]
fn empty_members_are_accepted() {
    let (empty, tar) = (gzip(b"", 6), text(9000, 7));
    check(&[&empty[..], &gzip(&tar, 6), &empty].concat(), &tar, SMALL);
    check(&[&gzip(&tar[..4000], 6)[..], &empty, &empty, &gzip(&tar[4000..], 6)].concat(), &tar, SMALL);
    assert!(check(&empty, b"", SMALL).is_empty());
}

#[test]
fn flushes_between_blocks_are_accepted() {
    let tar = text(50_000, 8);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    for part in tar.chunks(333) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    check(&encoder.finish().unwrap(), &tar, SMALL);
}

#[test]
fn long_runs_of_empty_blocks_are_left_out_of_spans_and_bounded() {
    let nothing = stored_block(b"", false).repeat(10_000);
    let deflate =
        [nothing.clone(), stored_block(b"a", false), nothing.clone(), nothing, stored_block(b"b", true)];
    let all = check(&member(&deflate.concat(), b"ab"), b"ab", SMALL);
    assert!(all.iter().all(|span| span.blob.end - span.blob.start < 20_000), "{all:?}");
    let nothing = stored_block(b"", false);
    let start = [stored_block(b"a", false), nothing.repeat(4000), stored_block(b"b", false)].concat();
    let endless = member(&[start, nothing.repeat(8_000_000)].concat(), b"ab");
    let error = spans(&endless, SMALL, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("too many empty blocks"), "{error}");
}

#[test]
fn zero_bytes_after_a_member_are_padding() {
    let tar = text(9000, 9);
    let member = gzip(&tar, 6);
    for zeros in [1, 511, 100_000] {
        let padding = vec![0; zeros];
        check(&[&member[..], &padding].concat(), &tar, SMALL);
        let blob = [&member[..], &padding, &member, &padding].concat();
        check(&blob, &tar.repeat(2), SMALL);
        let spans = spans(&blob, SMALL, 1000).unwrap();
        assert!(spans.iter().all(|span| span.blob.end - span.blob.start <= member.len() as u64));
        let garbage = [&member[..], &padding, b"x"].concat();
        assert!(matches!(super::spans(&garbage, SMALL, 1000), Err(LayerError::TrailingGarbage { .. })));
    }
    let empty = gzip(b"", 6);
    check(&[&empty[..], &[0; 600], &member, &[0; 600], &empty, &[0; 600]].concat(), &tar, SMALL);
}

#[test]
fn member_header_may_have_all_optional_fields() {
    let tar = text(9000, 9);
    let builder = GzBuilder::new().extra(vec![7; 65_000]).filename("name").comment("comment").mtime(5);
    let mut encoder = builder.write(Vec::new(), Compression::new(6));
    encoder.write_all(&tar).unwrap();
    let blob = encoder.finish().unwrap();
    check(&blob, &tar, SMALL);
    check(&blob.repeat(2), &tar.repeat(2), SMALL);

    let mut header = vec![0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 255];
    let crc = crc32fast::hash(&header).to_le_bytes();
    header.extend_from_slice(&crc[..2]);
    let mut blob = [header, gzip(&tar, 6)[10..].to_vec()].concat();
    check(&blob, &tar, SMALL);
    blob[10] ^= 1;
    let error = spans(&blob, SMALL, 100).unwrap_err();
    assert_eq!(error.to_string(), "gzip: member header at byte 0: the header checksum does not match");
}

#[test]
fn member_header_with_unknown_features_is_refused() {
    let good = gzip(b"abc", 6);
    let mut reserved = good.clone();
    reserved[3] |= 0x20;
    let mut method = good.clone();
    method[2] = 7;
    let mut endless = good.clone();
    endless[3] |= 8;
    endless.splice(10..10, vec![b'n'; 200_000]);
    for (blob, message) in [
        (reserved, "gzip: member header at byte 0: reserved flags are set"),
        (method, "gzip: member header at byte 0: the compression method is not deflate"),
        (endless, "gzip: member header at byte 0: the header is longer than 128 KiB"),
    ] {
        assert_eq!(spans(&blob, SMALL, 100).unwrap_err().to_string(), message);
    }
}
