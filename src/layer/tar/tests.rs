//! The walk over archives made by hand, byte by byte, since no writer makes most of these.

use super::*;

/// A header in the making. Starts as an empty regular file in ustar format.
struct Raw([u8; BLOCK]);

impl Raw {
    fn new(typeflag: u8, name: &str) -> Self {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[156] = typeflag;
        Self(block).set(257, b"ustar\x0000").set(100, b"0000644\0").size(0).set(136, b"00000000000\0")
    }
    fn gnu(self) -> Self {
        self.set(257, b"ustar  \0")
    }
    fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    fn size(self, size: u64) -> Self {
        self.set(124, format!("{size:011o}\0").as_bytes())
    }
    fn link(self, target: &str) -> Self {
        self.set(157, target.as_bytes())
    }
    fn device(self, major: u32, minor: u32) -> Self {
        self.set(329, format!("{major:07o}\0{minor:07o}\0").as_bytes())
    }
    /// The header with its checksum.
    fn done(self) -> Vec<u8> {
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ')
            - self.0[148..156].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        self.set(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }
    fn data(self, data: &[u8]) -> Vec<u8> {
        let declared = self.size(data.len() as u64).done();
        padded([declared, data.to_vec()].concat())
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}
fn file(name: &str, data: &[u8]) -> Vec<u8> {
    Raw::new(b'0', name).data(data)
}
fn pax_data(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
        data.extend_from_slice((rest.len() + digits).to_string().as_bytes());
        data.extend_from_slice(&rest);
    }
    data
}
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    Raw::new(b'x', "PaxHeaders/x").data(&pax_data(records))
}
fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn walk_all(tar: &[u8]) -> Result<Vec<TarEntry>, TarError> {
    // A reader of few bytes at a time finds what holds only while a header lies in one buffer.
    let mut walk = TarWalk::new(io::BufReader::with_capacity(100, tar));
    let mut entries = Vec::new();
    while let Some(entry) = walk.next_entry()? {
        entries.push(entry);
    }
    assert!(walk.next_entry().unwrap().is_none());
    Ok(entries)
}

/// One line for what the tests compare: name, kind and what else is not as `Raw::new` makes it.
fn line(tar: &[u8], entry: &TarEntry) -> String {
    let mut line = match &entry.member {
        MemberName::Plain(path) => path.to_string(),
        MemberName::Whiteout(path) => return format!("whiteout {path}"),
        MemberName::Opaque(path) => return format!("opaque {path}"),
        MemberName::Dropped => panic!("dropped members are not shown"),
    };
    line += &match &entry.kind {
        EntryKind::Directory => " dir".to_owned(),
        EntryKind::Regular { size, content } => {
            let mut bytes = vec![b'_'; usize::try_from(*size).unwrap()];
            let whole = |at| vec![Segment { logical: 0, tar: at, len: *size }];
            let segments = match content {
                FileContent::Contiguous(at) => whole(*at),
                FileContent::Sparse(segments) => segments.clone(),
            };
            for Segment { logical, tar: at, len } in segments {
                let [logical, at, len] = [logical, at.get(), len].map(|n| usize::try_from(n).unwrap());
                bytes[logical..logical + len].copy_from_slice(&tar[at..at + len]);
            }
            let sparse = if matches!(content, FileContent::Sparse(_)) { "sparse " } else { "" };
            format!(" {sparse}[{}]", Printable(&bytes))
        }
        EntryKind::Symlink { target } => format!(" -> {}", Printable(target)),
        EntryKind::Hardlink { target } => format!(" == {target}"),
        EntryKind::CharDevice { major, minor } => format!(" char {major}:{minor}"),
        EntryKind::BlockDevice { major, minor } => format!(" block {major}:{minor}"),
        EntryKind::Fifo => " fifo".to_owned(),
    };
    let usual = if matches!(entry.kind, EntryKind::Symlink { .. }) { 0o777 } else { 0o644 };
    if entry.mode != usual {
        line += &format!(" mode={:o}", entry.mode);
    }
    if (entry.uid, entry.gid) != (0, 0) {
        line += &format!(" owner={}:{}", entry.uid, entry.gid);
    }
    if entry.mtime != Timestamp::default() {
        line += &format!(" mtime={}.{:09}", entry.mtime.sec, entry.mtime.nsec);
    }
    for (name, value) in &entry.xattrs {
        line += &format!(" {}={}", Printable(name), Printable(value));
    }
    line
}

