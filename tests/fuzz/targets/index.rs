//! Index files: valid ones for layers of every codec, with changed fields, records and sections. The checksum is corrected, so
//! that validation has to detect the damage.
//!
//! Properties: a file that opens answers every lookup without a panic, in memory bounded by its size; decoding a span yields
//! as many bytes as the index declares, or an error; merging layers with such indexes yields a tree or an error. Without a
//! corrected checksum, no changed file opens.

use std::sync::OnceLock;

use rcx_imagefs::image::{Digest, LayerDigest};
use rcx_imagefs::index::format::{CHECKED_FROM, HEADER_LEN, SECTIONS, SPAN_LEN};
use rcx_imagefs::index::{BuildOptions, EntryId, Index, IndexedKind, Layer, LayerBytes, Piece, build};
use rcx_imagefs::layer::{SpanLimits, TarOffset};
use rcx_imagefs::tree::{self, NodeId};

use crate::input::Input;
use crate::members;
use support::layers::{parse, tar};
use support::stored::Packing;

/// The entries of every test layer, of each kind. `valid_layers` adds a file longer than one span and a sparse file.
const LAYER: &str = "\
    d etc mode=700 uid=3 mtime=1500000000.000000001
    f etc/hosts 127.0.0.1 mode=600 gid=7 mtime=-1.500000000 xattr.user.a=b xattr.security.other=\\x01\\x00
    h etc/alias etc/hosts
    l etc/link ../etc/./hosts
    c dev/null 1:3 mode=666
    b dev/disk 8:300
    p run/pipe
    w gone/file
    o var/cache
    f var/cache/new x mode=4755
    l lib usr/lib
    f lib/a.so text";

/// A layer with a valid index.
struct ValidLayer {
    index: Vec<u8>,
    blob: Vec<u8>,
    seekable: Option<Vec<u8>>,
}

fn valid_layers() -> &'static [ValidLayer] {
    static LAYERS: OnceLock<Vec<ValidLayer>> = OnceLock::new();
    LAYERS.get_or_init(|| {
        let mut tar = tar(&parse(LAYER)[0]);
        tar.truncate(tar.len() - 1024);
        let content: Vec<u8> =
            (0..2500_u32).flat_map(|n| format!("{} ", n * n % 1009).into_bytes()).collect();
        tar.extend(members::member(b'0', b"etc/long", &content));
        // A sparse file in PAX 0.1 format: 700 bytes at offset 100 and 300 at offset 5000.
        let map = [("size", "9000"), ("numblocks", "2"), ("map", "100,700,5000,300")];
        let records: Vec<u8> = map
            .iter()
            .flat_map(|(key, value)| {
                members::pax_record(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes())
            })
            .collect();
        tar.extend(members::member(b'x', b"PaxHeaders/s", &records));
        tar.extend(members::member(b'0', b"etc/sparse", &content[..1000]));
        tar.resize(tar.len() + 1024, 0);
        let packings =
            [Packing::Tar, Packing::Gzip, Packing::Members(3000), Packing::Frames(3000), Packing::Zstd];
        packings.iter().map(|packing| valid_layer(packing.pack(&tar))).collect()
    })
}

fn valid_layer(blob: Vec<u8>) -> ValidLayer {
    let options = BuildOptions {
        limits: SpanLimits { target: 4096, max: 5120 },
        thin: false,
        ..BuildOptions::default()
    };
    let (built, seekable) = build(&blob[..], &options, || Ok(Vec::new())).unwrap();
    let index = built.finish(&LayerDigest::new(Digest::of(&blob)), &blob[..]).unwrap();
    ValidLayer { index, blob, seekable }
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let layers = valid_layers();
    let original = &layers[input.below(layers.len())];
    let keep_checksum = input.one_in(16);
    let mut file = original.index.clone();
    let mut parts = IndexParts::split(&file);
    let mut lengths = None;
    while !input.is_empty() {
        match input.below(12) {
            0 => {
                let at = input.pick(&[8, 12, 48, 80, 112, 120, 128]);
                set(&mut parts.header, at, &mut input);
            }
            1 => lengths = Some((input.below(SECTIONS), input.number())),
            _ => parts.change(&mut input),
        }
    }
    file = parts.join();
    if let Some((section, length)) = lengths {
        file[136 + 8 * section..][..8].copy_from_slice(&length.to_le_bytes());
    }
    if keep_checksum {
        let same = file[CHECKED_FROM..] == original.index[CHECKED_FROM..];
        assert!(same || Index::open(file).is_err(), "a changed file opens with the old checksum");
        return;
    }
    let checksum = Digest::of(&file[CHECKED_FROM..]);
    file[16..CHECKED_FROM].copy_from_slice(checksum.as_bytes());
    let Ok(index) = Index::open(file) else { return };
    check_lookups(index, original);
}

/// The header and the sections of an index file.
struct IndexParts {
    header: Vec<u8>,
    sections: Vec<Vec<u8>>,
}

/// The record size of each section in bytes; 1 for heaps.
const RECORDS: [usize; SECTIONS] = [SPAN_LEN, 16, 20, 28, 4, 24, 24, 8, 4, 8, 1, 1, 1, 1, 1];

impl IndexParts {
    fn split(file: &[u8]) -> Self {
        let (header, mut rest) = file.split_at(HEADER_LEN);
        let sections = (0..SECTIONS).map(|section| {
            let length = u64::from_le_bytes(header[136 + 8 * section..][..8].try_into().unwrap());
            let length = usize::try_from(length).unwrap();
            let (section, behind) = rest.split_at(length.next_multiple_of(8));
            rest = behind;
            section[..length].to_vec()
        });
        Self { sections: sections.collect(), header: header.to_vec() }
    }

