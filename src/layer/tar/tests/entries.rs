//! Tests entries of every type, extension headers, and errors.

use super::*;

#[test]
#[rustfmt::skip]
fn entry_of_every_type_is_read() {
    let raw = RawHeader::new;
    check(&[
        ("empty stream", vec![], ""),
        ("end blocks only", vec![end()], ""),
        ("file", vec![file("a", b"hello"), end()], "a [hello]"),
        ("empty file", vec![file("a", b""), end()], "a []"),
        ("a block of data", vec![file("a", &[b'x'; 512]), file("b", b"y")], &format!("a [{}]\nb [y]", "x".repeat(512))),
        ("old-style file", vec![raw(0, "a").data(b"hello")], "a [hello]"),
        ("contiguous file", vec![raw(b'7', "a").data(b"hello")], "a [hello]"),
        ("old-style directory", vec![raw(0, "d/").size(9).build(), file("b", b"")], "d dir\nb []"),
        ("file with slash, no data", vec![raw(b'0', "d/").build()], "d dir"),
        ("file with slash and data", vec![file("d/", b"x")], "error: tar offset 0, entry `d/`: regular file with data has a name that ends in `/`"),
        ("directory", vec![raw(b'5', "d/").set(100, b"0001755\0").build()], "d dir mode=1755"),
        ("file type in mode is cut off", vec![raw(b'0', "a").set(100, b"0104755\0").build()], "a [] mode=4755"),
        ("dumpdir with data", vec![raw(b'D', "d").gnu().data(b"Yfile\0"), file("b", b"")], "d dir\nb []"),
        ("symlink", vec![raw(b'2', "l").link("../x//y").build()], "l -> ../x//y"),
        ("hard link", vec![raw(b'1', "l").link("./x//y").build()], "l == x/y"),
        ("hard link to root", vec![raw(b'1', "l").link("/").build()], "l == /"),
        ("char device", vec![raw(b'3', "c").device(1, 3).build()], "c char 1:3"),
        ("block device", vec![raw(b'4', "b").device(0, 0).build()], "b block 0:0"),
        ("wide device", vec![raw(b'4', "b").device(4095, 1048575).build()], "b block 4095:1048575"),
        ("fifo", vec![raw(b'6', "p").build()], "p fifo"),
        ("volume label", vec![raw(b'V', "label").gnu().build(), file("b", b"")], "b []"),
        ("root", vec![raw(b'5', "./").build(), raw(b'5', "/").build(), raw(b'5', "a/..").build()], "/ dir\n/ dir\n/ dir"),
        ("prefix", vec![raw(b'0', "b").set(345, b"dir/a").build()], "dir/a/b []"),
        ("prefix of star", vec![raw(b'0', "b").set(345, b"dir").set(476, b"00000000001 00000000001 ").set(508, b"tar\0").build()], "dir/b []"),
        ("GNU has no prefix", vec![raw(b'0', "b").gnu().set(345, b"00000000001\0").build()], "b []"),
        ("v7 has no prefix", vec![raw(b'0', "b").set(257, &[0; 8]).set(345, b"x").build()], "b []"),
        ("full name field", vec![raw(b'0', &"n".repeat(100)).build()], &format!("{} []", "n".repeat(100))),
        ("name that is not UTF-8", vec![raw(b'0', "").set(0, b"a\xff\n").build()], "a\\xff\\n []"),
    ]);
}

#[test]
fn types_without_data_ignore_the_declared_size() {
    for typeflag in b'1'..=b'6' {
        let header = RawHeader::new(typeflag, "a").link("b").device(1, 1).size(5000).build();
        let sized = [pax(&[("size", b"5000")]), header.clone()].concat();
        for start in [header, sized] {
            let entries = walk_all(&[start, file("next", b"x"), end()].concat()).unwrap();
            assert_eq!(entries.len(), 2, "type {typeflag}");
        }
    }
}

