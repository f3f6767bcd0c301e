//! Tests the walk over archives that are built byte by byte, because no tar writer produces most of them.

use std::io;

use super::*;
use crate::layer::name::Printable;

mod entries;
mod random;
mod sparse;

/// Builds a header. Starts as an empty regular file in ustar format.
struct RawHeader([u8; BLOCK]);

impl RawHeader {
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
    fn build(self) -> Vec<u8> {
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ')
            - self.0[148..156].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        self.set(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }
    fn data(self, data: &[u8]) -> Vec<u8> {
        let declared = self.size(data.len() as u64).build();
        padded([declared, data.to_vec()].concat())
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    RawHeader::new(b'0', name).data(data)
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
    RawHeader::new(b'x', "PaxHeaders/x").data(&pax_data(records))
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn walk_all(tar: &[u8]) -> Result<Vec<TarEntry>, TarError> {
    // The small buffer exposes code that works only if a whole header is in the buffer.
    let mut walk = TarWalk::new(io::BufReader::with_capacity(100, tar));
    let mut entries = Vec::new();
    while let Some(entry) = walk.next_entry()? {
        entries.push(entry);
    }
    assert!(walk.next_entry().unwrap().is_none());
    Ok(entries)
}

/// Shows an entry as one line: name, type, and everything that differs from `RawHeader::new`.
fn line(tar: &[u8], entry: &TarEntry) -> String {
    let mut line = match &entry.member {
        MemberName::Plain(path) => path.to_string(),
        MemberName::Whiteout(path) => return format!("whiteout {path}"),
        MemberName::Opaque(path) => return format!("opaque {path}"),
        MemberName::Hidden(path) => return format!("hidden {path}"),
        MemberName::Dropped => panic!("dropped members are not returned"),
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

fn dump(tar: &[u8]) -> String {
    match walk_all(tar) {
        Ok(entries) => entries.iter().map(|entry| line(tar, entry)).collect::<Vec<_>>().join("\n"),
        Err(error) => format!("error: {error}"),
    }
}

fn check(cases: &[(&str, Vec<Vec<u8>>, &str)]) {
    for (name, parts, expected) in cases {
        assert_eq!(&dump(&parts.concat()), expected, "{name}");
    }
}

fn gnu_sparse(name: &str, stored: u64, size: u64, map: &[(u64, u64)], extended: bool) -> RawHeader {
    let mut raw = RawHeader::new(b'S', name).gnu().size(stored).set(483, format!("{size:011o}\0").as_bytes());
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

/// An archive with an entry of each format.
fn archive_of_all_formats() -> Vec<u8> {
    [
        RawHeader::new(b'5', "./").build(),
        RawHeader::new(b'g', "g").data(&pax_data(&[("mtime", b"5")])),
        pax(&[
            ("path", b"p"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.a", b"1"),
            ("LIBARCHIVE.xattr.user%20b", b"MTI"),
        ]),
        file("x", &[b'd'; 700]),
        RawHeader::new(b'L', "x").gnu().data(b"long\0"),
        RawHeader::new(b'K', "x").gnu().data(b"link\0"),
        RawHeader::new(b'1', "h").gnu().link("p").build(),
        RawHeader::new(b'2', "s").link("p").build(),
        RawHeader::new(b'3', "c").device(1, 3).build(),
        gnu_sparse("a", 5, 20, &[(1, 1), (3, 1), (5, 1), (7, 1)], true).build(),
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
