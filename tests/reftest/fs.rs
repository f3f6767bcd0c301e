//! Random images through [`ImageFs`]: what it shows against the model, what it reads against the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd as _;

use proptest::prelude::*;
use rcx_imagefs::fs::{FileKind, ImageFs, Ino, InodeAttr, Lookup};
use rcx_imagefs::image::{LayerDigest, ManifestDigest};
use rcx_imagefs::index::{IndexedKind, Piece};
use rcx_imagefs::pipeline::{open_image, open_layer};
use rcx_imagefs::unpack::{UnpackOptions, UnpackPlan, write};

use support::disk;
use support::layers::{EntryKind, Line, parse};
use support::model::Model;
use support::stored::{Packing, TestStore, image_lines, line, lookup, resolve};

/// Bytes of tar in the members and frames that some layers are packed in.
const PIECE: Range<usize> = 100..9000;

pub(crate) fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        Just(Packing::Tar),
        Just(Packing::Gzip),
        PIECE.prop_map(Packing::Members),
        PIECE.prop_map(Packing::Frames),
        Just(Packing::Zstd),
    ]
}

/// A stack of layers without the lines that break a rule.
pub(crate) fn sound(mut stack: Vec<Vec<Line>>) -> (Vec<Vec<Line>>, Model) {
    loop {
        match Model::merge(&stack) {
            Ok(model) => return (stack, model),
            Err((layer, line)) => drop(stack[layer].remove(line)),
        }
    }
}

/// Content that compresses, but not to nothing: words of a small language.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = [&b"the "[..], b"spans ", b"of ", b"a layer ", &state.to_le_bytes()[4..]];
        bytes.extend_from_slice(word[usize::try_from(state >> 61).unwrap() % word.len()]);
    }
    bytes.truncate(length);
    bytes
}

/// Checks an image by lookups of the model's paths, without listing, and lookups of names that do not exist.
fn check_lookups(fs: &ImageFs, root: InodeAttr, model: &Model) -> Result<(), TestCaseError> {
    let lines: BTreeMap<Vec<u8>, Line> =
        model.lines().into_iter().map(|line| (line.path.clone(), line)).collect();
    let mut nodes: BTreeMap<usize, Ino> = BTreeMap::new();
    let paths = model.paths();
    let known: BTreeSet<Vec<Vec<u8>>> = paths.iter().map(|(path, ..)| path.clone()).collect();
    for (path, node, nlink) in paths {
        let attr = path.iter().fold(root, |at, name| lookup(fs, at.ino, name));
        prop_assert_eq!(attr.nlink as usize, nlink);
        prop_assert_eq!(*nodes.entry(node).or_insert(attr.ino), attr.ino, "names of one node are one inode");
        let text = if path.is_empty() { b"/".to_vec() } else { path.join(&b'/') };
        let usual = Line::new(&text, EntryKind::Directory);
        let mut expected = lines.get(&text).unwrap_or(&usual);
        if let EntryKind::Hardlink(first) = &expected.kind {
            expected = &lines[first];
        }
        prop_assert_eq!(line(fs, &text, &attr), Line { path: text, ..expected.clone() });
        if attr.kind == FileKind::Directory {
            for name in crate::names() {
                let child = [&path[..], &[name.to_vec()]].concat();
                if !known.contains(&child) {
                    prop_assert_eq!(fs.lookup(attr.ino, name).unwrap(), Lookup::Absent { cacheable: true });
                }
            }
        }
    }
    let different: BTreeSet<_> = nodes.values().collect();
    prop_assert_eq!(different.len(), nodes.len(), "distinct nodes are distinct inodes");
    Ok(())
}

/// Unpacks an image and dumps the copy.
fn dump_of_copy(stored: &TestStore, image: ManifestDigest) -> String {
    let dir = tempfile::tempdir().unwrap();
    let image = open_image(&stored.store, image, |_| None).unwrap();
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let root = File::open(dir.path()).unwrap();
    write(&UnpackPlan::whole(&image.tree), &layers, root.as_fd(), dir.path(), &UnpackOptions::default())
        .unwrap();
    disk::dump(dir.path(), i64::MAX).unwrap()
}