fn shown(tar: &[u8]) -> String {
    match walk_all(tar) {
        Ok(entries) => entries.iter().map(|entry| line(tar, entry)).collect::<Vec<_>>().join("\n"),
        Err(error) => format!("error: {error}"),
    }
}

fn check(cases: &[(&str, Vec<Vec<u8>>, &str)]) {
    for (name, parts, expected) in cases {
        assert_eq!(&shown(&parts.concat()), expected, "{name}");
    }
}

#[test]
#[rustfmt::skip]
fn every_type_is_read() {
    let raw = Raw::new;
    check(&[
        ("empty stream", vec![], ""),
        ("end blocks only", vec![end()], ""),
        ("file", vec![file("a", b"hello"), end()], "a [hello]"),
        ("empty file", vec![file("a", b""), end()], "a []"),
        ("a block of data", vec![file("a", &[b'x'; 512]), file("b", b"y")], &format!("a [{}]\nb [y]", "x".repeat(512))),
        ("old-style file", vec![raw(0, "a").data(b"hello")], "a [hello]"),
        ("contiguous file", vec![raw(b'7', "a").data(b"hello")], "a [hello]"),
        ("old-style directory", vec![raw(0, "d/").size(9).done(), file("b", b"")], "d dir\nb []"),
        ("file with slash, no data", vec![raw(b'0', "d/").done()], "d dir"),
        ("file with slash and data", vec![file("d/", b"x")], "error: tar offset 0, entry `d/`: regular file with data has a directory's name"),
        ("directory", vec![raw(b'5', "d/").set(100, b"0001755\0").done()], "d dir mode=1755"),
        ("file type in mode is cut off", vec![raw(b'0', "a").set(100, b"0104755\0").done()], "a [] mode=4755"),
        ("dumpdir with data", vec![raw(b'D', "d").gnu().data(b"Yfile\0"), file("b", b"")], "d dir\nb []"),
        ("symlink", vec![raw(b'2', "l").link("../x//y").done()], "l -> ../x//y"),
        ("hard link", vec![raw(b'1', "l").link("./x//y").done()], "l == x/y"),
        ("hard link to root", vec![raw(b'1', "l").link("/").done()], "l == /"),
        ("char device", vec![raw(b'3', "c").device(1, 3).done()], "c char 1:3"),
        ("block device", vec![raw(b'4', "b").device(0, 0).done()], "b block 0:0"),
        ("wide device", vec![raw(b'4', "b").device(4095, 1048575).done()], "b block 4095:1048575"),
        ("fifo", vec![raw(b'6', "p").done()], "p fifo"),
        ("volume label", vec![raw(b'V', "label").gnu().done(), file("b", b"")], "b []"),
        ("root", vec![raw(b'5', "./").done(), raw(b'5', "/").done(), raw(b'5', "a/..").done()], "/ dir\n/ dir\n/ dir"),
        ("prefix", vec![raw(b'0', "b").set(345, b"dir/a").done()], "dir/a/b []"),
        ("prefix of star", vec![raw(b'0', "b").set(345, b"dir").set(476, b"00000000001 00000000001 ").set(508, b"tar\0").done()], "dir/b []"),
        ("GNU has no prefix", vec![raw(b'0', "b").gnu().set(345, b"00000000001\0").done()], "b []"),
        ("v7 has no prefix", vec![raw(b'0', "b").set(257, &[0; 8]).set(345, b"x").done()], "b []"),
        ("full name field", vec![raw(b'0', &"n".repeat(100)).done()], &format!("{} []", "n".repeat(100))),
        ("name that is not UTF-8", vec![raw(b'0', "").set(0, b"a\xff\n").done()], "a\\xff\\n []"),
    ]);
}

