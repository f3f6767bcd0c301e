//! Layers written as text in the syntax of `tree::dump`: parsing, writing as tar, indexing and merging.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use rcx_imagefs::error::chain_text;
use rcx_imagefs::image::LayerDigest;
use rcx_imagefs::index::{BuildOptions, Index, Layer, LayerBytes, build};
use rcx_imagefs::tree::{self, Tree};

/// The kind of a line, with the content or target of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    File(Vec<u8>),
    /// A file of this size with bytes at ascending offsets, and holes around them. Has no form as text.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Whiteout,
    Opaque,
}

/// One line of a layer: an entry or a marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The path as written, possibly with `..` or a leading slash. A marker has the path that it hides.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Line {
    pub fn new(path: &[u8], kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            EntryKind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        Self { path: path.to_vec(), kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }

    fn parse(text: &str) -> Self {
        let mut words = text.split_ascii_whitespace();
        let letter = words.next().expect("a letter for the kind");
        let (attributes, fields): (Vec<_>, Vec<_>) =
            words.partition(|word| word.split_once('=').is_some_and(|(key, _)| is_attribute(key)));
        let mut fields = fields.into_iter().map(unescape);
        let path = fields.next().unwrap_or_else(|| panic!("no path in `{text}`"));
        let kind = match letter {
            "d" => EntryKind::Directory,
            "f" => EntryKind::File(fields.next().unwrap_or_default()),
            "l" => EntryKind::Symlink(fields.next().expect("the target of a symlink")),
            "h" => EntryKind::Hardlink(fields.next().expect("the target of a hard link")),
            "c" | "b" => {
                let numbers = String::from_utf8(fields.next().expect("device numbers")).unwrap();
                let (major, minor) = numbers.split_once(':').expect("MAJOR:MINOR");
                let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
                if letter == "c" { EntryKind::Char(major, minor) } else { EntryKind::Block(major, minor) }
            }
            "p" => EntryKind::Fifo,
            "w" => EntryKind::Whiteout,
            "o" => EntryKind::Opaque,
            _ => panic!("unknown kind in `{text}`"),
        };
        assert!(fields.next().is_none(), "too many fields in `{text}`");
        let mut line = Self::new(&path, kind);
        for (key, value) in attributes.iter().filter_map(|word| word.split_once('=')) {
            match key {
                "mode" => line.mode = u32::from_str_radix(value, 8).unwrap(),
                "uid" => line.uid = value.parse().unwrap(),
                "gid" => line.gid = value.parse().unwrap(),
                "mtime" => line.mtime = parse_time(value),
                _ => line.xattrs.push((key["xattr.".len()..].to_owned(), unescape(value))),
            }
        }
        line
    }
}

fn is_attribute(key: &str) -> bool {
    matches!(key, "mode" | "uid" | "gid" | "mtime") || key.starts_with("xattr.")
}

fn parse_time(text: &str) -> (i64, u32) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().unwrap();
    let nsec: u32 = format!("{fraction:0<9}").parse().unwrap();
    if text.starts_with('-') && nsec > 0 { (sec - 1, 1_000_000_000 - nsec) } else { (sec, nsec) }
}

/// Decodes the escapes of a field.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match tail[0] {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'x' => u8::from_str_radix(str::from_utf8(&tail[1..3]).unwrap(), 16).unwrap(),
            other => other,
        });
        rest = &tail[if tail[0] == b'x' { 3 } else { 1 }..];
    }
    bytes
}

/// Parses layers, from the lowest up, separated by `---`.
pub fn parse(text: &str) -> Vec<Vec<Line>> {
    let mut layers = vec![Vec::new()];
    for line in text.lines().map(str::trim) {
        match line {
            "" => {}
            "---" => layers.push(Vec::new()),
            line => layers.last_mut().expect("never empty").push(Line::parse(line)),
        }
    }
    layers
}

