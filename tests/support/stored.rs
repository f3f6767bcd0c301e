//! A store with images whose layers are written as text, and access to them through [`ImageFs`].

use std::collections::HashMap;
use std::io::Write as _;

use rcx_imagefs::fs::{FileKind, FsOptions, ImageFs, ImageSource, Ino, InodeAttr, Lookup};
use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, Manifest, ManifestDigest, Name, media};
use rcx_imagefs::index::{BuildOptions, build};
use rcx_imagefs::layer::SpanLimits;
use rcx_imagefs::store::Store;
use tempfile::TempDir;

use crate::layers::{EntryKind, Line, parse, tar};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not compressed.
    Tar,
    /// One gzip member.
    Gzip,
    /// gzip members of this many bytes of tar each.
    Members(usize),
    /// zstd frames of this many bytes of tar each.
    Frames(usize),
    /// One zstd frame.
    Zstd,
}

impl Packing {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Tar => media::OCI_LAYER,
            Self::Gzip | Self::Members(_) => media::OCI_LAYER_GZIP,
            Self::Frames(_) | Self::Zstd => media::OCI_LAYER_ZSTD,
        }
    }

    pub fn pack(self, tar: &[u8]) -> Vec<u8> {
        let gzip = |part: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        };
        match self {
            Self::Tar => tar.to_vec(),
            Self::Gzip => gzip(tar),
            Self::Members(size) => tar.chunks(size).flat_map(gzip).collect(),
            Self::Frames(size) => {
                tar.chunks(size).flat_map(|part| zstd::encode_all(part, 3).unwrap()).collect()
            }
            Self::Zstd => zstd::encode_all(tar, 3).unwrap(),
        }
    }
}

/// A store in a temporary directory.
pub struct TestStore {
    _dir: TempDir,
    pub store: Store,
}

impl TestStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&dir.path().join("store")).unwrap();
        Self { _dir: dir, store }
    }

    /// Adds an image as `NAME:TAG`, from layers written as text.
    pub fn add_text(&self, reference: &str, layers: &str) -> (ManifestDigest, Vec<LayerDigest>) {
        self.add(reference, &parse(layers), Packing::Tar)
    }

    /// Adds an image as `NAME:TAG`. The spans of its layers are small, so that even small files cross them.
    pub fn add(
        &self,
        reference: &str,
        layers: &[Vec<Line>],
        packing: Packing,
    ) -> (ManifestDigest, Vec<LayerDigest>) {
        let tars: Vec<_> = layers.iter().map(|lines| tar(lines)).collect();
        self.add_tars(reference, &tars, packing)
    }

    /// The same for layers that are tars.
    pub fn add_tars(
        &self,
        reference: &str,
        tars: &[Vec<u8>],
        packing: Packing,
    ) -> (ManifestDigest, Vec<LayerDigest>) {
        let _lease = self.store.lease(None).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            self.store.put_small(&digest, bytes).unwrap();
            digest
        };
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        for tar in tars {
            let blob = packing.pack(tar);
            let layer = LayerDigest::new(put(&blob));
            let limits = SpanLimits { target: 4 << 10, max: 8 << 10 };
            let options = BuildOptions { limits, thin: false, ..BuildOptions::default() };
            let seekable = || self.store.create_seekable(&layer).map_err(std::io::Error::other);
            let (built, seekable) = build(&blob[..], &options, seekable).unwrap();
            if let Some(seekable) = seekable {
                seekable.commit().unwrap();
            }
            diff_ids.push(*built.diff_id());
            self.store.put_index(&layer, &built.finish(&layer, &blob[..]).unwrap()).unwrap();
            descriptors.push(Descriptor::new(packing.media_type(), layer.digest(), blob.len() as u64));
        }
        let digests = descriptors.iter().map(|layer| LayerDigest::new(layer.digest)).collect();
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        let config = Descriptor::new(media::OCI_CONFIG, put(config.as_bytes()), config.len() as u64);
        let manifest = Manifest::new(config, descriptors).unwrap();
        let bytes = manifest.to_bytes();
        let descriptor = Descriptor::new(manifest.media_type(), put(&bytes), bytes.len() as u64);
        let (name, tag) = reference.rsplit_once(':').unwrap();
        let (name, tag) = (Name::from_archive(name).unwrap(), tag.parse().unwrap());
        self.store.tag(&name, Some(&tag), &descriptor, None).unwrap();
        (ManifestDigest::from(&descriptor), digests)
    }

    /// A filesystem with the images that the store has now.
    pub fn fs(&self) -> ImageFs {
        self.fs_with(&FsOptions::default())
    }

    /// The same with options.
    pub fn fs_with(&self, options: &FsOptions) -> ImageFs {
        let fs = ImageFs::new(ImageSource::new(self.store.clone(), None), options);
        fs.refresh().unwrap();
        fs
    }
}