#[test]
fn header_only_types_have_no_data_whatever_they_declare() {
    for typeflag in b'1'..=b'6' {
        let header = Raw::new(typeflag, "a").link("b").device(1, 1).size(5000).done();
        let sized = [pax(&[("size", b"5000")]), header.clone()].concat();
        for start in [header, sized] {
            let entries = walk_all(&[start, file("next", b"x"), end()].concat()).unwrap();
            assert_eq!(entries.len(), 2, "type {typeflag}");
        }
    }
}

#[test]
#[rustfmt::skip]
fn markers_are_told_from_entries() {
    let raw = Raw::new;
    check(&[
        ("whiteout", vec![file("d/.wh.a", b"data"), file("b", b"")], "whiteout d/a\nb []"),
        ("opaque", vec![file("d/.wh..wh..opq", b""), file(".wh..wh..opq", b"")], "opaque d\nopaque /"),
        ("marker as directory", vec![raw(b'5', ".wh.a/").done()], "whiteout a"),
        ("marker as device 0:0", vec![raw(b'3', ".wh.a").done()], "whiteout a"),
        ("marker as link", vec![raw(b'1', ".wh.a").done(), raw(b'2', ".wh.b").done()], "whiteout a\nwhiteout b"),
        ("marker of unknown type", vec![raw(b'Q', ".wh.a").data(b"x"), file("b", b"")], "whiteout a\nb []"),
        ("leftovers", vec![raw(b'5', ".wh..wh.plnk").done(), file(".wh..wh.plnk/1.2", b"xyz"), raw(b'Q', ".wh..wh.aufs").done(), file("b", b"")], "b []"),
        ("bare", vec![file("a", b""), file(".wh.", b"")], "error: tar offset 512, entry `.wh.`: whiteout marker `.wh.` names nothing"),
        ("below a marker", vec![file(".wh.a/b", b"")], "error: tar offset 0, entry `.wh.a/b`: entry lies below a whiteout marker"),
    ]);
}

