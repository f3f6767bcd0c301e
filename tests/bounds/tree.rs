//! The cost of merging layers, however many and however nested they are.

use rcx_imagefs::tree::{MergeFault, NodeId, merge};

use crate::index::{deep, index_of};
use crate::memory::within;
use crate::stream::{end, header};
use support::layers::{merge_lines, parse, tar};

const MIB: usize = 1 << 20;

#[test]
fn a_thousand_layers_merge_into_one_tree() {
    let layer = |n: usize| match n {
        0 => "d d\nf d/0 0\nf same 0".to_owned(),
        n => format!("f d/{n} {n}\nf same {n}\nw d/{}", n - 1),
    };
    let layers: Vec<_> = (0..1000).map(|n| parse(&layer(n)).remove(0)).collect();
    let dump = merge_lines(&layers).unwrap().dump();
    assert_eq!(dump, "d d\nf d/999 999\nf same 999\n");
}

#[test]
fn chain_of_symlinks_is_refused_after_forty_links_however_long_it_is() {
    let links = 20_000;
    let chain = (0..links).map(|n| format!("l s{n} s{}", n + 1)).collect::<Vec<_>>().join("\n");
    let layer = |inside: usize| parse(&format!("d s{links}\n{chain}\nf s{inside}/x 1")).remove(0);
    let merged = merge_lines(&[layer(links - 40)]).unwrap();
    let end = merged.tree.lookup(NodeId::ROOT, format!("s{links}").as_bytes()).unwrap();
    assert!(merged.tree.lookup(end, b"x").is_some());
    for inside in [0, links - 41] {
        let error = merge_lines(&[layer(inside)]).err().unwrap();
        let expected = format!("layer 1: entry `s{inside}/x`: too many symbolic links in its path");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn link_targets_through_missing_directories_take_memory_only_for_the_nodes_they_create() {
    // The path leads through 40 links, each into 800 missing directories and back out again.
    let away = format!("{}{}", "a/".repeat(800), "../".repeat(800));
    let chain: Vec<String> = (0..40).map(|n| format!("l s{n} {away}s{}", n + 1)).collect();
    let layer = parse(&format!("{}\nd s40\nf s0/x 1", chain.join("\n"))).remove(0);
    let index = index_of([tar(&layer).into()]).unwrap();
    let tree = within(MIB, || merge(&[&index])).unwrap();
    assert_eq!(tree.len(), 1 + 1 + 40 + 1);
}

#[test]
fn directories_in_a_deep_directory_do_not_each_store_its_path_in_a_layer_with_markers() {
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
fn layers_with_too_many_entries_together_are_refused_before_their_entries_are_read() {
    let directories = (0..40_000).map(|n| header(b'5', format!("directory-{n}").as_bytes(), 0));
    let index = index_of(directories.chain([end()])).unwrap();
    let error = merge(&[&index; 1000]).unwrap_err();
    // The layer that exceeds the limit of 2^25 entries.
    let layer = (1 << 25) / 40_000;
    assert_eq!(error.layer.index(), layer);
    assert!(matches!(error.fault, MergeFault::TooMany(_)));
    let expected = format!(
        "layer {}: entry `directory-0`: too many entries, with those of the layers below (in sha256:",
        layer + 1
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
}
