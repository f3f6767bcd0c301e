//! Random layers: the merge, the filesystem and the engines must give the tree of the naive reference model.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod fs;
mod kernel;
mod overlay;

use proptest::prelude::*;
use support::layers::{EntryKind, Line};
use support::{compare, model};

/// Names that a program could misinterpret.
const ODD: [&[u8]; 14] = [
    b"\n",
    b"\t",
    b" ",
    b"a b",
    b"a=b",
    b"mode=700",
    b"\\",
    b"a:b,c",
    b"\xff\xfe",
    b"-rf",
    b"...",
    b".wh",
    b"wh.a",
    &[b'n'; 255],
];

/// All names that occur in paths, and some that do not.
fn names() -> impl Iterator<Item = &'static [u8]> {
    [&b"a"[..], b"b", b"c", b"d", b"A", b".wh.a", b".wh..wh..opq"].into_iter().chain(ODD)
}

/// Paths made of few names, so that they are often equal or below each other, and sometimes oddly spelled.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let odd = prop::sample::select(&ODD[..]).prop_map(<[u8]>::to_vec);
    let name = prop_oneof![
        16 => "[abc]".prop_map(String::into_bytes),
        1 => Just(b"..".to_vec()),
        1 => Just(b".".to_vec()),
        1 => odd,
    ];
    (prop::bool::weighted(0.1), prop::collection::vec(name, 1..4)).prop_map(|(absolute, names)| {
        let path = names.join(&b'/');
        if absolute { [b"/", &path[..]].concat() } else { path }
    })
}

fn line() -> impl Strategy<Value = Line> {
    let what = prop_oneof![
        4 => Just(EntryKind::Directory),
        4 => "[a-z]{0,3}".prop_map(|text| EntryKind::File(text.into_bytes())),
        4 => path().prop_map(EntryKind::Symlink),
        3 => path().prop_map(EntryKind::Hardlink),
        1 => Just(EntryKind::Fifo),
        1 => Just(EntryKind::Char(1, 3)),
        3 => Just(EntryKind::Whiteout),
        2 => Just(EntryKind::Opaque),
    ];
    let fields = (path(), what, 0o600..0o700u32, any::<bool>());
    fields.prop_filter_map("an entry that the tar can store", |(path, what, mode, xattr)| {
        let mut line = Line::new(&path, what);
        if !matches!(line.kind, EntryKind::Symlink(_)) {
            line.mode = mode;
        }
        if xattr {
            line.xattrs.push(("trusted.a".to_owned(), vec![b'x'; mode as usize % 3]));
        }
        // For the root, only a directory and an opaque marker are valid; other entries are refused before the merge.
        let root = model::normal(&path).is_empty();
        let dots = matches!(path.rsplit(|&byte| byte == b'/').next(), Some(b"." | b".."));
        match line.kind {
            EntryKind::Directory | EntryKind::Opaque => Some(line),
            // With the prefix `.wh.` the name would be too long.
            EntryKind::Whiteout if dots || path.ends_with(&[b'n'; 255]) => None,
            _ => (!root).then_some(line),
        }
    })
}

/// Lines of layers in which hard links refer to files below `.wh..wh.plnk`.
fn aufs_line() -> impl Strategy<Value = Line> {
    let hidden = || "[.]wh[.][.]wh[.]plnk/[xyz]".prop_map(String::into_bytes);
    let hidden_file = prop_oneof![
        3 => "[a-z]{1,3}".prop_map(|text| EntryKind::File(text.into_bytes())),
        1 => path().prop_map(EntryKind::Hardlink),
        1 => hidden().prop_map(EntryKind::Hardlink),
    ];
    prop_oneof![
        4 => line(),
        4 => (hidden(), hidden_file).prop_map(|(path, kind)| Line::new(&path, kind)),
        4 => ("[abc](/[abc])?", hidden()).prop_map(|(path, to)| Line::new(path.as_bytes(), EntryKind::Hardlink(to))),
    ]
}

fn stack() -> impl Strategy<Value = Vec<Vec<Line>>> {
    prop::collection::vec(prop::collection::vec(line(), 0..12), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merge_agrees_with_the_model(stack in stack()) {
        compare::compare(stack);
    }

    #[test]
    fn links_to_aufs_leftovers_agree_with_the_model(
        stack in prop::collection::vec(prop::collection::vec(aufs_line(), 0..12), 1..4),
    ) {
        compare::compare(stack);
    }
}