#[test]
#[rustfmt::skip]
fn what_breaks_a_rule_is_an_error_with_its_place() {
    let raw = Raw::new;
    let before = file("before", b"x");
    check(&[
        ("name", vec![before.clone(), raw(b'0', "").done()], "error: tar offset 1024, entry ``: name is empty"),
        ("long component", vec![pax(&[("path", &[b'a'; 256])]), file("x", b"")], &format!("error: tar offset 1024, entry `{}`: name has a component of 256 bytes (at most 255)", "a".repeat(256))),
        ("root as a file", vec![file("./.", b"")], "error: tar offset 0, entry `./.`: entry for the root is not a directory"),
        ("root as a symlink", vec![raw(b'2', "/").link("x").done()], "error: tar offset 0, entry `/`: entry for the root is not a directory"),
        ("char device 0:0", vec![raw(b'3', "c").device(0, 0).done()], "error: tar offset 0, entry `c`: character device 0:0"),
        ("char device without numbers", vec![raw(b'3', "c").set(257, &[0; 8]).device(1, 1).done()], "error: tar offset 0, entry `c`: character device 0:0"),
        ("wide major", vec![raw(b'4', "c").device(4096, 0).done()], "error: tar offset 0, entry `c`: device number is out of range"),
        ("no symlink target", vec![raw(b'2', "l").done()], "error: tar offset 0, entry `l`: symlink target is empty, too long or has a NUL byte"),
        ("no hard link target", vec![raw(b'1', "l").done()], "error: tar offset 0, entry `l`: hard link target: name is empty"),
        ("unknown type", vec![before.clone(), raw(b'Q', "q").done()], "error: tar offset 1024, entry `q`: unsupported entry type `Q`"),
        ("multi-volume", vec![raw(b'M', "m").gnu().done()], "error: tar offset 0: unsupported entry type `M`"),
        (
            "checksum",
            vec![before.clone(), {
                let mut bad = file("a", b"");
                bad[0] ^= 1;
                bad
            }],
            "error: tar offset 1024: header checksum does not match",
        ),
        ("junk", vec![vec![b'x'; 1024]], "error: tar offset 0: header checksum does not match"),
        ("size", vec![raw(b'0', "a").set(124, b"12x").done()], "error: tar offset 0: malformed size in header"),
        ("negative size", vec![raw(b'0', "a").set(124, &[0xff; 12]).done()], "error: tar offset 0: size is out of range"),
        ("mode", vec![raw(b'0', "a").set(100, b"9").done()], "error: tar offset 0, entry `a`: malformed mode in header"),
        ("uid", vec![raw(b'0', "a").set(108, b"\x80\0\0\x01\0\0\0\0").done()], "error: tar offset 0, entry `a`: uid is out of range"),
        ("negative gid", vec![raw(b'0', "a").set(116, &[0xff; 8]).done()], "error: tar offset 0, entry `a`: gid is out of range"),
        ("mtime", vec![raw(b'0', "a").set(136, &[0x9f; 12]).done()], "error: tar offset 0, entry `a`: malformed mtime in header"),
        ("lone end block", vec![before.clone(), vec![0; 512], file("a", b"")], "error: tar offset 1024: entry behind a lone end block"),
        ("PAX header without entry", vec![before.clone(), pax(&[("uid", b"1")]), end()], "error: tar offset 2048: extension header without an entry"),
        ("long name without entry", vec![raw(b'L', "x").data(b"name\0")], "error: tar offset 1024: extension header without an entry"),
        ("PAX header too long", vec![raw(b'x', "x").size(MAX_PAX + 1).done()], "error: tar offset 0: extension header of 1048577 bytes"),
        ("long name too long", vec![raw(b'L', "x").size(MAX_LONG_NAME + 1).done()], "error: tar offset 0: extension header of 65537 bytes"),
        ("too many headers", vec![pax(&[]).repeat(33), file("a", b"")], "error: tar offset 16384: more than 32 extension headers before one entry"),
        ("malformed PAX record", vec![pax(&[("size", b"-1")]), file("a", b"")], "error: tar offset 0: malformed PAX record `size`"),
        ("global path", vec![Raw::new(b'g', "g").data(&pax_data(&[("path", b"x")])), file("a", b"")], "error: tar offset 0: PAX record `path` in a global header"),
        ("symlink target with NUL", vec![pax(&[("linkpath", b"a\0b")]), raw(b'2', "l").done()], "error: tar offset 0: malformed PAX record `linkpath`"),
        ("long symlink target", vec![raw(b'K', "k").data(&[b'x'; 4096]), raw(b'2', "l").done()], "error: tar offset 4608, entry `l`: symlink target is empty, too long or has a NUL byte"),
    ]);
}

