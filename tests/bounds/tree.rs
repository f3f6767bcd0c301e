//! The merge: what layers make of each other, however many there are.

use rcx_imagefs::tree::{MergeFault, NodeId, merge};

use crate::index::{deep, index_of};
use crate::layers::{merge_lines, parse};
use crate::memory::within;
use crate::stream::{end, header};

const MIB: usize = 1 << 20;

#[test]
fn a_thousand_layers_are_one_tree() {
    let layer = |n: usize| match n {
        0 => "d d\nf d/0 0\nf same 0".to_owned(),
        n => format!("f d/{n} {n}\nf same {n}\nw d/{}", n - 1),
    };
    let layers: Vec<_> = (0..1000).map(|n| parse(&layer(n)).remove(0)).collect();
    let dump = merge_lines(&layers).unwrap().dump();
    assert_eq!(dump, "d d\nf d/999 999\nf same 999\n");
}

#[test]
fn directories_in_a_deep_one_do_not_take_its_path_each_where_markers_are() {
    let (path, make) = deep();
    let directories = (0..4000).flat_map(move |n| make(b'5', format!("directory{n}")));
    let marker = [header(b'0', b".wh.nothing", 0)];
    let index = index_of(marker.into_iter().chain(directories).chain([end()])).unwrap();
    let tree = within(2 * MIB, || merge(&[&index])).unwrap();
    let directory =
        path.split(|&byte| byte == b'/').fold(NodeId::ROOT, |at, name| tree.lookup(at, name).unwrap());
    assert_eq!(tree.children(directory).len(), 4000);
}

#[test]
fn layers_with_too_many_entries_together_are_refused_before_they_are_gone_through() {
    let directories = (0..40_000).map(|n| header(b'5', format!("directory-{n}").as_bytes(), 0));
    let index = index_of(directories.chain([end()])).unwrap();
    let error = merge(&[&index; 1000]).unwrap_err();
    // 2^25 and one: the layer that begins there.
    let layer = (1 << 25) / 40_000;
    assert_eq!(error.layer.index(), layer);
    assert!(matches!(error.fault, MergeFault::TooMany(_)));
    let told = format!(
        "layer {}: entry `directory-0`: too many entries, with those of the layers below (in sha256:",
        layer + 1
    );
    assert!(error.to_string().starts_with(&told), "{error}");
}