/// A position in a file: one of its edges, and an offset from it.
#[derive(Debug, Clone, Copy)]
struct Edge(prop::sample::Index, i64);

#[derive(Debug, Clone, Copy)]
struct Read {
    file: prop::sample::Index,
    from: Edge,
    to: Edge,
}

fn read() -> impl Strategy<Value = Read> {
    let edge = || (any::<prop::sample::Index>(), -2..3_i64).prop_map(|(edge, off)| Edge(edge, off));
    (any::<prop::sample::Index>(), edge(), edge()).prop_map(|(file, from, to)| Read { file, from, to })
}

/// For each file of a layer, the offsets where the file or a span starts or ends, and the middles between them.
fn span_edges(stored: &TestStore, layer: LayerDigest) -> Vec<Vec<u64>> {
    let layer = open_layer(&stored.store, layer).unwrap();
    let spans: Vec<Range<u64>> = layer.index().spans().map(|span| layer.index().span_range(span)).collect();
    let files = layer.index().entries().map(|(id, entry)| {
        let IndexedKind::Regular { size } = entry.kind() else { panic!("only files are in this layer") };
        let mut edges = vec![0, size];
        if let [Piece::Data { tar, len }] = layer.pieces(id, 0, size)[..] {
            let inside = tar.get()..tar.get() + len;
            let starts = spans.iter().map(|span| span.start).filter(|start| inside.contains(start));
            edges.extend(starts.map(|start| start - inside.start));
        }
        edges.sort_unstable();
        let middles: Vec<u64> = edges.windows(2).map(|pair| pair[0].midpoint(pair[1])).collect();
        edges.extend(middles);
        edges
    });
    files.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn filesystem_agrees_with_the_model(stack in crate::stack(), packing in packing()) {
        let (stack, model) = sound(stack);
        let stored = TestStore::new();
        stored.add("lab/a:1", &stack, packing);
        let fs = stored.fs();
        let root = resolve(&fs, "lab/a:1");
        prop_assert_eq!(image_lines(&fs, &root), model.lines());
        // A second filesystem has empty caches, so its answers come from lookups alone.
        let fs = stored.fs();
        check_lookups(&fs, resolve(&fs, "lab/a:1"), &model)?;
    }

    /// Needs root, because it makes devices.
    #[test]
    fn copy_agrees_with_the_model(stack in crate::stack(), packing in packing()) {
        let (stack, model) = sound(stack);
        let stored = TestStore::new();
        let (image, _) = stored.add("lab/a:1", &stack, packing);
        let dump = dump_of_copy(&stored, image);
        prop_assert!(!dump.contains(" nlink="), "{dump}");
        prop_assert_eq!(parse(&dump).remove(0), model.lines());
    }

    #[test]
    fn reads_return_the_bytes_of_the_files(
        sizes in prop::collection::vec(0..30_000_usize, 1..5),
        seed in any::<u64>(),
        packing in packing(),
        reads in prop::collection::vec(read(), 1..40),
    ) {
        let contents: Vec<_> =
            sizes.iter().enumerate().map(|(file, size)| noise(seed ^ file as u64, *size)).collect();
        let lines = contents.iter().enumerate().map(|(file, bytes)| {
            Line::new(format!("f{file}").as_bytes(), EntryKind::File(bytes.clone()))
        });
        let stored = TestStore::new();
        let (_, layers) = stored.add("lab/a:1", &[lines.collect()], packing);
        let edges = span_edges(&stored, layers[0]);
        let fs = stored.fs();
        let root = resolve(&fs, "lab/a:1").ino;
        for Read { file, from, to } in reads {
            let file = file.index(contents.len());
            let edge = |at: Edge| edges[file][at.0.index(edges[file].len())].saturating_add_signed(at.1);
            let (offset, to) = (edge(from), edge(to));
            let length = u32::try_from(to.saturating_sub(offset)).unwrap();
            let ino = lookup(&fs, root, format!("f{file}").as_bytes()).ino;
            let start = usize::try_from(offset).unwrap().min(contents[file].len());
            let end = (start + length as usize).min(contents[file].len());
            prop_assert!(*fs.read(ino, offset, length).unwrap() == contents[file][start..end]);
        }
    }
}
