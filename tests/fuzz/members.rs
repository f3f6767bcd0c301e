//! Generates tar archives: headers with correct checksums, PAX records with correct lengths, consistent sparse maps, and
//! occasionally none of these.

use crate::input::Input;

pub(crate) const BLOCK: usize = 512;

/// Names with a meaning in layers, and names close to those.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"a/b",
    b"./a/",
    b"/",
    b".",
    b"..",
    b"../a",
    b".wh.a",
    b".wh.",
    b".wh..wh..opq",
    b"a/.wh..wh..opq",
    b".wh..wh.plnk/1",
    b"a\n b",
    b"",
    b"d/",
];

const KEYS: [&str; 24] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.numblocks",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.system.posix_acl_access",
    "SCHILY.xattr.system.posix_acl_default",
    "LIBARCHIVE.xattr.user.%61",
    "SCHILY.xattr.",
    "comment",
    "",
];

/// A header block under construction. It starts as an empty regular file in ustar format.
#[derive(Debug, Clone)]
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    pub(crate) fn new(kind: u8, name: &[u8]) -> Self {
        let mut header = Self([0; BLOCK]);
        header.set(0, &name[..name.len().min(100)]);
        header.set(100, b"0000644\x000000000\x000000000\x0000000000000\x0000000000000\0");
        header.set(156, &[kind]);
        header.set(257, b"ustar\x0000");
        header
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a number in octal, or in base 256 if the field is too short for the digits.
    pub(crate) fn number(&mut self, at: usize, width: usize, number: u64) {
        let digits = format!("{number:0width$o}\0", width = width - 1);
        if digits.len() == width {
            self.set(at, digits.as_bytes());
        } else {
            let bytes = [&[0; 16][..], &number.to_be_bytes()].concat();
            self.set(at, &bytes[bytes.len() - width..]);
            self.0[at] |= 0x80;
        }
    }

    pub(crate) fn size(&mut self, size: u64) {
        self.number(124, 12, size);
    }

    pub(crate) fn finish(mut self) -> [u8; BLOCK] {
        fix_checksum(&mut self.0);
        self.0
    }
}

fn fix_checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Corrects the checksum of every header. Finds the headers by the sizes in the headers before them.
pub(crate) fn fix_checksums(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<BLOCK>()) {
        if block.iter().all(|&byte| byte == 0) {
            return;
        }
        fix_checksum(block);
        let digits = block[124..136].iter().take_while(|byte| matches!(byte, b'0'..=b'7'));
        let size = digits.fold(0_usize, |size, digit| size << 3 | usize::from(digit - b'0'));
        let has_data = !matches!(block[156], b'1'..=b'6');
        let data = if has_data { size.next_multiple_of(BLOCK) } else { 0 };
        at = at.saturating_add(BLOCK).saturating_add(data);
    }
}

pub(crate) fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

/// Returns a member: a header with the right size, and the padded data.
pub(crate) fn member(kind: u8, name: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new(kind, name);
    header.size(data.len() as u64);
    let mut bytes = [&header.finish()[..], data].concat();
    pad(&mut bytes);
    bytes
}

/// `LENGTH KEY=VALUE\n`
pub(crate) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let digits = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits);
    let length = rest.len() + digits.expect("some number of digits is consistent");
    [length.to_string().as_bytes(), &rest].concat()
}

fn name(input: &mut Input<'_>) -> Vec<u8> {
    match input.below(8) {
        0..=3 => input.pick(&NAMES).to_vec(),
        4 => [input.pick(&NAMES), b"/", input.pick(&NAMES)].concat(),
        5 => vec![b'n'; 240 + input.below(30)],
        6 => b"a/".repeat(input.below(40)),
        _ => input.chunk().to_vec(),
    }
}

