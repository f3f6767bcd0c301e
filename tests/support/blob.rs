//! Makes layers byte by byte from the language of the conformance suite: members as lines of a dump or with handwritten headers,
//! then changes to the tar as a whole. The README of the suite describes the language.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use rcx_imagefs::image::Digest;

use crate::layers::{parse, tar, unescape};

const BLOCK: usize = 512;

/// The blob of a layer, and how the manifest and the configuration describe it.
#[derive(Debug, Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub diff_id: Digest,
    pub digest: Digest,
    pub media_type: String,
}

impl Blob {
    /// Makes the blob that these lines describe.
    pub fn of_text(text: &str) -> Self {
        let (changes, members): (Vec<&str>, Vec<&str>) = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .partition(|line| line.starts_with('!'));
        let mut builder = BlobBuilder { bytes: members_of(&members), ..BlobBuilder::default() };
        if !changes.iter().any(|change| change.starts_with("!end ")) {
            builder.zeros(2 * BLOCK);
        }
        for change in changes {
            builder.change(change);
        }
        builder.finish()
    }
}

fn members_of(lines: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        match words.next().expect("lines are not empty") {
            "m" => bytes.extend(member(words)),
            "pax" => bytes.extend(extension(b'x', words)),
            "gpax" => bytes.extend(extension(b'g', words)),
            "raw" => words.for_each(|word| bytes.extend(unescape(word))),
            "pad" => bytes.resize(bytes.len().next_multiple_of(BLOCK), 0),
            _ => {
                let member = tar(&parse(line).remove(0));
                bytes.extend_from_slice(&member[..member.len() - 2 * BLOCK]);
            }
        }
    }
    bytes
}

/// `m TYPE NAME [KEY=VALUE]...`
fn member<'a>(mut words: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut header = [0; BLOCK];
    let mut set = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let kind = unescape(words.next().expect("a type"));
    set(0, &unescape(words.next().expect("a name")));
    set(100, b"0000644\x000000000\x000000000\0");
    set(136, b"00000000000\0");
    set(156, &kind);
    set(257, b"ustar\x0000");
    set(329, b"0000000\x000000000\0");
    let octal = |value: &str, width: usize| {
        let number: u64 = value.parse().unwrap_or_else(|_| panic!("a number: {value}"));
        format!("{number:0width$o}\0").into_bytes()
    };
    let (mut data, mut size, mut checksum) = (Vec::new(), None, 0);
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "link" => set(157, &unescape(value)),
            "data" => data = unescape(value),
            "size" => size = Some(octal(value, 11)),
            "mode" => set(100, format!("{value:0>7}\0").as_bytes()),
            "uid" => set(108, &octal(value, 7)),
            "gid" => set(116, &octal(value, 7)),
            "mtime" => set(136, &octal(value, 11)),
            "prefix" => set(345, &unescape(value)),
            "format" => match value {
                "gnu" => set(257, b"ustar  \0"),
                "v7" => set(257, &[0; BLOCK - 257]),
                "star" => set(508, b"tar\0"),
                other => panic!("unknown format {other}"),
            },
            // The first entries of an old GNU sparse map, as OFFSET:LENGTH,...
            "map" => {
                for (position, pair) in value.split(',').enumerate() {
                    let (offset, length) = pair.split_once(':').expect("OFFSET:LENGTH");
                    set(386 + 24 * position, &[octal(offset, 11), octal(length, 11)].concat());
                }
            }
            "realsize" => set(483, &octal(value, 11)),
            "checksum" => checksum = value.parse().unwrap_or_else(|_| panic!("a number: {value}")),
            at => {
                let at = at.strip_prefix("at.").and_then(|at| at.parse().ok());
                set(at.unwrap_or_else(|| panic!("unknown key {key}")), &unescape(value));
            }
        }
    }
    let declared = size.unwrap_or_else(|| octal(&data.len().to_string(), 11));
    // Unless `at.124` has set it.
    if header[124] == 0 {
        header[124..136].copy_from_slice(&declared);
    }
    header[148..156].fill(b' ');
    let sum: i32 = header.iter().map(|&byte| i32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{:06o}\0 ", sum + checksum).as_bytes());
    let mut bytes = [&header[..], &data].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// `pax KEY=VALUE...`: an extension header for the next member (or, `gpax`, for all).
fn extension<'a>(kind: u8, words: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut data = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=').expect("KEY=VALUE");
        let rest = [b" ", &unescape(key)[..], b"=", &unescape(value), b"\n"].concat();
        let digits = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits);
        let digits = digits.expect("some number of digits fits");
        data.extend_from_slice((rest.len() + digits).to_string().as_bytes());
        data.extend_from_slice(&rest);
    }
    let kind = char::from(kind).to_string();
    let data = data.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    member([kind.as_str(), "PaxHeaders/x", &format!("data={data}")].into_iter())
}