#[test]
#[rustfmt::skip]
fn extension_headers_override_the_header() {
    let raw = Raw::new;
    let long = "l".repeat(200) + "/n";
    let global = |records: &[(&str, &[u8])]| raw(b'g', "g").data(&pax_data(records));
    check(&[
        ("PAX", vec![pax(&[("path", b"p/q"), ("uid", b"4294967294"), ("gid", b"70000"), ("mtime", b"-1.25"), ("SCHILY.xattr.user.a", b"1")]), raw(b'0', "x").set(136, b"00000000005\0").done(), file("next", b"")], "p/q [] owner=4294967294:70000 mtime=-2.750000000 user.a=1\nnext []"),
        ("PAX linkpath", vec![pax(&[("linkpath", b"a/b")]), raw(b'1', "h").link("x").done(), pax(&[("linkpath", b"/a//b")]), raw(b'2', "s").done()], "h == a/b\ns -> /a//b"),
        ("empty values", vec![pax(&[("path", b""), ("uid", b""), ("size", b"")]), raw(b'0', "a").set(108, b"0000007\0").data(b"hi")], "a [hi] owner=7:0"),
        ("the last PAX header counts", vec![pax(&[("path", b"p"), ("uid", b"1")]), pax(&[("path", b"q")]), file("x", b"")], "q []"),
        ("other records", vec![pax(&[("hdrcharset", b"BINARY"), ("path", b"\xff"), ("atime", b"1"), ("ctime", b"x"), ("comment", b""), ("VENDOR.x", b"y")]), file("x", b"")], "\\xff []"),
        ("GNU long name", vec![raw(b'L', "././@LongLink").gnu().data(format!("{long}\0").as_bytes()), raw(b'0', "cut").gnu().done()], &format!("{long} []")),
        ("GNU long link", vec![raw(b'K', "././@LongLink").gnu().data(format!("{long}\0").as_bytes()), raw(b'2', "s").gnu().link("cut").done()], &format!("s -> {long}")),
        ("GNU long name over PAX path", vec![raw(b'L', "x").data(b"l\0"), pax(&[("path", b"p")]), file("x", b"")], "l []"),
        ("empty long name", vec![raw(b'L', "x").data(b"\0"), file("x", b"")], "x []"),
        ("names do not leak", vec![raw(b'L', "x").data(b"l\0"), raw(b'K', "x").data(b"k\0"), file("x", b""), raw(b'2', "s").link("t").done()], "l []\ns -> t"),
        ("PAX size is the file's", vec![pax(&[("size", b"5")]), raw(b'0', "a").size(1).done(), padded(b"hello".to_vec()), file("b", b"")], "a [hello]\nb []"),
        ("PAX size is not the long name's", vec![pax(&[("size", b"5")]), raw(b'L', "x").data(b"long\0"), raw(b'K', "x").data(&[b'k'; 600]), raw(b'0', "a").size(0).done(), padded(b"hello".to_vec()), file("b", b"")], "long [hello]\nb []"),
        ("global header", vec![global(&[("mtime", b"1.5"), ("uid", b"3"), ("comment", b"x")]), file("a", b""), pax(&[("uid", b"4"), ("mtime", b"")]), file("b", b""), global(&[("uid", b"")]), file("c", b""), global(&[("uid", b"9")])], "a [] owner=3:0 mtime=1.500000000\nb [] owner=4:0\nc [] mtime=1.500000000"),
        ("base-256 fields", vec![raw(b'0', "a").gnu().set(108, b"\x80\0\0\0\xff\xff\xff\xfe").set(116, b"\x80\0\0\0\0\x03\x0d\x40").set(136, &[0xff; 12]).set(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x02").done(), padded(b"hi".to_vec())], "a [hi] owner=4294967294:200000 mtime=-1.000000000"),
    ]);
}

#[test]
fn a_signed_checksum_is_accepted() {
    let mut block: [u8; BLOCK] = Raw::new(b'0', "").set(0, b"\xff\xfe").done().try_into().unwrap();
    let sum: i32 = (0..BLOCK)
        .map(|at| if (148..156).contains(&at) { 32 } else { i32::from(block[at].cast_signed()) })
        .sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(shown(&block), "\\xff\\xfe []");
}

/// A header with endless data behind it, which a test can pass over in no time.
struct Endless(Vec<u8>);

impl io::Read for Endless {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("the walk asks for buffers only")
    }
}

impl io::BufRead for Endless {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        static DATA: [u8; 16 << 20] = [b'x'; 16 << 20];
        Ok(if self.0.is_empty() { &DATA } else { &self.0 })
    }

    fn consume(&mut self, length: usize) {
        let length = length.min(self.0.len());
        self.0.drain(..length);
    }
}

#[test]
fn sizes_beyond_8_gib_are_sizes() {
    let header = Raw::new(b'0', "a").set(124, b"\x80\0\0\0\0\0\0\x03\0\0\0\0").done();
    let mut walk = TarWalk::new(Endless(header));
    let entry = walk.next_entry().unwrap().unwrap();
    let content = FileContent::Contiguous(TarOffset::new(512));
    assert_eq!(entry.kind, EntryKind::Regular { size: 3 << 32, content });
    assert_eq!(walk.position().get(), 512 + (3 << 32));
}

#[test]
fn data_behind_the_end_is_ignored_and_left_to_the_caller() {
    let tar = [file("a", b"x"), end(), b"garbage".to_vec()].concat();
    let mut walk = TarWalk::new(&tar[..]);
    assert!(walk.next_entry().unwrap().is_some());
    assert!(walk.next_entry().unwrap().is_none());
    assert_eq!(walk.into_inner(), b"garbage");
}

#[test]
fn a_failed_walk_stays_failed() {
    let tar = [vec![b'x'; BLOCK], file("a", b"")].concat();
    let mut walk = TarWalk::new(&tar[..]);
    assert!(matches!(walk.next_entry(), Err(TarError { fault: TarFault::Checksum, .. })));
    assert!(matches!(walk.next_entry(), Err(TarError { fault: TarFault::Failed, .. })));
}

fn gnu_sparse(name: &str, stored: u64, size: u64, map: &[(u64, u64)], extended: bool) -> Raw {
    let mut raw = Raw::new(b'S', name).gnu().size(stored).set(483, format!("{size:011o}\0").as_bytes());
    for (position, (logical, len)) in map.iter().enumerate() {
        raw = raw.set(386 + 24 * position, format!("{logical:011o}\0{len:011o}\0").as_bytes());
    }
    raw.set(482, &[u8::from(extended)])
}
fn gnu_map_block(map: &[(u64, u64)], extended: bool) -> Vec<u8> {
    let text: String = map.iter().map(|(logical, len)| format!("{logical:011o}\0{len:011o}\0")).collect();
    let mut block = padded(text.into_bytes());
    block.resize(BLOCK, 0);
    block[504] = u8::from(extended);
    block
}

#[test]
#[rustfmt::skip]
fn old_gnu_sparse_files_are_read() {
    let next = file("next", b"n");
    let many: Vec<(u64, u64)> = (0..50).map(|n| (2 * n + 1, 1)).collect();
    let shown_many = format!("a sparse [{}]\nnext [n]", "_x".repeat(50));
    check(&[
        ("holes", vec![gnu_sparse("a", 4, 8, &[(2, 2), (5, 2), (8, 0)], false).done(), padded(b"abcd".to_vec()), next.clone()], "a sparse [__ab_cd_]\nnext [n]"),
        ("one hole", vec![gnu_sparse("a", 0, 3, &[(3, 0)], false).done(), next.clone()], "a sparse [___]\nnext [n]"),
        ("no hole", vec![gnu_sparse("a", 3, 3, &[(0, 2), (2, 1)], false).done(), padded(b"abc".to_vec()), next.clone()], "a [abc]\nnext [n]"),
        ("empty", vec![gnu_sparse("a", 0, 0, &[], false).done(), next.clone()], "a []\nnext [n]"),
        ("extended", vec![gnu_sparse("a", 50, 100, &many[..4], true).done(), gnu_map_block(&many[4..25], true), gnu_map_block(&many[25..46], true), gnu_map_block(&many[46..], false), padded(vec![b'x'; 50]), next.clone()], &shown_many),
        ("map ends early, blocks go on", vec![gnu_sparse("a", 1, 3, &[(1, 1)], true).done(), gnu_map_block(&[], true), gnu_map_block(&[(2, 1)], false), padded(b"x".to_vec()), next.clone()], "a sparse [_x_]\nnext [n]"),
        ("marker with a map", vec![gnu_sparse(".wh.a", 1, 3, &[(1, 1)], true).done(), gnu_map_block(&[], false), padded(b"x".to_vec()), next.clone()], "whiteout a\nnext [n]"),
        ("truncated map", vec![gnu_sparse("a", 1, 3, &[(1, 1)], true).done()], "error: tar offset 512, entry `a`: tar is truncated"),
        ("not GNU", vec![gnu_sparse("a", 0, 3, &[(3, 0)], false).set(257, b"ustar\x0000").done()], "error: tar offset 0, entry `a`: unsupported entry type `S`"),
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
        ("1.0, PAX size", vec![pax(&[records_1_0.clone(), vec![("size", b"516")]].concat()), Raw::new(b'0', "a").size(7).done(), padded([padded(b"1\n2\n4\n".to_vec()), b"abcd".to_vec()].concat()), next.clone()], "real sparse [__abcd__]\nnext [n]"),
        ("unknown version", vec![pax(&version(b"2", b"0")), file("a", b"")], "error: tar offset 1024, entry `a`: malformed sparse map"),
        ("no size", vec![pax(&version(b"1", b"0")), file("a", &padded(b"0\n".to_vec()))], "error: tar offset 1024, entry `a`: malformed sparse map"),
        ("on a directory", vec![pax(&records_1_0), Raw::new(b'5', "a").done()], "error: tar offset 1024, entry `real`: malformed sparse map"),
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
fn a_sparse_map_that_contradicts_itself_is_an_error() {
    type Map = &'static [(u64, u64)];
    let cases: &[(&str, u64, u64, Map)] = &[
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
        let gnu = [gnu_sparse("a", *stored, *size, map, false).done(), data.clone()].concat();
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
fn a_sparse_map_is_bounded() {
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

/// An archive with one of each form.
fn rich() -> Vec<u8> {
    [
        Raw::new(b'5', "./").done(),
        Raw::new(b'g', "g").data(&pax_data(&[("mtime", b"5")])),
        pax(&[
            ("path", b"p"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.a", b"1"),
            ("LIBARCHIVE.xattr.user%20b", b"MTI"),
        ]),
        file("x", &[b'd'; 700]),
        Raw::new(b'L', "x").gnu().data(b"long\0"),
        Raw::new(b'K', "x").gnu().data(b"link\0"),
        Raw::new(b'1', "h").gnu().link("p").done(),
        Raw::new(b'2', "s").link("p").done(),
        Raw::new(b'3', "c").device(1, 3).done(),
        gnu_sparse("a", 5, 20, &[(1, 1), (3, 1), (5, 1), (7, 1)], true).done(),
        gnu_map_block(&[(10, 1)], false),
        padded(b"abcde".to_vec()),
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"8")]),
        file("b", &[padded(b"2\n2\n2\n5\n2\n".to_vec()), b"abcd".to_vec()].concat()),
        pax(&[("GNU.sparse.size", b"8"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"2,2")]),
        file("m", b"ab"),
        file("d/.wh.a", b""),
        file(".wh..wh..opq", b""),
        end(),
    ]
    .concat()
}

#[test]
fn truncation_is_an_error_except_between_entries() {
    let tar = rich();
    let mut walk = TarWalk::new(&tar[..]);
    let mut boundaries = vec![0];
    while walk.next_entry().unwrap().is_some() {
        boundaries.push(usize::try_from(walk.position().get()).unwrap());
    }
    assert_eq!(boundaries.len(), 11);
    // A global header belongs to no entry, and one end block is as good as two or none.
    boundaries.extend([1536, tar.len() - 512, tar.len()]);
    for length in 0..=tar.len() {
        let result = walk_all(&tar[..length]);
        assert_eq!(
            result.is_ok(),
            boundaries.contains(&length),
            "{length} of {} bytes: {result:?}",
            tar.len()
        );
    }
}

mod random {
    use proptest::prelude::*;

    use super::*;

    /// What every user of the walk relies on.
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

    /// Puts the checksum right in every block that may be a header, so that changes reach what lies behind it.
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
            let mut tar = rich();
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
            let tar = rich();
            let blocks: Vec<_> = tar.chunks(BLOCK).collect();
            assert_sound(&order.iter().flat_map(|index| index.get(&blocks).to_vec()).collect::<Vec<_>>());
        }
    }
}