fn value(input: &mut Input<'_>, key: &str) -> Vec<u8> {
    match (input.below(8), key) {
        (0, _) => input.chunk().to_vec(),
        (1, _) => Vec::new(),
        (_, "path" | "linkpath" | "GNU.sparse.name") => name(input),
        (2, "mtime") => format!("-{}.{}", input.byte(), input.number()).into_bytes(),
        (_, "mtime") => format!("{}.{}", input.number(), input.byte()).into_bytes(),
        (_, "GNU.sparse.map") => {
            let numbers: Vec<String> = (0..input.below(6)).map(|_| input.below(2000).to_string()).collect();
            numbers.join(",").into_bytes()
        }
        (_, "GNU.sparse.major" | "GNU.sparse.minor") => input.below(2).to_string().into_bytes(),
        (_, "SCHILY.xattr.system.posix_acl_access" | "SCHILY.xattr.system.posix_acl_default") => acl(input),
        (_, "SCHILY.xattr.security.capability") => {
            let version = input.pick(&[0x0200_0000_u32, 0x0200_0001, 0x0300_0000, 0]);
            let length = input.pick(&[16_usize, 20, 8]);
            [&version.to_le_bytes()[..], &vec![1; length]].concat()
        }
        (2..=5, _) => input.below(3000).to_string().into_bytes(),
        _ => input.number().to_string().into_bytes(),
    }
}

/// Generates an ACL in the kernel's format: a version, then tag, permissions and id of each entry.
fn acl(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    let tags: &[u16] = if input.one_in(3) { &[1, 2, 4, 0x10, 0x20] } else { &[1, 4, 0x20] };
    for tag in tags {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&[input.byte() % 9, 0]);
        let id = if matches!(tag, 2 | 8) { 7 } else { u32::MAX };
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    input.mutate(&mut bytes);
    bytes
}

fn pax(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = Vec::new();
    for _ in 0..1 + input.below(4) {
        let key = input.pick(&KEYS);
        data.extend(pax_record(key.as_bytes(), &value(input, key)));
    }
    if input.one_in(12) {
        input.mutate(&mut data);
    }
    let kind = if input.one_in(5) { b'g' } else { b'x' };
    member(kind, b"PaxHeaders/x", &data)
}

/// Generates the data segments of a sparse file, as ascending offsets with lengths, and the size of the file.
fn map(input: &mut Input<'_>) -> (Vec<(u64, u64)>, u64) {
    let (mut segments, mut end) = (Vec::new(), 0);
    for _ in 0..input.below(8) {
        let start = end + input.below(700) as u64;
        let length = input.below(700) as u64;
        segments.push((start, length));
        end = start + length;
    }
    (segments, end + input.below(600) as u64)
}