#[derive(Debug, Default)]
struct BlobBuilder {
    bytes: Vec<u8>,
    /// The digest of the tar, set when it is compressed.
    diff_id: Option<Digest>,
    digest: Option<Digest>,
    media_type: Option<String>,
}

impl BlobBuilder {
    fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// Applies a line that starts with `!`.
    fn change(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let what = words.next().expect("a word");
        let words: Vec<&str> = words.collect();
        let number = |position: usize| -> usize {
            words[position].parse().unwrap_or_else(|_| panic!("`{line}` lacks a number"))
        };
        let option = |key: &str| -> Option<usize> {
            let value = words.first()?.strip_prefix(key)?.strip_prefix('=')?;
            Some(value.parse().expect("a number"))
        };
        match what {
            "!end" => self.zeros(number(0) * BLOCK),
            "!zeros" => self.zeros(number(0)),
            "!tail" => self.bytes.extend(unescape(words[0])),
            "!front" => self.bytes.splice(..0, unescape(words[0])).for_each(drop),
            "!keep" => self.bytes.truncate(number(0)),
            "!cut" => self.bytes.truncate(self.bytes.len() - number(0)),
            "!set" => {
                let at = match words[0].strip_prefix('-') {
                    Some(back) => self.bytes.len() - back.parse::<usize>().expect("a number"),
                    None => number(0),
                };
                let new = unescape(words[1]);
                self.bytes[at..at + new.len()].copy_from_slice(&new);
            }
            "!gzip" => {
                let size = option("members").unwrap_or(usize::MAX);
                let fields = words.first() == Some(&"fields");
                self.pack(size, |part| gzip(part, fields));
            }
            "!zstd" => {
                let checksum = words.first() == Some(&"checksum");
                match option("window") {
                    Some(log) => self.pack(usize::MAX, |part| raw_zstd(part, log)),
                    None => self.pack(option("frames").unwrap_or(usize::MAX), |part| zstd(part, checksum)),
                }
            }
            "!media" => self.media_type = Some(words[0].to_owned()),
            "!diff-id" => self.diff_id = Some(Digest::of(words[0].as_bytes())),
            "!digest" => self.digest = Some(Digest::of(words[0].as_bytes())),
            other => panic!("unknown change {other}"),
        }
    }

    fn pack(&mut self, size: usize, pack: impl Fn(&[u8]) -> Vec<u8>) {
        self.diff_id.get_or_insert(Digest::of(&self.bytes));
        self.bytes = self.bytes.chunks(size).flat_map(pack).collect();
    }

    fn finish(self) -> Blob {
        let packed = match self.bytes.as_slice() {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => "+zstd",
            _ => "",
        };
        Blob {
            diff_id: self.diff_id.unwrap_or_else(|| Digest::of(&self.bytes)),
            digest: self.digest.unwrap_or_else(|| Digest::of(&self.bytes)),
            media_type: self
                .media_type
                .unwrap_or_else(|| format!("application/vnd.oci.image.layer.v1.tar{packed}")),
            bytes: self.bytes,
        }
    }
}

/// Makes one gzip member; with `fields`, its header has all optional fields of RFC 1952.
fn gzip(data: &[u8], fields: bool) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    if fields {
        // Text, own checksum, extra, name, comment.
        bytes[3] = 0b1_1111;
        bytes.extend_from_slice(b"\x06\x00ab\x02\x00hiname\0a comment\0");
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&crc[..2]);
    }
    let mut deflate = DeflateEncoder::new(bytes, Compression::new(6));
    deflate.write_all(data).expect("compresses in memory");
    let mut bytes = deflate.finish().expect("compresses in memory");
    bytes.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    let length = u32::try_from(data.len()).expect("cases are small");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes
}

/// Makes one zstd frame.
fn zstd(data: &[u8], checksum: bool) -> Vec<u8> {
    let mut frame = zstd::Encoder::new(Vec::new(), 3).expect("level 3 exists");
    frame.include_checksum(checksum).expect("checksums are supported");
    frame.write_all(data).expect("compresses in memory");
    frame.finish().expect("compresses in memory")
}

/// Makes one zstd frame of raw blocks that declares a window of `1 << log` bytes.
fn raw_zstd(data: &[u8], log: usize) -> Vec<u8> {
    let exponent = u8::try_from(log - 10).expect("the format can express the window");
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3];
    let blocks: Vec<&[u8]> = data.chunks(1024).collect();
    for (position, block) in blocks.iter().enumerate() {
        let last = u32::from(position + 1 == blocks.len());
        let header = u32::try_from(block.len()).expect("a kilobyte") << 3 | last;
        bytes.extend_from_slice(&header.to_le_bytes()[..3]);
        bytes.extend_from_slice(block);
    }
    bytes
}
