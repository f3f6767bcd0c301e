//! Generates the same layers in every run: text that compresses like source code, and names as in a Python installation.

use std::io::Write as _;

use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::{BuildOptions, Index, build};

/// The number of directories in a layer with many entries.
pub(crate) const DIRECTORIES: u32 = 200;
/// The number of files in each directory. Together with the directories, these are about 20,000 entries.
pub(crate) const FILES: u32 = 99;

/// A pseudorandom number generator (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns the next number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Generates lines of words from a vocabulary in which a few words are frequent.
pub(crate) fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        let frequent = random.below(4) > 0;
        let word = random.below(if frequent { 64 } else { 40_000 });
        let _ = write!(text, "{:x}", word.wrapping_mul(0x9e3b_01d5) % 0xfff_ffff);
        text.push(if random.below(9) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(len);
    text
}

/// A tar under construction.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, tar::EntryType::Regular, 0o644, content);
    }

    fn entry(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Generates a layer with `len` bytes of text in files of 16 KiB.
pub(crate) fn layer_of_text(len: usize) -> Vec<u8> {
    const FILE: usize = 16 << 10;
    let mut tar = Tar::new();
    for (number, content) in text(len, 1).chunks(FILE).enumerate() {
        tar.file(&format!("usr/lib/python3/module{number:04}.py"), content);
    }
    tar.finish()
}

/// Returns the path of a file in a layer with many entries.
pub(crate) fn path(directory: u32, file: u32) -> String {
    format!("usr/lib/python3/dist-packages/package{directory:03}/module{file:03}.py")
}

/// Generates a layer with about 20,000 entries. Layer `number` shares three quarters of its directories with the layer below,
/// and in a hundred of them it hides a file that only the lowest layer has.
pub(crate) fn layer_of_entries(number: u32) -> Vec<u8> {
    let mut tar = Tar::new();
    let first = number * DIRECTORIES / 4;
    for directory in first..first + DIRECTORIES {
        let first_file = path(directory, 0);
        let (parent, _) = first_file.rsplit_once('/').unwrap();
        tar.entry(&format!("{parent}/"), tar::EntryType::Directory, 0o755, b"");
        for file in 0..FILES {
            tar.file(&path(directory, file), b"");
        }
        if number == 0 {
            tar.file(&format!("{parent}/old.py"), b"");
        } else if directory < first + 100 {
            tar.file(&format!("{parent}/.wh.old.py"), b"");
        }
    }
    tar.finish()
}

pub(crate) fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// Compresses a tar to zstd frames of 256 KiB of tar each, as builders write layers for lazy loading.
pub(crate) fn zstd(tar: &[u8]) -> Vec<u8> {
    tar.chunks(256 << 10).flat_map(|part| zstd::encode_all(part, 3).unwrap()).collect()
}

/// Builds the index file of a blob.
pub(crate) fn index_of(blob: &[u8]) -> Vec<u8> {
    let (built, _) = build(blob, &BuildOptions::default(), || Ok(std::io::sink())).unwrap();
    built.finish(&LayerDigest::new(Digest::of(blob)), blob).unwrap()
}

pub(crate) fn open(blob: &[u8]) -> Index<Vec<u8>> {
    Index::open(index_of(blob)).unwrap()
}
