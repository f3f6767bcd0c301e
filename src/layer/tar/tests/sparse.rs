//! Tests sparse files in all formats.

use super::*;

#[test]
#[rustfmt::skip]
fn old_gnu_sparse_files_are_read() {
    let next = file("next", b"n");
    let many: Vec<(u64, u64)> = (0..50).map(|n| (2 * n + 1, 1)).collect();
    let expected_many = format!("a sparse [{}]\nnext [n]", "_x".repeat(50));
    check(&[
        ("holes", vec![gnu_sparse("a", 4, 8, &[(2, 2), (5, 2), (8, 0)], false).build(), padded(b"abcd".to_vec()), next.clone()], "a sparse [__ab_cd_]\nnext [n]"),
        ("one hole", vec![gnu_sparse("a", 0, 3, &[(3, 0)], false).build(), next.clone()], "a sparse [___]\nnext [n]"),
        ("no hole", vec![gnu_sparse("a", 3, 3, &[(0, 2), (2, 1)], false).build(), padded(b"abc".to_vec()), next.clone()], "a [abc]\nnext [n]"),
        ("empty", vec![gnu_sparse("a", 0, 0, &[], false).build(), next.clone()], "a []\nnext [n]"),
        ("extended", vec![gnu_sparse("a", 50, 100, &many[..4], true).build(), gnu_map_block(&many[4..25], true), gnu_map_block(&many[25..46], true), gnu_map_block(&many[46..], false), padded(vec![b'x'; 50]), next.clone()], &expected_many),
        ("map ends early, more map blocks follow", vec![gnu_sparse("a", 1, 3, &[(1, 1)], true).build(), gnu_map_block(&[], true), gnu_map_block(&[(2, 1)], false), padded(b"x".to_vec()), next.clone()], "a sparse [_x_]\nnext [n]"),
        ("marker with a map", vec![gnu_sparse(".wh.a", 1, 3, &[(1, 1)], true).build(), gnu_map_block(&[], false), padded(b"x".to_vec()), next.clone()], "whiteout a\nnext [n]"),
        ("truncated map", vec![gnu_sparse("a", 1, 3, &[(1, 1)], true).build()], "error: tar offset 512, entry `a`: tar is truncated"),
        ("not GNU", vec![gnu_sparse("a", 0, 3, &[(3, 0)], false).set(257, b"ustar\x0000").build()], "error: tar offset 0, entry `a`: unsupported entry type `S`"),
    ]);
}

