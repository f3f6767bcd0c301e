//! The memory of the walk over a tar stays bounded, whatever the headers declare.

use bytes::Bytes;
use rcx_imagefs::layer::{EntryKind, FileContent, TarError, TarFault, TarWalk};

use crate::memory::within;
use crate::stream::{Stream, end, header, member, padding, pax};

const MIB: usize = 1 << 20;

/// Walks to the end of a tar and returns the number of entries.
fn count(chunks: impl IntoIterator<Item = Bytes>) -> Result<u64, TarError> {
    let mut walk = TarWalk::new(Stream::new(chunks));
    let mut entries = 0;
    while walk.next_entry()?.is_some() {
        entries += 1;
    }
    Ok(entries)
}

/// Returns the tar of a sparse file in PAX 1.0 format. Its map has a line with the number of segments, then `lines`, which are
/// `lines_len` bytes long. With its holes, the file has `size` bytes.
fn sparse(
    segments: u64,
    lines: impl Iterator<Item = Bytes>,
    lines_len: u64,
    size: u64,
    data: &'static [u8],
) -> impl Iterator<Item = Bytes> {
    let first = Bytes::from(format!("{segments}\n"));
    let map = first.len() as u64 + lines_len;
    let stored = map.next_multiple_of(512) + data.len() as u64;
    let extension = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", size.to_string().as_bytes()),
        ("size", stored.to_string().as_bytes()),
    ]);
    let behind = [padding(map), Bytes::from_static(data), padding(data.len() as u64), end()];
    extension.into_iter().chain([header(b'0', b"sparse", 0), first]).chain(lines).chain(behind)
}

#[test]
fn ten_million_segments_of_a_pax_sparse_file_are_refused_within_40_mib() {
    // Each takes 24 bytes, up to the limit of a million. The smaller vector before the last reallocation adds half as much.
    let lines = (0..10_000_000 / 500).map(|part| {
        (part * 500..part * 500 + 500).map(|n| format!("{}\n1\n", 2 * n)).collect::<String>().into()
    });
    let tar = sparse(10_000_000, lines, 10_000_000 * 11, 20_000_000, b"");
    let error = within(40 * MIB, || count(tar)).unwrap_err();
    assert!(matches!(error.fault, TarFault::ManySegments), "{error}");
    let expected = "tar offset 1024, entry `sparse`: sparse map has more than 1000000 segments";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn ten_million_empty_segments_of_a_sparse_file_take_no_memory() {
    let lines = std::iter::repeat_n(Bytes::from("0\n0\n".repeat(1000)), 10_000);
    let tar = sparse(10_000_000, lines, 10_000_000 * 4, 5, b"");
    assert_eq!(within(MIB, || count(tar)).unwrap(), 1);
}

#[test]
fn ten_million_segments_of_an_old_gnu_sparse_file_are_refused_within_40_mib() {
    let mut first = tar::Header::new_gnu();
    first.set_entry_type(tar::EntryType::GNUSparse);
    first.set_path("old").unwrap();
    first.set_mode(0o644);
    first.set_size(10_000_000);
    let gnu = first.as_gnu_mut().unwrap();
    for (at, segment) in gnu.sparse.iter_mut().enumerate() {
        segment.offset.copy_from_slice(format!("{:011o}\0", 2 * at).as_bytes());
        segment.numbytes.copy_from_slice(b"00000000001\0");
    }
    gnu.isextended = [1];
    gnu.realsize.copy_from_slice(b"00777777777\0");
    first.set_cksum();
    let first = Bytes::copy_from_slice(first.as_bytes());
    let blocks = (0..10_000_000_u64 / 21).map(|block| {
        let mut bytes = Vec::with_capacity(512);
        for segment in block * 21 + 4..block * 21 + 25 {
            bytes.extend_from_slice(format!("{:011o}\0{:011o}\0", 2 * segment, 1).as_bytes());
        }
        bytes.resize(512, 0);
        bytes[504] = 1;
        Bytes::from(bytes)
    });
    let error = within(40 * MIB, || count([first].into_iter().chain(blocks))).unwrap_err();
    assert!(matches!(error.fault, TarFault::ManySegments), "{error}");
    assert!(error.to_string().starts_with("tar offset 0, entry `old`: "), "{error}");
}

#[test]
fn sparse_file_of_2_to_the_60_bytes_takes_no_memory_for_its_hole() {
    let line = Bytes::from(format!("{}\n4\n", (1_u64 << 60) - 4));
    let length = line.len() as u64;
    let mut walk = TarWalk::new(Stream::new(sparse(1, [line].into_iter(), length, 1 << 60, b"data")));
    let entry = within(MIB, || walk.next_entry()).unwrap().unwrap();
    let EntryKind::Regular { size, content: FileContent::Sparse(segments) } = entry.kind else {
        panic!("{entry:?}")
    };
    assert_eq!((size, segments.len(), segments[0].logical), (1 << 60, 1, (1 << 60) - 4));
}

#[test]
fn four_gib_of_pax_headers_take_the_memory_of_a_few() {
    // The most headers that are allowed before a file, each of the maximum length.
    let record = [b"1048576 comment=".to_vec(), vec![b'x'; MIB - 17], b"\n".to_vec()].concat();
    assert_eq!(record.len(), MIB);
    let [head, data, _] = member(b'x', b"PaxHeaders/x", record.into());
    let per_file = 32;
    let files = (4 << 30) / (per_file * MIB) as u64;
    let tar = (0..files).flat_map(move |_| {
        let headers = std::iter::repeat_n([head.clone(), data.clone()], per_file).flatten();
        headers.chain([header(b'0', b"file", 0)])
    });
    let mut walk = TarWalk::new(Stream::new(tar));
    let mut entries = 0;
    within(4 * MIB, || {
        while walk.next_entry().unwrap().is_some() {
            entries += 1
        }
    });
    assert_eq!(entries, files);
    assert!(walk.position().get() > 4 << 30);
}

#[test]
fn pax_headers_full_of_tiny_records_take_a_bounded_multiple_of_their_size() {
    // All names in one header exceed the size of a listxattr result, so that the entry is refused at the end.
    let names: Vec<String> = (0..35_000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let header_and_data = pax(&records);
    assert!((MIB - MIB / 8..MIB).contains(&header_and_data[1].len()));
    let tar = std::iter::repeat_n(header_and_data, 32).flatten().chain([header(b'0', b"file", 0)]);
    let error = within(16 * MIB, || count(tar)).unwrap_err();
    assert!(matches!(error.fault, TarFault::Xattr(_)), "{error}");
}

#[test]
fn up_to_32_extension_headers_take_the_memory_of_a_few_and_more_are_refused() {
    let long = Bytes::from(vec![b'n'; 64 << 10]);
    let records = pax(&[("comment", &vec![b'c'; MIB - 100])]);
    let nested = |count: usize| {
        let kinds = [
            member(b'L', b"././@LongLink", long.clone()),
            member(b'K', b"././@LongLink", long.clone()),
            records.clone(),
        ];
        let last = [member(b'L', b"././@LongLink", "name".into()), member(b'0', b"x", Bytes::new())];
        let before = kinds.into_iter().cycle().take(count - 1);
        before.chain(last).flatten().chain([end()]).collect::<Vec<_>>()
    };
    assert_eq!(within(4 * MIB, || count(nested(32))).unwrap(), 1);
    for many in [33, 100] {
        let error = within(4 * MIB, || count(nested(many))).unwrap_err();
        assert!(matches!(error.fault, TarFault::ManyExtensions), "{error}");
    }
}