fn sparse(input: &mut Input<'_>) -> Vec<u8> {
    let (map, size) = map(input);
    let stored: u64 = map.iter().map(|(_, length)| length).sum();
    let data: Vec<u8> = (0..stored).map(|at| at.to_le_bytes()[0] | 1).collect();
    let decimal = |numbers: &mut dyn Iterator<Item = u64>, end: &str| -> String {
        numbers.map(|number| format!("{number}{end}")).collect()
    };
    let mut flat = map.iter().flat_map(|(start, length)| [*start, *length]);
    let record =
        |key: &str, value: String| pax_record(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
    let mut records = match input.below(4) {
        0 => return gnu_sparse(input, &map, size, &data),
        1 => {
            let pairs = map.iter().flat_map(|(start, length)| {
                [record("offset", start.to_string()), record("numbytes", length.to_string())].concat()
            });
            [record("size", size.to_string()), record("numblocks", map.len().to_string())]
                .concat()
                .into_iter()
                .chain(pairs)
                .collect()
        }
        2 => {
            let list = decimal(&mut flat, ",");
            [
                record("size", size.to_string()),
                record("numblocks", map.len().to_string()),
                record("map", list.trim_end_matches(',').to_owned()),
            ]
            .concat()
        }
        _ => {
            let mut lines = format!("{}\n{}", map.len(), decimal(&mut flat, "\n")).into_bytes();
            pad(&mut lines);
            let records = [
                record("major", "1".to_owned()),
                record("minor", "0".to_owned()),
                record("name", "a".to_owned()),
                record("realsize", size.to_string()),
            ]
            .concat();
            let file = member(b'0', b"GNUSparseFile.0/a", &[lines, data].concat());
            return [member(b'x', b"PaxHeaders/a", &records), file].concat();
        }
    };
    if input.one_in(8) {
        input.mutate(&mut records);
    }
    [member(b'x', b"PaxHeaders/a", &records), member(b'0', b"a", &data)].concat()
}

fn gnu_sparse(input: &mut Input<'_>, map: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let entry = |&(start, length): &(u64, u64)| format!("{start:011o}\0{length:011o}\0").into_bytes();
    let mut header = Header::new(b'S', b"a");
    header.set(257, b"ustar  \0");
    header.size(data.len() as u64);
    header.number(483, 12, size);
    let (first, more) = map.split_at(map.len().min(4));
    first.iter().enumerate().for_each(|(position, segment)| header.set(386 + 24 * position, &entry(segment)));
    let mut blocks = Vec::new();
    // An extension block has room for 21 segments, more than a map has here. Sometimes an empty block follows.
    let empty = usize::from(input.one_in(4));
    if !more.is_empty() || empty > 0 {
        header.set(482, &[1]);
        let mut block: Vec<u8> = more.iter().flat_map(entry).collect();
        block.resize(BLOCK, 0);
        block[504] = u8::from(empty > 0);
        blocks.extend(block);
        blocks.resize(blocks.len() + empty * BLOCK, 0);
    }
    let mut bytes = [&header.finish()[..], &blocks, data].concat();
    pad(&mut bytes);
    bytes
}

fn any_member(input: &mut Input<'_>) -> Vec<u8> {
    const KINDS: &[u8] = b"00005512123467\0DVMSgxLK";
    let kind = if input.one_in(16) { input.byte() } else { input.pick(KINDS) };
    let name = name(input);
    let mut header = Header::new(kind, &name);
    match input.below(8) {
        0 => header.set(257, b"ustar  \0"),
        1 => header.set(257, &[0; BLOCK - 257]),
        2 => header.set(508, b"tar\0"),
        3 => {
            let prefix = input.chunk();
            header.set(345, &prefix[..prefix.len().min(155)]);
        }
        _ => {}
    }
    let link = input.pick(&NAMES);
    header.set(157, link);
    for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)] {
        match input.below(12) {
            0 => header.number(at, width, input.number()),
            1 => header.number(at, width, input.byte().into()),
            2 => {
                let raw = input.bytes(width);
                header.set(at, raw);
            }
            _ => {}
        }
    }
    let data = input.content(1500);
    match input.below(10) {
        0 => header.size(input.number()),
        1 => header.size(0),
        _ => header.size(data.len() as u64),
    }
    let has_data = !matches!(kind, b'1'..=b'6') || input.one_in(8);
    let mut bytes = [&header.finish()[..], if has_data { &data } else { &[] }].concat();
    pad(&mut bytes);
    bytes
}

/// Generates a whole archive.
pub(crate) fn archive(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ending = input.below(6);
    while !input.is_empty() && bytes.len() < 64 << 10 {
        match input.below(10) {
            0..=3 => bytes.extend(any_member(input)),
            4..=5 => bytes.extend(pax(input)),
            6..=7 => bytes.extend(sparse(input)),
            8 => {
                let kind = input.pick(b"LK");
                let mut text = name(input);
                text.extend(std::iter::repeat_n(0, input.below(3)));
                bytes.extend(member(kind, b"././@LongLink", &text));
            }
            _ => {
                let text = name(input);
                bytes.extend(member(input.pick(b"05"), &text, b""));
            }
        }
    }
    match ending {
        0 => {}
        1 => bytes.resize(bytes.len() + BLOCK, 0),
        2 => {
            bytes.resize(bytes.len() + BLOCK, 0);
            bytes.extend_from_slice(b"behind a lone block");
        }
        _ => bytes.resize(bytes.len() + 2 * BLOCK, 0),
    }
    bytes
}
