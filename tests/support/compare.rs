//! Compares the merge with the reference model: both give the same tree, or reject the same line.

use std::collections::BTreeMap;

use rcx_imagefs::index::Layer;
use rcx_imagefs::layer::Printable;
use rcx_imagefs::tree::{NodeId, Tree, merge};

use crate::layers::{Line, Merged, open, parse, tar};
use crate::model::{self, Model};

/// Compares by listing: dumps the whole tree and parses the text.
fn assert_same_listing(text: &str, model: &Model) {
    let lines = parse(text).remove(0);
    assert_eq!(lines, model.lines(), "\n{text}");
}

/// Compares by looking up each path of the model, component by component.
fn assert_same_lookups(tree: &Tree, model: &Model) {
    let mut nodes: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (path, node, nlink) in model.paths() {
        let mut at = NodeId::ROOT;
        for name in &path {
            let next = tree.lookup(at, name).expect("a path of the model exists");
            if tree.is_directory(next) {
                assert_eq!(tree.parent(next), at);
            }
            at = next;
        }
        assert_eq!(tree.nlink(at) as usize, nlink, "{path:?}");
        assert_eq!(
            *nodes.entry(at).or_insert(node),
            node,
            "{path:?} leads to another node than in the model"
        );
    }
    assert_eq!(tree.len(), nodes.len());
}

/// Merges the layers in both ways. Where a line breaks a rule, both must reject it; it is then removed and the merge repeated.
pub fn compare(mut stack: Vec<Vec<Line>>) {
    let indexed = |layer: &Vec<Line>| open(tar(layer)).unwrap_or_else(|error| panic!("{error}\n{layer:?}"));
    let mut layers: Vec<_> = stack.iter().map(indexed).collect();
    loop {
        let merged = merge(&layers.iter().map(Layer::index).collect::<Vec<_>>());
        match Model::merge(&stack) {
            Ok(model) => {
                let tree = merged.unwrap_or_else(|error| panic!("{error}\n{stack:?}"));
                let merged = Merged { layers, tree };
                assert_same_listing(&merged.dump(), &model);
                return assert_same_lookups(&merged.tree, &model);
            }
            Err((layer, line)) => {
                let path = model::normal(&stack[layer][line].path).join(&b'/');
                let error =
                    merged.map(|tree| tree.len()).expect_err("the model rejects this line").to_string();
                assert!(error.starts_with(&format!("layer {}: ", layer + 1)), "{error}\n{stack:?}");
                assert!(error.contains(&format!(" `{}`: ", Printable(&path))), "{error}\n{stack:?}");
                stack[layer].remove(line);
                layers[layer] = indexed(&stack[layer]);
            }
        }
    }
}