/// Writes a layer as a tar.
pub fn tar(lines: &[Line]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines {
        let marker = |name: &[u8]| {
            let split = line.path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            [&line.path[..split], b".wh.", &line.path[split..], name].concat()
        };
        let stored;
        let (typeflag, path, link, data): (_, Vec<u8>, &[u8], &[u8]) = match &line.kind {
            EntryKind::Directory => (tar::EntryType::Directory, [&line.path[..], b"/"].concat(), b"", b""),
            EntryKind::File(data) => (tar::EntryType::Regular, line.path.clone(), b"", data),
            EntryKind::Sparse(_, segments) => {
                stored = sparse_data(segments);
                (tar::EntryType::Regular, line.path.clone(), b"", &stored)
            }
            EntryKind::Symlink(target) => (tar::EntryType::Symlink, line.path.clone(), target, b""),
            EntryKind::Hardlink(target) => (tar::EntryType::Link, line.path.clone(), target, b""),
            EntryKind::Char(..) => (tar::EntryType::Char, line.path.clone(), b"", b""),
            EntryKind::Block(..) => (tar::EntryType::Block, line.path.clone(), b"", b""),
            EntryKind::Fifo => (tar::EntryType::Fifo, line.path.clone(), b"", b""),
            EntryKind::Whiteout => (tar::EntryType::Regular, marker(b""), b"", b""),
            EntryKind::Opaque => {
                (tar::EntryType::Regular, [&line.path[..], b"/.wh..wh..opq"].concat(), b"", b"")
            }
        };
        let mut pax: Vec<(String, Vec<u8>)> =
            line.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())).collect();
        if let EntryKind::Sparse(size, _) = &line.kind {
            let records = [("major", "1"), ("minor", "0"), ("realsize", &size.to_string())];
            pax.extend(records.map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes().to_vec())));
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(typeflag);
        header.set_mode(line.mode);
        header.set_uid(line.uid.into());
        header.set_gid(line.gid.into());
        header.set_size(data.len() as u64);
        match (u64::try_from(line.mtime.0), line.mtime.1) {
            (Ok(sec), 0) => header.set_mtime(sec),
            (_, nsec) => {
                header.set_mtime(0);
                let (sign, sec, nsec) = match line.mtime.0 {
                    sec if sec < 0 && nsec > 0 => ("-", -(sec + 1), 1_000_000_000 - nsec),
                    sec => ("", sec, nsec),
                };
                pax.push(("mtime".to_owned(), format!("{sign}{sec}.{nsec:09}").into_bytes()));
            }
        }
        if let EntryKind::Char(major, minor) | EntryKind::Block(major, minor) = line.kind {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        // Set as bytes: the functions of `tar` refuse some of the paths that are to be tested.
        match path.len() {
            0..=100 => header.as_old_mut().name[..path.len()].copy_from_slice(&path),
            _ => pax.push(("path".to_owned(), path)),
        }
        match link.len() {
            0..=100 => header.as_old_mut().linkname[..link.len()].copy_from_slice(link),
            _ => pax.push(("linkpath".to_owned(), link.to_vec())),
        }
        header.set_cksum();
        builder
            .append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
            .unwrap();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The data of a sparse file in PAX format 1.0: a map, padded to whole blocks, and the segments.
fn sparse_data(segments: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut data = format!("{}\n", segments.len()).into_bytes();
    for (offset, bytes) in segments {
        data.extend_from_slice(format!("{offset}\n{}\n", bytes.len()).as_bytes());
    }
    data.resize(data.len().next_multiple_of(512), 0);
    segments.iter().for_each(|(_, bytes)| data.extend_from_slice(bytes));
    data
}

/// A sparse file: its name, its size, and its data with their offsets.
pub type SparseFile<'a> = (&'a str, u64, &'a [(u64, &'a [u8])]);

/// Writes sparse files as a tar in GNU tar's form. Each has a name, a size, and bytes at offsets.
pub fn sparse_tar(files: &[SparseFile<'_>]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, writes) in files {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(*size).unwrap();
        for (at, bytes) in *writes {
            file.write_all_at(bytes, *at).unwrap();
        }
    }
    let mut tar = Command::new("tar");
    tar.args(["--sparse", "--format=pax", "-C"]).arg(dir.path()).args(["-cf", "-"]);
    let output = tar.args(files.iter().map(|(name, ..)| name)).output().expect("GNU tar is installed");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Indexes a layer in memory: a tar, compressed or not.
pub fn open(blob: Vec<u8>) -> Result<Layer<Vec<u8>>, String> {
    let options = BuildOptions::default();
    let (built, _) =
        build(&blob[..], &options, || Ok(std::io::sink())).map_err(|error| chain_text(&error))?;
    let index = built.finish(&LayerDigest::new(rcx_imagefs::image::Digest::of(&blob)), &blob[..]).unwrap();
    Ok(Layer::new(Index::open(index).unwrap(), LayerBytes::Memory(blob), None))
}

/// A merged tree and its layers.
pub struct Merged {
    pub layers: Vec<Layer<Vec<u8>>>,
    pub tree: Tree,
}

impl Merged {
    /// The tree as text, with the content of its files.
    pub fn dump(&self) -> String {
        let indexes: Vec<_> = self.layers.iter().map(Layer::index).collect();
        tree::dump(&self.tree, &indexes, |layer, entry| {
            self.layers[layer.index()].read(entry, 0, 1 << 20).expect("layers in memory can be read")
        })
    }
}

/// Merges layers written as text.
pub fn merge_text(text: &str) -> Result<Merged, String> {
    merge_lines(&parse(text))
}

/// Merges layers.
pub fn merge_lines(lines: &[Vec<Line>]) -> Result<Merged, String> {
    let layers = lines.iter().map(|layer| open(tar(layer))).collect::<Result<Vec<_>, _>>()?;
    let indexes: Vec<_> = layers.iter().map(Layer::index).collect();
    let tree = tree::merge(&indexes).map_err(|error| chain_text(&error))?;
    Ok(Merged { layers, tree })
}