/// Looks up a name, which must exist.
#[track_caller]
pub fn lookup(fs: &ImageFs, parent: Ino, name: &[u8]) -> InodeAttr {
    match fs.lookup(parent, name) {
        Ok(Lookup::Found(attr)) => attr,
        other => panic!("{}: {other:?}", name.escape_ascii()),
    }
}

/// Follows a path from the root of the mount, through the symlinks of tags but not those of images.
#[track_caller]
pub fn resolve(fs: &ImageFs, path: &str) -> InodeAttr {
    let mut at = fs.getattr(Ino::ROOT).unwrap();
    let mut rest: Vec<Vec<u8>> = path.split('/').rev().map(|name| name.as_bytes().to_vec()).collect();
    while let Some(name) = rest.pop() {
        let next = lookup(fs, at.ino, &name);
        match (next.kind, at.mode) {
            // Symlinks of tags are in the directories of the namespace: the root has mode 0505, the others 0555. Images of
            // these tests have no directory of these modes.
            (FileKind::Symlink, 0o505 | 0o555) => {
                let target = fs.readlink(next.ino).unwrap();
                rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            }
            _ => at = next,
        }
    }
    at
}

/// Lists a directory, in order and without `.` and `..`.
pub fn names(fs: &ImageFs, directory: Ino) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    fs.readdir(directory, 0, |entry| {
        names.push(entry.name.to_vec());
        false
    })
    .unwrap();
    assert_eq!(names[..2], [b".".to_vec(), b"..".to_vec()]);
    names.split_off(2)
}

/// Reads a whole file in pieces of `step` bytes.
pub fn content(fs: &ImageFs, ino: Ino, step: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let piece = fs.read(ino, bytes.len() as u64, step).unwrap();
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&piece);
    }
}

/// Reads an image as the lines of one layer, in the order of `tree::dump`. The root has a line only if its attributes are not the
/// default ones.
pub fn image_lines(fs: &ImageFs, root: &InodeAttr) -> Vec<Line> {
    let mut lines = Vec::new();
    let root_line = line(fs, b"/", root);
    if root_line != Line::new(b"/", EntryKind::Directory) {
        lines.push(root_line);
    }
    show_directory(fs, root.ino, b"", &mut lines, &mut HashMap::new());
    lines
}

fn show_directory(
    fs: &ImageFs,
    directory: Ino,
    path: &[u8],
    lines: &mut Vec<Line>,
    first_names: &mut HashMap<Ino, Vec<u8>>,
) {
    for name in names(fs, directory) {
        let attr = lookup(fs, directory, &name);
        assert_eq!(fs.getattr(attr.ino).unwrap(), attr, "lookup and getattr agree");
        let path = if path.is_empty() { name } else { [path, b"/", &name].concat() };
        if attr.kind == FileKind::Directory {
            lines.push(line(fs, &path, &attr));
            show_directory(fs, attr.ino, &path, lines, first_names);
        } else if let Some(first) = first_names.get(&attr.ino) {
            lines.push(Line::new(&path, EntryKind::Hardlink(first.clone())));
        } else {
            lines.push(line(fs, &path, &attr));
            first_names.insert(attr.ino, path);
        }
    }
}

/// Reads one file as a line of [`image_lines`].
pub fn line(fs: &ImageFs, path: &[u8], attr: &InodeAttr) -> Line {
    let device = |rdev: u32| ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | (rdev >> 12 & 0xf_ff00));
    let what = match attr.kind {
        FileKind::Directory => EntryKind::Directory,
        FileKind::Regular => EntryKind::File(content(fs, attr.ino, 1 << 20)),
        FileKind::Symlink => EntryKind::Symlink(fs.readlink(attr.ino).unwrap()),
        FileKind::CharDevice => EntryKind::Char(device(attr.rdev).0, device(attr.rdev).1),
        FileKind::BlockDevice => EntryKind::Block(device(attr.rdev).0, device(attr.rdev).1),
        FileKind::Fifo => EntryKind::Fifo,
    };
    let sized = match &what {
        EntryKind::File(bytes) | EntryKind::Symlink(bytes) => bytes.len() as u64,
        EntryKind::Directory => 4096,
        _ => 0,
    };
    assert_eq!(attr.size, sized);
    let mut line = Line::new(path, what);
    (line.mode, line.uid, line.gid) = (attr.mode.into(), attr.uid, attr.gid);
    line.mtime = (attr.mtime.sec, attr.mtime.nsec);
    let names = fs.listxattr(attr.ino).unwrap();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let value = fs.getxattr(attr.ino, name).unwrap();
        line.xattrs.push((String::from_utf8(name.to_vec()).unwrap(), value));
    }
    line
}