#[test]
#[rustfmt::skip]
fn markers_are_distinguished_from_entries() {
    let raw = RawHeader::new;
    check(&[
        ("whiteout", vec![file("d/.wh.a", b"data"), file("b", b"")], "whiteout d/a\nb []"),
        ("opaque", vec![file("d/.wh..wh..opq", b""), file(".wh..wh..opq", b"")], "opaque d\nopaque /"),
        ("marker as directory", vec![raw(b'5', ".wh.a/").build()], "whiteout a"),
        ("marker as device 0:0", vec![raw(b'3', ".wh.a").build()], "whiteout a"),
        ("marker as link", vec![raw(b'1', ".wh.a").build(), raw(b'2', ".wh.b").build()], "whiteout a\nwhiteout b"),
        ("marker of unknown type", vec![raw(b'Q', ".wh.a").data(b"x"), file("b", b"")], "whiteout a\nb []"),
        ("leftovers", vec![raw(b'5', ".wh..wh.plnk").build(), file(".wh..wh.plnk/1.2", b"xyz"), raw(b'Q', ".wh..wh.aufs").build(), file("b", b"")], "hidden .wh..wh.plnk/1.2\nb []"),
        ("useless leftovers", vec![raw(b'5', ".wh..wh.plnk/d").build(), raw(b'Q', ".wh..wh.plnk/q").data(b"x"), raw(b'3', ".wh..wh.orph/w").build(), file("b", b"")], "b []"),
        ("bare", vec![file("a", b""), file(".wh.", b"")], "error: tar offset 512, entry `.wh.`: whiteout marker `.wh.` names nothing"),
        ("below a marker", vec![file(".wh.a/b", b"")], "error: tar offset 0, entry `.wh.a/b`: entry is below a whiteout marker"),
    ]);
}

#[test]
#[rustfmt::skip]
fn error_names_offset_entry_and_violated_rule() {
    let raw = RawHeader::new;
    let before = file("before", b"x");
    check(&[
        ("name", vec![before.clone(), raw(b'0', "").build()], "error: tar offset 1024, entry ``: name is empty"),
        ("long component", vec![pax(&[("path", &[b'a'; 256])]), file("x", b"")], &format!("error: tar offset 1024, entry `{}`: name has a component of 256 bytes (at most 255)", "a".repeat(256))),
        ("root as a file", vec![file("./.", b"")], "error: tar offset 0, entry `./.`: entry for the root is not a directory"),
        ("root as a symlink", vec![raw(b'2', "/").link("x").build()], "error: tar offset 0, entry `/`: entry for the root is not a directory"),
        ("char device 0:0", vec![raw(b'3', "c").device(0, 0).build()], "error: tar offset 0, entry `c`: character device 0:0 is not allowed: overlayfs treats it as a whiteout"),
        ("char device without numbers", vec![raw(b'3', "c").set(257, &[0; 8]).device(1, 1).build()], "error: tar offset 0, entry `c`: character device 0:0 is not allowed: overlayfs treats it as a whiteout"),
        ("wide major", vec![raw(b'4', "c").device(4096, 0).build()], "error: tar offset 0, entry `c`: device number is out of range"),
        ("no symlink target", vec![raw(b'2', "l").build()], "error: tar offset 0, entry `l`: symlink target is empty, longer than 4095 bytes or contains a NUL byte"),
        ("no hard link target", vec![raw(b'1', "l").build()], "error: tar offset 0, entry `l`: hard link target: name is empty"),
        ("unknown type", vec![before.clone(), raw(b'Q', "q").build()], "error: tar offset 1024, entry `q`: unsupported entry type `Q`"),
        ("multi-volume", vec![raw(b'M', "m").gnu().build()], "error: tar offset 0: unsupported entry type `M`"),
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
        ("size", vec![raw(b'0', "a").set(124, b"12x").build()], "error: tar offset 0: malformed size in header"),
        ("negative size", vec![raw(b'0', "a").set(124, &[0xff; 12]).build()], "error: tar offset 0: size is out of range"),
        ("mode", vec![raw(b'0', "a").set(100, b"9").build()], "error: tar offset 0, entry `a`: malformed mode in header"),
        ("uid", vec![raw(b'0', "a").set(108, b"\x80\0\0\x01\0\0\0\0").build()], "error: tar offset 0, entry `a`: uid is out of range"),
        ("negative gid", vec![raw(b'0', "a").set(116, &[0xff; 8]).build()], "error: tar offset 0, entry `a`: gid is out of range"),
        ("mtime", vec![raw(b'0', "a").set(136, &[0x9f; 12]).build()], "error: tar offset 0, entry `a`: malformed mtime in header"),
        ("lone end block", vec![before.clone(), vec![0; 512], file("a", b"")], "error: tar offset 1024: entry after a single end block"),
        ("PAX header without entry", vec![before.clone(), pax(&[("uid", b"1")]), end()], "error: tar offset 2048: extension header without an entry"),
        ("long name without entry", vec![raw(b'L', "x").data(b"name\0")], "error: tar offset 1024: extension header without an entry"),
        ("PAX header too long", vec![raw(b'x', "x").size(MAX_PAX + 1).build()], "error: tar offset 0: extension header of 1048577 bytes exceeds the limit of 1048576 bytes"),
        ("long name too long", vec![raw(b'L', "x").size(MAX_LONG_NAME + 1).build()], "error: tar offset 0: extension header of 65537 bytes exceeds the limit of 65536 bytes"),
        ("too many headers", vec![pax(&[]).repeat(33), file("a", b"")], "error: tar offset 16384: more than 32 extension headers before one entry"),
        ("malformed PAX record", vec![pax(&[("size", b"-1")]), file("a", b"")], "error: tar offset 0: malformed PAX record `size`"),
        ("global path", vec![RawHeader::new(b'g', "g").data(&pax_data(&[("path", b"x")])), file("a", b"")], "error: tar offset 0: PAX record `path` is not allowed in a global header"),
        ("symlink target with NUL", vec![pax(&[("linkpath", b"a\0b")]), raw(b'2', "l").build()], "error: tar offset 0: malformed PAX record `linkpath`"),
        ("long symlink target", vec![raw(b'K', "k").data(&[b'x'; 4096]), raw(b'2', "l").build()], "error: tar offset 4608, entry `l`: symlink target is empty, longer than 4095 bytes or contains a NUL byte"),
    ]);
}