#[test]
#[rustfmt::skip]
fn pax_sparse_files_are_read() {
    let next = file("next", b"n");
    let version = |major: &'static [u8], minor: &'static [u8]| [("GNU.sparse.major", major), ("GNU.sparse.minor", minor)];
    let named: [(&str, &[u8]); 2] = [("GNU.sparse.name", b"real"), ("GNU.sparse.realsize", b"8")];
    let records_1_0: Vec<(&str, &[u8])> = [version(b"1", b"0"), named].concat();
    let long_map: String = "60\n".to_owned() + &(0..60).map(|n| format!("{}\n1\n", 1_000_000_000 + 2 * n)).collect::<String>();
    let long_map = padded(long_map.into_bytes());
    assert!(long_map.len() > BLOCK);
    check(&[
        ("0.0", vec![pax(&[("GNU.sparse.size", b"8"), ("GNU.sparse.numblocks", b"3"), ("GNU.sparse.offset", b"2"), ("GNU.sparse.numbytes", b"2"), ("GNU.sparse.offset", b"5"), ("GNU.sparse.numbytes", b"2"), ("GNU.sparse.offset", b"8"), ("GNU.sparse.numbytes", b"0")]), file("a", b"abcd"), next.clone()], "a sparse [__ab_cd_]\nnext [n]"),
        ("0.1", vec![pax(&[("GNU.sparse.size", b"8"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.name", b"real"), ("GNU.sparse.map", b"2,2,5,2")]), file("a", b"abcd"), next.clone()], "real sparse [__ab_cd_]\nnext [n]"),
        ("0.1, one hole", vec![pax(&[("GNU.sparse.size", b"3"), ("GNU.sparse.numblocks", b"0"), ("GNU.sparse.map", b"")]), file("a", b""), next.clone()], "a sparse [___]\nnext [n]"),
        ("1.0", vec![pax(&records_1_0), file("a", &[padded(b"2\n2\n2\n5\n2\n".to_vec()), b"abcd".to_vec()].concat()), next.clone()], "real sparse [__ab_cd_]\nnext [n]"),
        ("1.0, no segments", vec![pax(&records_1_0), file("a", &padded(b"0\n".to_vec())), next.clone()], "real sparse [________]\nnext [n]"),
        ("1.0, PAX size", vec![pax(&[records_1_0.clone(), vec![("size", b"516")]].concat()), RawHeader::new(b'0', "a").size(7).build(), padded([padded(b"1\n2\n4\n".to_vec()), b"abcd".to_vec()].concat()), next.clone()], "real sparse [__abcd__]\nnext [n]"),
        ("unknown version", vec![pax(&version(b"2", b"0")), file("a", b"")], "error: tar offset 1024, entry `a`: malformed sparse map"),
        ("no size", vec![pax(&version(b"1", b"0")), file("a", &padded(b"0\n".to_vec()))], "error: tar offset 1024, entry `a`: malformed sparse map"),
        ("on a directory", vec![pax(&records_1_0), RawHeader::new(b'5', "a").build()], "error: tar offset 1024, entry `real`: malformed sparse map"),
        ("map longer than the data", vec![pax(&records_1_0), file("a", &long_map[..BLOCK])], "error: tar offset 1024, entry `real`: malformed sparse map"),
    ]);
    let big = [("GNU.sparse.major", b"1".as_slice()), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1000000119")];
    let tar = [pax(&big), file("a", &[long_map.clone(), vec![b'x'; 60]].concat()), next].concat();
    let entries = walk_all(&tar).unwrap();
    let EntryKind::Regular { size: 1_000_000_119, content: FileContent::Sparse(segments) } = &entries[0].kind else { panic!("{entries:?}") };
    let data = 1024 + 512 + long_map.len() as u64;
    let expected: Vec<_> = (0..60).map(|n| Segment { logical: 1_000_000_000 + 2 * n, tar: TarOffset::new(data + n), len: 1 }).collect();
    assert_eq!(segments, &expected);
}

#[test]
fn sparse_map_that_contradicts_itself_is_an_error() {
    type Segments = &'static [(u64, u64)];
    let cases: &[(&str, u64, u64, Segments)] = &[
        ("overlap", 4, 10, &[(0, 2), (1, 2)]),
        ("descending", 4, 10, &[(5, 2), (1, 2)]),
        ("beyond the size", 4, 10, &[(7, 4)]),
        ("empty beyond the size", 0, 10, &[(11, 0)]),
        ("empty before the end of the last", 4, 10, &[(2, 4), (3, 0)]),
        ("overflow", 4, 10, &[(u64::MAX >> 31, u64::MAX >> 31)]),
        ("more data than the map has", 5, 10, &[(0, 4)]),
        ("less data than the map has", 3, 10, &[(0, 4)]),
    ];
    for (name, stored, size, map) in cases {
        let data = padded(vec![b'x'; usize::try_from(*stored).unwrap()]);
        let gnu = [gnu_sparse("a", *stored, *size, map, false).build(), data.clone()].concat();
        let lines: String = map.iter().map(|(logical, len)| format!("{logical}\n{len}\n")).collect();
        let lines = padded(format!("{}\n{lines}", map.len()).into_bytes());
        let size = size.to_string();
        let records = [
            ("GNU.sparse.major", b"1".as_slice()),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        let pax_1_0 =
            [pax(&records), file("a", &[lines, vec![b'x'; usize::try_from(*stored).unwrap()]].concat())];
        for tar in [gnu, pax_1_0.concat()] {
            let fault = walk_all(&tar).map(drop).map_err(|error| error.fault);
            assert!(matches!(fault, Err(TarFault::SparseMap)), "{name}: {fault:?}");
        }
    }
    for wrong in [
        "",
        "x",
        "1",
        "1\n2\n",
        "-1\n",
        "1\n\n2\n",
        "18446744073709551615\n",
        "99999999999999999999999\n",
        "1 \n",
    ] {
        let records = [
            ("GNU.sparse.major", b"1".as_slice()),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"8"),
        ];
        let tar = [pax(&records), file("a", &padded([wrong.as_bytes(), b"\0"].concat()))].concat();
        let fault = walk_all(&tar).map(drop).map_err(|error| error.fault);
        assert!(matches!(fault, Err(TarFault::SparseMap)), "{wrong:?}: {fault:?}");
    }
}

#[test]
fn number_of_sparse_segments_is_limited() {
    let segments = MAX_SEGMENTS as u64 + 1;
    let records = |size: &str| {
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
    };
    let tar = |step: u64| {
        let map: String = (0..segments).map(|n| format!("{}\n1\n", n * step)).collect();
        let map = padded(format!("{segments}\n{map}").into_bytes());
        let content = [map, vec![b'x'; MAX_SEGMENTS + 1]].concat();
        [records(&(segments * step).to_string()), file("a", &content)].concat()
    };
    assert!(matches!(walk_all(&tar(2)), Err(TarError { fault: TarFault::ManySegments, .. })));
    assert!(walk_all(&tar(1)).is_ok());
}
