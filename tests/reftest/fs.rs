//! Random images through [`ImageFs`]: what it shows against the model, what it reads against the bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rcx_imagefs::fs::Ino;

use crate::layers::{Line, What};
use crate::model::Model;
use crate::stored::{Packing, Stored, found, resolve, shown};

/// Bytes of tar in the members and frames that some layers are packed in.
const PIECE: usize = 3000;

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        Just(Packing::Tar),
        Just(Packing::Gzip),
        Just(Packing::Members(PIECE)),
        Just(Packing::Frames(PIECE)),
        Just(Packing::Zstd),
    ]
}

/// A stack of layers without the lines that break a rule.
fn sound(mut stack: Vec<Vec<Line>>) -> (Vec<Vec<Line>>, Model) {
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

/// An offset near an edge of something: a span, a piece, the file.
fn offset() -> impl Strategy<Value = (u64, i64)> {
    let edges = prop_oneof![Just(4096_u64), Just(3000), Just(512), Just(8192), Just(1)];
    (0..12_u64, edges, -2..3_i64).prop_map(|(times, edge, off)| (times * edge, off))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn filesystem_agrees_with_the_model(stack in crate::stack(), packing in packing()) {
        let (stack, model) = sound(stack);
        let stored = Stored::new();
        stored.add("lab/a:1", &stack, packing);
        let fs = stored.fs();
        let root = resolve(&fs, "lab/a:1");
        prop_assert_eq!(shown(&fs, &root), model.lines());
        let mut nodes: BTreeMap<usize, Ino> = BTreeMap::new();
        for (path, node, nlink) in model.paths() {
            let attr = path.iter().fold(root, |at, name| found(&fs, at.ino, name));
            prop_assert_eq!(attr.nlink as usize, nlink);
            prop_assert_eq!(*nodes.entry(node).or_insert(attr.ino), attr.ino, "one node, one inode");
        }
        let different: std::collections::BTreeSet<_> = nodes.values().collect();
        prop_assert_eq!(different.len(), nodes.len(), "two nodes, two inodes");
    }

    #[test]
    fn reads_give_the_bytes_that_were_put_in(
        sizes in prop::collection::vec(0..30_000_usize, 1..5),
        seed in any::<u64>(),
        packing in packing(),
        reads in prop::collection::vec((any::<prop::sample::Index>(), offset(), 0..20_000_u32), 1..40),
    ) {
        let contents: Vec<_> =
            sizes.iter().enumerate().map(|(file, size)| noise(seed ^ file as u64, *size)).collect();
        let lines = contents.iter().enumerate().map(|(file, bytes)| {
            Line::new(format!("f{file}").as_bytes(), What::File(bytes.clone()))
        });
        let stored = Stored::new();
        stored.add("lab/a:1", &[lines.collect()], packing);
        let fs = stored.fs();
        let root = resolve(&fs, "lab/a:1").ino;
        for (file, (edge, off), length) in reads {
            let file = file.index(contents.len());
            let offset = edge.saturating_add_signed(off);
            let ino = found(&fs, root, format!("f{file}").as_bytes()).ino;
            let start = usize::try_from(offset).unwrap().min(contents[file].len());
            let end = (start + length as usize).min(contents[file].len());
            prop_assert!(*fs.read(ino, offset, length).unwrap() == contents[file][start..end]);
        }
    }
}