#[test]
#[rustfmt::skip]
fn extension_headers_override_the_header() {
    let raw = RawHeader::new;
    let long = "l".repeat(200) + "/n";
    let global = |records: &[(&str, &[u8])]| raw(b'g', "g").data(&pax_data(records));
    check(&[
        ("PAX", vec![pax(&[("path", b"p/q"), ("uid", b"4294967294"), ("gid", b"70000"), ("mtime", b"-1.25"), ("SCHILY.xattr.user.a", b"1")]), raw(b'0', "x").set(136, b"00000000005\0").build(), file("next", b"")], "p/q [] owner=4294967294:70000 mtime=-2.750000000 user.a=1\nnext []"),
        ("PAX linkpath", vec![pax(&[("linkpath", b"a/b")]), raw(b'1', "h").link("x").build(), pax(&[("linkpath", b"/a//b")]), raw(b'2', "s").build()], "h == a/b\ns -> /a//b"),
        ("empty values", vec![pax(&[("path", b""), ("uid", b""), ("size", b"")]), raw(b'0', "a").set(108, b"0000007\0").data(b"hi")], "a [hi] owner=7:0"),
        ("the last PAX header applies", vec![pax(&[("path", b"p"), ("uid", b"1")]), pax(&[("path", b"q")]), file("x", b"")], "q []"),
        ("other records", vec![pax(&[("hdrcharset", b"BINARY"), ("path", b"\xff"), ("atime", b"1"), ("ctime", b"x"), ("comment", b""), ("VENDOR.x", b"y")]), file("x", b"")], "\\xff []"),
        ("GNU long name", vec![raw(b'L', "././@LongLink").gnu().data(format!("{long}\0").as_bytes()), raw(b'0', "cut").gnu().build()], &format!("{long} []")),
        ("GNU long link", vec![raw(b'K', "././@LongLink").gnu().data(format!("{long}\0").as_bytes()), raw(b'2', "s").gnu().link("cut").build()], &format!("s -> {long}")),
        ("GNU long name over PAX path", vec![raw(b'L', "x").data(b"l\0"), pax(&[("path", b"p")]), file("x", b"")], "l []"),
        ("empty long name", vec![raw(b'L', "x").data(b"\0"), file("x", b"")], "x []"),
        ("names do not leak", vec![raw(b'L', "x").data(b"l\0"), raw(b'K', "x").data(b"k\0"), file("x", b""), raw(b'2', "s").link("t").build()], "l []\ns -> t"),
        ("PAX size is the file's", vec![pax(&[("size", b"5")]), raw(b'0', "a").size(1).build(), padded(b"hello".to_vec()), file("b", b"")], "a [hello]\nb []"),
        ("PAX size is not the long name's", vec![pax(&[("size", b"5")]), raw(b'L', "x").data(b"long\0"), raw(b'K', "x").data(&[b'k'; 600]), raw(b'0', "a").size(0).build(), padded(b"hello".to_vec()), file("b", b"")], "long [hello]\nb []"),
        ("global header", vec![global(&[("mtime", b"1.5"), ("uid", b"3"), ("comment", b"x")]), file("a", b""), pax(&[("uid", b"4"), ("mtime", b"")]), file("b", b""), global(&[("uid", b"")]), file("c", b""), global(&[("uid", b"9")])], "a [] owner=3:0 mtime=1.500000000\nb [] owner=4:0\nc [] mtime=1.500000000"),
        ("base-256 fields", vec![raw(b'0', "a").gnu().set(108, b"\x80\0\0\0\xff\xff\xff\xfe").set(116, b"\x80\0\0\0\0\x03\x0d\x40").set(136, &[0xff; 12]).set(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x02").build(), padded(b"hi".to_vec())], "a [hi] owner=4294967294:200000 mtime=-1.000000000"),
    ]);
}

#[test]
fn signed_checksum_is_accepted() {
    let mut block: [u8; BLOCK] = RawHeader::new(b'0', "").set(0, b"\xff\xfe").build().try_into().unwrap();
    let sum: i32 = (0..BLOCK)
        .map(|at| if (148..156).contains(&at) { 32 } else { i32::from(block[at].cast_signed()) })
        .sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(dump(&block), "\\xff\\xfe []");
}

/// A header followed by endless data, which the walk skips quickly.
struct EndlessReader(Vec<u8>);

impl io::Read for EndlessReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("the walk only uses BufRead")
    }
}

impl io::BufRead for EndlessReader {
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
fn size_beyond_8_gib_is_read() {
    let header = RawHeader::new(b'0', "a").set(124, b"\x80\0\0\0\0\0\0\x03\0\0\0\0").build();
    let mut walk = TarWalk::new(EndlessReader(header));
    let entry = walk.next_entry().unwrap().unwrap();
    let content = FileContent::Contiguous(TarOffset::new(512));
    assert_eq!(entry.kind, EntryKind::Regular { size: 3 << 32, content });
    assert_eq!(walk.position().get(), 512 + (3 << 32));
}

#[test]
fn data_after_the_end_blocks_is_left_to_the_caller() {
    let tar = [file("a", b"x"), end(), b"garbage".to_vec()].concat();
    let mut walk = TarWalk::new(&tar[..]);
    assert!(walk.next_entry().unwrap().is_some());
    assert!(walk.next_entry().unwrap().is_none());
    assert_eq!(walk.into_inner(), b"garbage");
}

#[test]
fn failed_walk_stays_failed() {
    let tar = [vec![b'x'; BLOCK], file("a", b"")].concat();
    let mut walk = TarWalk::new(&tar[..]);
    assert!(matches!(walk.next_entry(), Err(TarError { fault: TarFault::Checksum, .. })));
    assert!(matches!(walk.next_entry(), Err(TarError { fault: TarFault::AlreadyFailed, .. })));
}

#[test]
fn truncation_is_an_error_except_between_entries_and_before_padding() {
    let tar = archive_of_all_formats();
    let mut walk = TarWalk::new(&tar[..]);
    let mut boundaries = vec![0];
    let mut ends_of_data = Vec::new();
    while let Some(entry) = walk.next_entry().unwrap() {
        boundaries.push(usize::try_from(walk.position().get()).unwrap());
        if let EntryKind::Regular { size, content } = entry.kind {
            let end = match content {
                FileContent::Contiguous(start) => start.get() + size,
                FileContent::Sparse(segments) => segments.last().map_or(0, |last| last.tar.get() + last.len),
            };
            ends_of_data.push(usize::try_from(end).unwrap());
        }
    }
    assert_eq!(boundaries.len(), 11);
    // A global header belongs to no entry. A tar may end with two end blocks, one or none, and without the last padding.
    boundaries.extend([1536, tar.len() - 512, tar.len()]);
    boundaries.extend(ends_of_data);
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