    fn join(&self) -> Vec<u8> {
        let mut file = self.header.clone();
        for (ordinal, section) in self.sections.iter().enumerate() {
            file[136 + 8 * ordinal..][..8].copy_from_slice(&(section.len() as u64).to_le_bytes());
            file.extend_from_slice(section);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        file
    }

    /// Changes one field, record or byte of a section.
    fn change(&mut self, input: &mut Input<'_>) {
        let ordinal = input.below(SECTIONS);
        let (section, width) = (&mut self.sections[ordinal], RECORDS[ordinal]);
        let records = section.len() / width;
        let at = input.below(records.max(1)) * width;
        // An earlier change may have shortened the last record.
        let end = (at + width).min(section.len());
        match input.below(8) {
            0 => drop(section.drain(at.min(end)..end)),
            1 if at < end => {
                let record = section[at..end].to_vec();
                let to = (input.below(records + 1) * width).min(end);
                section.splice(to..to, record).for_each(drop);
            }
            2 => section.truncate(at),
            3 => input.mutate(section),
            _ if width > 1 => set(section, at + input.below(width / 2) * 2, input),
            _ => set(section, at, input),
        }
    }
}

/// Replaces or increments a number of 1, 2, 4 or 8 bytes.
fn set(bytes: &mut [u8], at: usize, input: &mut Input<'_>) {
    let width = 1 << input.below(4);
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let mut number = [0; 8];
    number[..width].copy_from_slice(field);
    let number = match input.below(3) {
        0 => u64::from_le_bytes(number).wrapping_add_signed(i64::from(input.byte()) - 128),
        _ => input.number(),
    };
    field.copy_from_slice(&number.to_le_bytes()[..width]);
}

fn check_lookups(index: Index<Vec<u8>>, original: &ValidLayer) {
    let seekable = original.seekable.clone().map(LayerBytes::Memory);
    let layer = Layer::new(index, LayerBytes::Memory(original.blob.clone()), seekable);
    let index = layer.index();
    let sizes: usize = index.section_sizes().sum();
    assert!(sizes as u64 <= index.file_size());
    for path in index.whiteouts().chain(index.opaques()) {
        std::hint::black_box(path.len());
    }
    for (id, entry) in index.entries() {
        let path = entry.path();
        assert!(path.is_empty() == entry.name().is_empty() && index.contains(id));
        assert!(entry.mode() <= 0o7777 && entry.mtime().nsec < 1_000_000_000);
        for (name, value) in entry.xattrs() {
            assert!(!name.is_empty() && value.len() < original.index.len() * 2);
        }
        std::hint::black_box((entry.uid(), entry.gid(), entry.offset(), index.own_nlink(id)));
        check_content(&layer, id);
    }
    assert!(!index.contains(EntryId::new(u32::try_from(index.len()).unwrap())));
    let mut end = 0;
    for id in index.spans() {
        let range = index.span_range(id);
        assert!(range.start == end && range.start < range.end, "spans are not contiguous");
        assert_eq!(index.span_at(TarOffset::new(range.start)), Some(id));
        assert_eq!(index.span_at(TarOffset::new(range.end - 1)), Some(id));
        let source = index.blob_range(id);
        // A file whose version was changed to the one before may open, too.
        assert_eq!(source.is_none(), index.is_outdated());
        assert!(source.is_none_or(|source| source.bytes.end <= index.blob_size()));
        let _ = layer.verify_range(id);
        if let Ok(bytes) = layer.decode_span(id) {
            assert_eq!(bytes.len() as u64, range.end - range.start);
        }
        end = range.end;
    }
    assert_eq!((end, index.span_at(TarOffset::new(end))), (index.tar_size(), None));
    check_merge(&layer, original);
}

fn check_content(layer: &Layer<Vec<u8>>, id: EntryId) {
    let IndexedKind::Regular { size } = layer.index().entry(id).kind() else {
        assert!(layer.pieces(id, 0, u64::MAX).is_empty() && layer.stored_size(id) == 0);
        return;
    };
    assert!(layer.stored_size(id) <= size);
    for (offset, length) in
        [(0, u64::MAX), (0, 1), (size / 2, 100), (size.saturating_sub(1), 9), (size, 1), (u64::MAX, 1)]
    {
        let pieces = layer.pieces(id, offset, length);
        let piece_length = |piece: &Piece| match piece {
            Piece::Hole { len } | Piece::Data { len, .. } => *len,
        };
        assert!(pieces.iter().all(|piece| piece_length(piece) > 0));
        let total: u64 = pieces.iter().map(piece_length).sum();
        assert_eq!(total, size.saturating_sub(offset).min(length), "pieces do not cover the requested range");
        let read_length = usize::try_from(length.min(3000)).unwrap();
        if let Ok(bytes) = layer.read(id, offset, read_length) {
            assert_eq!(bytes.len() as u64, total.min(read_length as u64));
        }
    }
}

/// Merges the changed layer alone, above the original and below it.
fn check_merge(layer: &Layer<Vec<u8>>, original: &ValidLayer) {
    let valid = Index::open(original.index.clone()).unwrap();
    for stack in [vec![layer.index()], vec![&valid, layer.index()], vec![layer.index(), &valid]] {
        let Ok(tree) = tree::merge(&stack) else { continue };
        for (name, node) in tree.children(NodeId::ROOT) {
            assert!(tree.contains(node) && tree.lookup(NodeId::ROOT, name) == Some(node));
        }
        let text = tree::dump(&tree, &stack, |_, _| Vec::new());
        assert!(!text.contains("\n? ") && !text.starts_with("? "), "a node has no known kind:\n{text}");
    }
}
