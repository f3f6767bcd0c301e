//! The walk over a tar: what it remembers does not grow with what the tar says.

use bytes::Bytes;
use rcx_imagefs::layer::{EntryKind, FileContent, TarError, TarFault, TarWalk};

use crate::memory::within;
use crate::stream::{Stream, end, header, member, padding, pax};

const MIB: usize = 1 << 20;

/// Walks to the end; the number of entries.
fn count(chunks: impl IntoIterator<Item = Bytes>) -> Result<u64, TarError> {
    let mut walk = TarWalk::new(Stream::new(chunks));
    let mut entries = 0;
    while walk.next_entry()?.is_some() {
        entries += 1;
    }
    Ok(entries)
}

/// A sparse file of PAX 1.0: its map has a line for the number of stretches, then these; `size` bytes with holes.
fn sparse(
    stretches: u64,
    lines: impl Iterator<Item = Bytes>,
    lines_len: u64,
    size: u64,
    data: &'static [u8],
) -> impl Iterator<Item = Bytes> {
    let first = Bytes::from(format!("{stretches}\n"));
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
fn ten_million_stretches_of_a_sparse_file_are_refused_within_their_memory() {
    // 24 bytes each, up to the limit of a million, and half as much for the vector that grew into this one.
    let lines = (0..10_000_000 / 500).map(|part| {
        (part * 500..part * 500 + 500).map(|n| format!("{}\n1\n", 2 * n)).collect::<String>().into()
    });
    let tar = sparse(10_000_000, lines, 10_000_000 * 11, 20_000_000, b"");
    let error = within(40 * MIB, || count(tar)).unwrap_err();
    assert!(matches!(error.fault, TarFault::ManySegments), "{error}");
    let told = "tar offset 1024, entry `sparse`: sparse map has more than 1000000 segments";
    assert_eq!(error.to_string(), told);
}

#[test]
fn ten_million_empty_stretches_of_a_sparse_file_take_no_memory() {
    let lines = std::iter::repeat_n(Bytes::from("0\n0\n".repeat(1000)), 10_000);
    let tar = sparse(10_000_000, lines, 10_000_000 * 4, 5, b"");
    assert_eq!(within(MIB, || count(tar)).unwrap(), 1);
}

#[test]
fn ten_million_stretches_in_an_old_gnu_map_are_refused_within_their_memory() {
    let mut first = tar::Header::new_gnu();
    first.set_entry_type(tar::EntryType::GNUSparse);
    first.set_path("old").unwrap();
    first.set_mode(0o644);
    first.set_size(10_000_000);
    let gnu = first.as_gnu_mut().unwrap();
    for (at, stretch) in gnu.sparse.iter_mut().enumerate() {
        stretch.offset.copy_from_slice(format!("{:011o}\0", 2 * at).as_bytes());
        stretch.numbytes.copy_from_slice(b"00000000001\0");
    }
    gnu.isextended = [1];
    gnu.realsize.copy_from_slice(b"00777777777\0");
    first.set_cksum();
    let first = Bytes::copy_from_slice(first.as_bytes());
    let blocks = (0..10_000_000_u64 / 21).map(|block| {
        let mut bytes = Vec::with_capacity(512);
        for stretch in block * 21 + 4..block * 21 + 25 {
            bytes.extend_from_slice(format!("{:011o}\0{:011o}\0", 2 * stretch, 1).as_bytes());
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
fn sparse_file_of_2_to_the_60_bytes_is_metadata() {
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
fn four_gib_of_pax_headers_take_the_memory_of_one() {
    // As many before each file as may be, each as long as it may be.
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
    // The names that fit one header come to more than the kernel lists for one file, so this is refused in the end.
    let names: Vec<String> = (0..35_000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let header_and_data = pax(&records);
    assert!((MIB - MIB / 8..MIB).contains(&header_and_data[1].len()));
    let tar = std::iter::repeat_n(header_and_data, 32).flatten().chain([header(b'0', b"file", 0)]);
    let error = within(16 * MIB, || count(tar)).unwrap_err();
    assert!(matches!(error.fault, TarFault::Xattr(_)), "{error}");
}

#[test]
fn nested_long_names_take_the_memory_of_one_and_a_hundred_are_refused() {
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
